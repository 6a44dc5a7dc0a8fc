"""GGUF adapters, as llama.cpp reads and its `convert_lora_to_gguf.py` writes them.

Each weight NAME of the base file has NAME.lora_a (R, I) and NAME.lora_b (O, R), and
`adapter.lora.alpha` belongs to all. llama.cpp multiplies a product with alpha over its rank,
or with 1 where alpha is 0 (`llama-adapter.h`). Rows of lora_b lie as those of the weight do,
so those of q and k are permuted for some families. Experts of a layer are stacked.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hyprstream.errors import HyprstreamError, InvalidAdapterError, UnsupportedError
from hyprstream.lora.exchange.coverage import Coverage, Imported
from hyprstream.lora.exchange.format import ReadOptions
from hyprstream.lora.exchange.gguf_file import GgufPart, entry, write_gguf
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.outgoing import Outgoing
from hyprstream.lora.exchange.pairs import Pair, weights_of
from hyprstream.lora.exchange.peft_state import short_targets
from hyprstream.lora.spec import LoraSpec
from hyprstream.models.checkpoint import BLOCK_TYPES, GgufFile
from hyprstream.models.checkpoint.magic import GGUF, identify
from hyprstream.models.checkpoint.mapping import MappedFile
from hyprstream.models.quant import BlockWeight

IS_FOLDER = False
_ALPHA = "adapter.lora.alpha"
_SIDES = ("a", "b")


def recognizes(path: Path) -> bool:
    """Tell by the first bytes; a model in this format is refused by `read`."""
    try:
        return path.is_file() and identify(MappedFile.open(path)) == GGUF
    except HyprstreamError:
        return False


def read(path: Path, host: Host, options: ReadOptions) -> Imported:
    """Read a file.

    Raises:
        InvalidAdapterError: It is no sound adapter, or none for this model.
        IncompatibleAdapterError: A layer of the model has another shape.
        UnsupportedError: It is of a kind, or has a part, that is not supported.
        CorruptWeightsError: The file breaks the rules of its format.
    """
    with GgufFile.open(path) as file:
        alpha = _alpha(file, path) if options.alpha is None else options.alpha
        _check_family(file, host, path)
        stored = _stored(file, path)
        pairs: dict[str, Pair] = {}
        used = set()
        orders = host.gguf_orders(host.linears)
        for layer in host.linears:
            name, index = _place(host, layer)
            if name in stored:
                used.add(name)
                pairs[layer] = _pair(stored[name], index, alpha, orders.get(layer))
        coverage = Coverage(
            modules=tuple(pair.report(layer) for layer, pair in pairs.items()),
            unexpected=tuple(name for name in stored if name not in used),
        )
        coverage.check(path)
        weights = weights_of(pairs, host.linears)
    return Imported(weights=weights, spec=_spec(pairs, host), coverage=coverage)


def write(place: Path, outgoing: Outgoing) -> None:
    """Write a file.

    Raises:
        UnsupportedError: The model has no GGUF form, or none with a weight for a layer.
    """
    host = outgoing.host
    pairs, alpha = _with_one_alpha(outgoing)
    entries = [
        entry("general.type", "adapter"),
        entry("general.architecture", host.gguf_family),
        entry("adapter.type", "lora"),
        entry(_ALPHA, alpha),
    ]
    tensors: dict[str, Tensor] = {}
    stacks: dict[str, dict[int, Pair]] = {}
    orders = host.gguf_orders(pairs)
    for path, pair in pairs.items():
        stored = host.gguf_place(path)
        ordered = _as_stored(pair, orders.get(path))
        if stored.index is None:
            tensors[f"{stored.name}.lora_a"] = ordered.a
            tensors[f"{stored.name}.lora_b"] = ordered.b
        else:
            stacks.setdefault(stored.name, {})[stored.index] = ordered
    for name, experts in stacks.items():
        assert host.config.moe is not None
        a, b = _stacked(experts, host.config.moe.num_experts)
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = a, b
    write_gguf(place, entries, {name: GgufPart.of(tensor) for name, tensor in tensors.items()})


def _alpha(file: GgufFile, path: Path) -> float:
    metadata = file.metadata
    if metadata.get("general.type") != "adapter":
        kind = str(metadata.get("general.type", "model"))  # old files of models say nothing
        raise InvalidAdapterError(
            f"{path} is a GGUF file of type {kind[:80]!r}, no adapter",
            hint="Name a file that convert_lora_to_gguf.py made.",
        )
    if metadata.get("adapter.type") != "lora":
        raise UnsupportedError(
            f"{path} is an adapter of type {str(metadata.get('adapter.type'))[:80]!r}; lora is "
            "supported",
            hint="Use an adapter that convert_lora_to_gguf.py made of a LoRA.",
        )
    if metadata.get("adapter.alora.invocation_tokens"):
        raise UnsupportedError(
            f"{path} begins to act at a token (aLoRA); this is not supported",
            hint="Use an ordinary LoRA.",
        )
    alpha = metadata.get(_ALPHA)
    if not isinstance(alpha, float) or not 0 <= alpha < float("inf"):
        raise InvalidAdapterError(
            f"{path}: {_ALPHA} is {str(alpha)[:80]}, no number from 0",
            hint="The adapter is damaged; convert it again.",
        )
    return alpha


def _check_family(file: GgufFile, host: Host, path: Path) -> None:
    family = file.metadata.get("general.architecture")
    if family != host.gguf_family:
        raise InvalidAdapterError(
            f"{path} is for a model of family {str(family)[:80]!r}, this one is "
            f"{host.gguf_family!r}",
            hint="Use the adapter with the base model that it was trained on.",
        )


def _stored(file: GgufFile, path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Pair the tensors of a file by the weight of the base file that they change."""
    found: dict[str, dict[str, Tensor]] = {}
    for full_name in file.names():
        name, _, side = full_name.rpartition(".lora_")
        if side not in _SIDES or not name:
            raise UnsupportedError(
                f"{path} holds {full_name[:120]!r}, which is no part of a low-rank product",
                hint="Merge the adapter into its base model, and use that.",
            )
        found.setdefault(name, {})[side] = _values(file, full_name)
    for name, sides in found.items():
        if len(sides) != 2:
            raise InvalidAdapterError(
                f"{path} holds only lora_{''.join(sides)} of {name}",
                hint="The adapter is damaged or incomplete.",
            )
    return {name: (sides["a"], sides["b"]) for name, sides in found.items()}


def _values(file: GgufFile, name: str) -> Tensor:
    kind = file.info(name).kind
    if kind not in BLOCK_TYPES:
        return file.tensor(name)
    blocks = file.blocks(name)
    shape = file.info(name).shape
    flat = BlockWeight(blocks.reshape(-1, blocks.shape[-1]), kind).dequantize(torch.float32)
    return flat.view(shape)


def _place(host: Host, path: str) -> tuple[str, int | None]:
    try:
        place = host.gguf_place(path)
    except UnsupportedError:
        return "", None
    return place.name, place.index


def _pair(
    sides: tuple[Tensor, Tensor], index: int | None, alpha: float, order: Tensor | None
) -> Pair:
    a, b = sides
    if index is not None:
        if a.ndim != 3 or b.ndim != 3 or index >= min(len(a), len(b)):
            raise InvalidAdapterError(
                f"matrices of experts have shapes {tuple(a.shape)} and {tuple(b.shape)}",
                hint="They must be stacks with one entry for each expert.",
            )
        a, b = a[index], b[index]
    pair = Pair(a, b, 1.0)
    if order is not None and pair.shape[0] == len(order):
        b = b[order]
    return Pair(a, b, alpha / pair.rank if alpha else 1.0)


def _with_one_alpha(outgoing: Outgoing) -> tuple[Mapping[str, Pair], float]:
    """Return the pairs, and the alpha that belongs to all of them.

    Stacks of experts may get a higher rank than their pairs, so their scale has to be 1.
    """
    pairs, alphas = outgoing.pairs, set(outgoing.alphas().values())
    if len(alphas) == 1 and outgoing.host.config.moe is None:
        return pairs, alphas.pop()
    # Scales other than 1 are powers of two, so this rounds nothing.
    return {path: Pair(p.a, p.b * p.scale, 1.0) for path, p in pairs.items()}, 0.0


def _as_stored(pair: Pair, order: Tensor | None) -> Pair:
    if order is None:
        return pair
    b = torch.empty_like(pair.b)
    b[order] = pair.b
    return Pair(pair.a, b, pair.scale)


def _stacked(experts: Mapping[int, Pair], num_experts: int) -> tuple[Tensor, Tensor]:
    """Join the matrices of a layer's experts; what is narrower or absent is filled with zeros."""
    rank = max(pair.rank for pair in experts.values())
    first = next(iter(experts.values()))
    outputs, inputs = first.shape
    a, b = (
        first.a.new_zeros(num_experts, rank, inputs),
        first.b.new_zeros(num_experts, outputs, rank),
    )
    for index, pair in experts.items():
        a[index, : pair.rank], b[index, :, : pair.rank] = pair.a, pair.b
    return a, b


def _spec(pairs: Mapping[str, Pair], host: Host) -> LoraSpec:
    ranks = {path: pair.rank for path, pair in pairs.items()}
    rank = max(ranks.values())
    alphas = {path: pair.scale * pair.rank for path, pair in pairs.items()}
    alpha = alphas[next(path for path in ranks if ranks[path] == rank)]
    return LoraSpec(
        rank=rank,
        alpha=alpha,
        targets=short_targets(list(pairs), list(host.linears)),
        rank_pattern={path: r for path, r in ranks.items() if r != rank},
        alpha_pattern={path: a for path, a in alphas.items() if a != alpha},
    )
