"""Random adapters, and the models that hold them merged into their weights."""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hyprstream.lora.bank import LoraBank
from hyprstream.lora.basis import Basis, singular_basis
from hyprstream.lora.delta import Delta
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.kinds.sparse import Sparse
from hyprstream.lora.kinds.tiny import Tiny
from hyprstream.lora.mask import seeded
from hyprstream.lora.spec import Structure
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.attention import PackedAttention
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import ForwardBatch, LoraView

CPU = torch.device("cpu")
Linears = Mapping[str, tuple[int, int]]


def random_low_rank(
    shape: tuple[int, int], rank: int, generator: torch.Generator, dtype=torch.float32
) -> LowRank:
    outputs, inputs = shape
    a = torch.randn(inputs, rank, generator=generator) * 0.2
    b = torch.randn(rank, outputs, generator=generator) * 0.2
    return LowRank(a.to(dtype), b.to(dtype))


def random_adapter(linears: Linears, ranks: Sequence[int], seed: int) -> LoraWeights:
    """An adapter of the given layers, whose ranks take turns."""
    generator = torch.Generator().manual_seed(seed)
    return LoraWeights(
        {
            path: random_low_rank(shape, ranks[i % len(ranks)], generator)
            for i, (path, shape) in enumerate(linears.items())
        }
    )


def random_sparse(
    shape: tuple[int, int], sparsity: float, seed: int, structure: Structure = "unstructured"
) -> Sparse:
    mask = seeded(shape, sparsity, structure=structure, seed=seed, name="random")
    generator = torch.Generator().manual_seed(seed)
    return Sparse(torch.randn(mask.num_active, generator=generator) * 0.2, mask)


@cache
def random_basis(shape: tuple[int, int], rank: int) -> Basis:
    """The basis of the same W for each shape and rank."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(11))
    return singular_basis(weight, rank)


def random_tiny(shape: tuple[int, int], rank: int, seed: int) -> Tiny:
    rank = min(rank, *shape)
    generator = torch.Generator().manual_seed(seed)
    return Tiny(torch.randn(rank, rank, generator=generator), random_basis(shape, rank))


def random_kinds(linears: Linears, kinds: Sequence[str], ranks: Sequence[int], seed: int):
    """An adapter of the given layers, whose kinds and ranks take turns."""
    modules: dict[str, Delta] = {}
    generator = torch.Generator().manual_seed(seed)
    for i, (path, shape) in enumerate(linears.items()):
        kind, rank = kinds[i % len(kinds)], ranks[i % len(ranks)]
        if kind == "sparse":
            # Both layouts: sparse rows, and the whole matrix.
            modules[path] = random_sparse(shape, 0.9 if rank % 2 else 0.6, seed + i)
        elif kind == "tiny":
            modules[path] = random_tiny(shape, rank, seed + i)
        else:
            modules[path] = random_low_rank(shape, rank, generator)
    return LoraWeights(modules)


def make_bank(linears: Linears, *, num_slots: int = 3, max_rank: int = 8) -> LoraBank:
    return LoraBank(
        linears, num_slots=num_slots, max_rank=max_rank, dtype=torch.float32, device=CPU
    )


def dense(delta: Delta) -> Tensor:
    """What a delta adds to the layer's W, as (O, I) in float64."""
    if isinstance(delta, LowRank):
        return (delta.a.double() @ delta.b.double()).T
    if isinstance(delta, Tiny):
        basis = delta.basis
        return (basis.down.double() @ delta.core.double() @ basis.up.double()).T
    assert isinstance(delta, Sparse)
    flat = torch.zeros(delta.mask.size, dtype=torch.float64)
    flat[delta.mask.indices] = delta.values.double()
    return flat.view(delta.shape)


def save_merged(base: Path, weights: LoraWeights, folder: Path) -> None:
    """Write the checkpoint of `base` with an adapter added to its weights."""
    shutil.copytree(base, folder)
    tensors = load_file(base / "model.safetensors")
    if "lm_head.weight" not in tensors:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        config = json.loads((base / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    for path, delta in weights.modules.items():
        name = f"{path}.weight" if path == "lm_head" else f"model.{path}.weight"
        tensors[name] = (tensors[name].double() + dense(delta)).float()
    save_file(tensors, folder / "model.safetensors")


@torch.inference_mode()
def packed_logits(
    model: Decoder, sequences: Sequence[Tensor], view: LoraView | None
) -> list[Tensor]:
    """What a step over packed sequences scores, with what the view adds."""
    lengths = [len(ids) for ids in sequences]
    batch = ForwardBatch(
        token_ids=torch.cat(list(sequences)),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        attention=PackedAttention(model.config.attention, lengths),
        lora=view,
    )
    return list(model.logits(model.forward(batch), view).split(lengths))


def of_tokens(slots: Sequence[int], sequences: Sequence[Tensor]) -> list[int]:
    """The slot of each token, given that of each sequence."""
    return [slot for slot, ids in zip(slots, sequences, strict=True) for _ in ids]
