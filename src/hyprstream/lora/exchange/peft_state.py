"""Tensors under the names that PEFT gives them, to and from an adapter.

Shared by everything that carries such names: PEFT folders, single safetensors files and what
comes out of a pickle.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hyprstream.errors import InvalidAdapterError, UnsupportedError
from hyprstream.lora.exchange.coverage import Coverage, Imported
from hyprstream.lora.exchange.host import Host
from hyprstream.lora.exchange.joined import join
from hyprstream.lora.exchange.outgoing import Outgoing
from hyprstream.lora.exchange.pairs import Pair, weights_of
from hyprstream.lora.exchange.peft_settings import PeftSettings
from hyprstream.lora.exchange.targets import pattern_values
from hyprstream.lora.spec import LoraSpec
from hyprstream.models.checkpoint import Checkpoint

_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<stem>.+)\.lora_(?P<side>[AB])(?:\.(?!weight)[^.]+)?\.weight")
# What models are wrapped in, beside our paths.
_WRAPPERS = ("model.", "language_model.model.", "model.language_model.", "bert.")
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class _Module:
    """A module of a file: its name in the base model, and its two tensors."""

    name: str
    a: Tensor
    b: Tensor


def read_state(
    checkpoint: Checkpoint, settings: PeftSettings, host: Host, origin: object
) -> Imported:
    """Make an adapter of named tensors and the settings that belong to them.

    Raises:
        InvalidAdapterError: Tensors contradict one another or the settings, or none fits.
        IncompatibleAdapterError: A layer of the model has another shape.
        UnsupportedError: There are tensors besides those of low-rank products.
    """
    modules = _modules(checkpoint, host, origin)
    names = [module.name for module in modules]
    joined = host.joined
    known = {*host.linears, *joined}
    places = {name: _path(name, known) for name in names}
    wrapper = _wrapper(names, host)
    wanted = settings.targets.among([*names, *(_hf(wrapper, path) for path in known)])
    placed = [(places[m.name], m) for m in modules if m.name in wanted]
    pairs, alphas = _pairs([(p, m) for p, m in placed if p is not None], settings, origin)
    whole = join(pairs, host, origin)
    # Of a model that was taken apart, a file holds the parts and not what they are joined to.
    is_apart = not joined.keys().isdisjoint(pairs)
    others = {rows.layer for rows in joined.values()} if is_apart else joined.keys()
    coverage = Coverage(
        modules=tuple(pair.report(path) for path, pair in whole.items()),
        missing=tuple(
            path
            for path in (*host.linears, *joined)
            if path not in others and _hf(wrapper, path) in wanted and path not in pairs
        ),
        unexpected=tuple(n for n in names if places[n] is None or n not in wanted),
        ignored=settings.ignored,
    )
    coverage.check(origin)
    alpha_of = {p: alphas.get(p) or settings.alpha_for(q.scale, q.rank) for p, q in whole.items()}
    spec = LoraSpec(
        rank=settings.rank,
        alpha=settings.alpha,
        use_rslora=settings.use_rslora,
        dropout=settings.dropout,
        targets=short_targets(list(whole), list(host.linears)),
        rank_pattern={p: pair.rank for p, pair in whole.items() if pair.rank != settings.rank},
        alpha_pattern={p: alpha for p, alpha in alpha_of.items() if alpha != settings.alpha},
    )
    return Imported(weights=weights_of(whole, host.linears), spec=spec, coverage=coverage)


def _pairs(
    placed: Sequence[tuple[str, _Module]], settings: PeftSettings, origin: object
) -> tuple[dict[str, Pair], dict[str, float]]:
    """Make pairs of modules by path, and tell the alpha of each.

    Raises:
        InvalidAdapterError: A path comes twice, or a rank is not that of the settings.
    """
    names = [module.name for _, module in placed]
    ranks = pattern_values(settings.rank_pattern, names, settings.rank)
    alphas = pattern_values(settings.alpha_pattern, names, settings.alpha)
    pairs: dict[str, Pair] = {}
    for path, module in placed:
        if path in pairs:
            raise _contradiction(origin, f"holds {path} twice")
        rank = ranks[module.name]
        pair = Pair(module.a, module.b, settings.scale(alphas[module.name], rank))
        if pair.rank != rank:
            raise _contradiction(
                origin, f"holds {module.name} of rank {pair.rank}, its settings say {rank}"
            )
        pairs[path] = pair
    return pairs, {path: alphas[module.name] for path, module in placed}


def short_targets(paths: Sequence[str], linears: Sequence[str]) -> tuple[str, ...]:
    """Name layers by the last parts of their paths if that means no others; else by path."""
    ends = dict.fromkeys(path.rpartition(".")[2] for path in paths)
    meant = [path for path in linears if path.rpartition(".")[2] in ends]
    return tuple(ends) if sorted(meant) == sorted(paths) else tuple(paths)


def state_of(outgoing: Outgoing) -> dict[str, Tensor]:
    """Name the tensors of an adapter as PEFT does."""
    state = {}
    for path, pair in outgoing.pairs.items():
        stem = f"{_PREFIX}{outgoing.host.hf_name(path)}"
        state[f"{stem}.lora_A.weight"] = pair.a
        state[f"{stem}.lora_B.weight"] = pair.b
    return state


def settings_of(outgoing: Outgoing) -> dict[str, object]:
    """Return `adapter_config.json` of an adapter.

    Patterns hold full paths, with dots escaped: PEFT reads them as expressions.
    """
    host, spec = outgoing.host, outgoing.spec
    ranks = {path: pair.rank for path, pair in outgoing.pairs.items()}
    alphas = outgoing.alphas()
    rank, alpha = outgoing.common_rank, outgoing.common_alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if host.config.causal else "FEATURE_EXTRACTION",
        "base_model_name_or_path": host.name or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "use_rslora": False,  # alphas are those of plain scales
        "lora_dropout": 0.0 if spec is None else spec.dropout,
        "target_modules": list(short_targets(list(ranks), list(host.linears))),
        "rank_pattern": {re.escape(p): r for p, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(p): _plain(a) for p, a in alphas.items() if a != alpha},
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
    }


def settings_text(outgoing: Outgoing) -> bytes:
    """Return `adapter_config.json` as bytes."""
    return json.dumps(settings_of(outgoing), indent=2).encode() + b"\n"


def _plain(alpha: float) -> float:
    """Write whole numbers as such: older readers demand it."""
    return int(alpha) if alpha == int(alpha) else alpha


def module_ranks(checkpoint: Checkpoint, host: Host, origin: object) -> dict[str, int]:
    """Return the modules that a file holds, and the rank of each.

    Raises:
        InvalidAdapterError: A tensor has no partner, or is there twice.
        UnsupportedError: One belongs to no low-rank product.
    """
    modules = _modules(checkpoint, host, origin)
    return {module.name: module.a.shape[0] for module in modules if module.a.ndim}


def _modules(checkpoint: Checkpoint, host: Host, origin: object) -> list[_Module]:
    """Pair the tensors of a file.

    Raises:
        InvalidAdapterError: One has no partner, or is there twice.
        UnsupportedError: One belongs to no low-rank product.
    """
    sides: dict[str, dict[str, Tensor]] = {}
    for full_name in checkpoint.names():
        found = _PART.fullmatch(full_name.removeprefix(_PREFIX))
        if found is None and _is_copy(checkpoint, full_name, host):
            continue
        if found is None:
            raise UnsupportedError(
                f"{origin} holds {full_name[:120]!r}, which is no part of a low-rank product",
                hint="Biases, magnitudes (DoRA), embeddings and whole weights are not supported, "
                "but for copies of the base model's own; save_embedding_layers=False leaves "
                "those out.",
            )
        side = sides.setdefault(found["stem"], {})
        if found["side"] in side:
            raise _contradiction(origin, f"holds lora_{found['side']} of {found['stem']} twice")
        side[found["side"]] = checkpoint.tensor(full_name)
    for name, side in sides.items():
        if len(side) != 2:
            raise _contradiction(origin, f"holds only lora_{''.join(side)} of {name}")
        if any(tensor.dtype not in _DTYPES for tensor in side.values()):
            raise _contradiction(origin, f"holds {name} in {side['A'].dtype}, {side['B'].dtype}")
    return [_Module(name, side["A"], side["B"]) for name, side in sides.items()]


def _is_copy(checkpoint: Checkpoint, full_name: str, host: Host) -> bool:
    """Tell whether a tensor is the base model's own, which PEFT saves where a head is changed."""
    name = full_name.removeprefix(_PREFIX).removesuffix(".weight").removesuffix(".base_layer")
    path = next((path for path in host.tables if path in (name, name.partition(".")[2])), None)
    return path is not None and host.is_own(path, checkpoint.tensor(full_name))


def _path(name: str, known: Collection[str]) -> str | None:
    """Return which of the known paths a module of the base model is; None if it is none."""
    for wrapper in ("", *_WRAPPERS):
        path = name.removeprefix(wrapper)
        if path in known and (not wrapper or path != name):
            return path
    return None


def _wrapper(names: Sequence[str], host: Host) -> str:
    """Return what the file's base model has before our paths."""
    known = {*host.linears, *host.joined}
    for name in names:
        path = _path(name, known)
        if path is not None and path != name:
            return name.removesuffix(path)
    is_bare = any(name in known and name != "lm_head" for name in names)
    return "" if is_bare or not host.config.causal else "model."


def _hf(wrapper: str, path: str) -> str:
    return path if path == "lm_head" else wrapper + path


def _contradiction(origin: object, problem: str) -> InvalidAdapterError:
    return InvalidAdapterError(f"{origin} {problem}", hint="The adapter is damaged or incomplete.")
