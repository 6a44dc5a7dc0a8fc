"""From the tensors of a checkpoint to the parts of a model.

Finds the stored tensor of each part under whatever name the file gives it, checks its
shape, applies the family's changes and keeps it in its storage format. Nothing is copied
that can stay mapped.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.errors import CorruptWeightsError
from hyprstream.models.changes import Changes
from hyprstream.models.checkpoint import BLOCK_TYPES, Checkpoint
from hyprstream.models.config import ModelConfig
from hyprstream.models.layers import Embedding, Linear
from hyprstream.models.quant import (
    BlockWeight,
    DenseWeight,
    Quantization,
    Weight,
    WeightMemory,
    for_compute,
    quantize,
)

# What checkpoints put before our paths, most common first.
_PREFIXES = ("model.", "", "language_model.model.", "model.language_model.", "bert.")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a parameter lies: a tensor, or one entry of a stack of them."""

    name: str
    index: int | None = None


Names = Callable[[str], list[Stored]]
"""Lists the places where the parameter of a path may lie, likeliest first."""


def hf_names(path: str) -> list[Stored]:
    """List the SafeTensors names of a parameter: its path behind one of the usual prefixes."""
    return [Stored(prefix + path) for prefix in _PREFIXES]


def gguf_names(patterns: Mapping[str, str]) -> Names:
    """Make the lookup of GGUF names from an architecture's patterns."""

    def names(path: str) -> list[Stored]:
        part, _, suffix = path.rpartition(".")
        words = part.split(".")
        numbers = [word for word in words if word.isdigit()]
        pattern = ".".join("{}" if word.isdigit() else word for word in words)
        if pattern not in patterns:
            return []
        name = f"{patterns[pattern].format(*numbers)}.{suffix}"
        stacked = len(numbers) > patterns[pattern].count("{}")
        return [Stored(name, int(numbers[-1]) if stacked else None)]

    return names


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where the weights of a model come from.

    Attributes:
        path: What an error message calls the model.
        checkpoint: The open file or files.
        names: Where each parameter may lie.
        changes: What the family changes on the way in.
    """

    path: Path
    checkpoint: Checkpoint
    names: Names
    changes: Changes


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where the weights of a model go, and in which form.

    Attributes:
        device: Where to compute.
        dtype: Dtype of activations and of dense weights.
        quantization: Storage format for dense linear layers; None keeps them.
        expand: Turn quantised weights into dense ones of `dtype`.
    """

    device: torch.device
    dtype: torch.dtype
    quantization: Quantization | None = None
    expand: bool = False


class CheckpointWeights:
    """The `Weights` of a checkpoint.

    Args:
        source: Where they come from.
        config: What the model is made of.
        placement: Where they go.
    """

    def __init__(self, source: Source, config: ModelConfig, placement: Placement) -> None:
        self.dtype = placement.dtype
        self.device = placement.device
        self.linears: dict[str, tuple[int, int]] = {}
        self.linear_weights: dict[str, Weight] = {}
        self._path = source.path
        self._checkpoint = source.checkpoint
        self._names = source.names
        self._changes = source.changes
        self._config = config
        self._quantization = placement.quantization
        self._expand = placement.expand
        self._memory = WeightMemory()

    def linear(self, path: str, shape: tuple[int, int], *, bias: bool = False) -> Linear:
        """Load the linear layer at `path`, logical shape (O, I)."""
        order = self._row_order(path)
        stored = self._find(f"{path}.weight")
        weight = self._for_products(self._weight(stored, shape, order), stored)
        shift = None
        if bias:
            shift = self._vector(f"{path}.bias", shape[0])
            shift = shift if order is None else shift[order]
        return self._linear(path, weight, shift)

    def embedding(self, path: str, shape: tuple[int, int]) -> Embedding:
        """Load the table at `path`, one row per entry; a head alone serves as the table."""
        stored = self._find(f"{path}.weight", otherwise="lm_head.weight")
        weight = self._weight(stored, shape, None)
        return Embedding(path, weight.to(self.device), self.dtype)

    def vector(self, path: str, size: int) -> Float[Tensor, " size"]:
        """Load the vector at `path`, in the compute dtype."""
        added = self._changes.added
        return self._vector(path, size, next((added[e] for e in added if path.endswith(e)), 0.0))

    def head(self, path: str, table: Embedding, *, tied: bool | None) -> Linear:
        """Load the output head, or share the embedding table (see `ModelConfig.tied`)."""
        own = self._lookup(f"{path}.weight")
        if tied is False and own is None:
            raise self._missing(f"{path}.weight")
        if own is None or tied:
            return self._linear(path, self._for_products(table.weight, None), None)
        weight = self._weight(own, table.weight.shape, None)
        return self._linear(path, self._for_products(weight, own), None)

    def _linear(self, path: str, weight: Weight, bias: Float[Tensor, " O"] | None) -> Linear:
        self.linears[path] = weight.shape
        self.linear_weights[path] = weight
        return Linear(path, weight, bias)

    def _weight(
        self, stored: Stored, shape: tuple[int, int], order: Int[Tensor, " O"] | None
    ) -> Weight:
        info = self._checkpoint.info(stored.name)
        found = info.shape if stored.index is None else info.shape[1:]
        if found != shape:
            raise self._wrong(stored.name, found, shape)
        is_blocks = info.kind in BLOCK_TYPES
        data = (self._checkpoint.blocks if is_blocks else self._checkpoint.tensor)(stored.name)
        if stored.index is not None:
            data = data[stored.index]
        if order is not None:
            data = data[order]
        if not is_blocks:
            return DenseWeight(data.to(self.dtype))
        blocks = BlockWeight(data, info.kind)
        return DenseWeight(blocks.dequantize(self.dtype)) if self._expand else blocks

    def _for_products(self, weight: Weight, stored: Stored | None) -> Weight:
        """Choose the storage that multiplies best; let go of mapped pages that it replaces."""
        if self._quantization is not None and isinstance(weight, DenseWeight):
            chosen = quantize(weight.tensor, self._quantization, self._memory)
        else:
            # The cosine of an encoder's vectors shows what rounded rows lose: 0.9988.
            chosen = for_compute(
                weight, self.dtype, rounds_rows=self._config.causal, memory=self._memory
            )
        if stored is not None and chosen is not weight:
            self._checkpoint.release(stored.name)
        return chosen.to(self.device)

    def _vector(self, path: str, size: int, added: float = 0.0) -> Float[Tensor, " size"]:
        stored = self._find(path)
        info = self._checkpoint.info(stored.name)
        if info.shape != (size,):
            raise self._wrong(stored.name, info.shape, (size,))
        data = self._checkpoint.tensor(stored.name)
        if added:
            data = data.float() + added
        return data.to(self.device, self.dtype)

    def _row_order(self, path: str) -> Int[Tensor, " O"] | None:
        order = self._changes.row_order
        return next((order[end](self._config) for end in order if path.endswith(end)), None)

    def _lookup(self, path: str) -> Stored | None:
        places = self._names(path)
        return next((place for place in places if place.name in self._checkpoint), None)

    def _find(self, path: str, otherwise: str | None = None) -> Stored:
        stored = self._lookup(path)
        if stored is None and otherwise is not None:
            stored = self._lookup(otherwise)
        if stored is None:
            raise self._missing(path)
        return stored

    def _missing(self, path: str) -> CorruptWeightsError:
        names = " or ".join(place.name for place in self._names(path)[:2]) or path
        return CorruptWeightsError(self._path, f"it has no tensor {names}")

    def _wrong(
        self, name: str, found: tuple[int, ...], wanted: tuple[int, ...]
    ) -> CorruptWeightsError:
        return CorruptWeightsError(
            self._path, f"tensor {name} has shape {found}, its config says {wanted}"
        )
