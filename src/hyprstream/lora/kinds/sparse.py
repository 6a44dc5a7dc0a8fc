"""Single elements of W, changed directly (SHiRA, arXiv:2406.13175): sparse and of high rank.

`Sparse` is the value on the host, `SparseSlots` the device memory of all slots, and
`SparseView` what one step reads from it. Slots are used on the engine thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.lora.csr import (
    Pattern,
    is_sparse_enough,
    matrix_bytes,
    sparse_product,
)
from hyprstream.lora.delta import BankLimits, Delta, Start, Target, check_finite
from hyprstream.lora.leaf import Leaf, Regrowth
from hyprstream.lora.mask import Mask, choose, seeded
from hyprstream.lora.ops import storage_dtype
from hyprstream.lora.packing import check_values, packed_values, unpacked_values
from hyprstream.lora.rows import Rows, by_slot, nothing
from hyprstream.vdb.tensors import SparseTensor


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """D, added to the W of a linear layer.

    Attributes:
        values: Its active elements, (N,), in flat order.
        mask: Which they are, of the shape (O, I).
    """

    kind: ClassVar[str] = "sparse"

    # Without shape annotation: they come from outside, so they are checked in production too.
    values: Tensor
    mask: Mask

    def __post_init__(self) -> None:
        """Copy the values, and reject those that do not belong to the mask.

        Raises:
            InvalidAdapterError: Number, dtype or values are wrong.
        """
        if len(self.mask.shape) != 2 or tuple(self.values.shape) != (self.mask.num_active,):
            raise InvalidAdapterError(
                f"{tuple(self.values.shape)} values are for {self.mask.num_active} elements "
                f"of shape {self.mask.shape}",
                hint="There must be one value for each active element of an (O, I) mask.",
            )
        check_values("a sparse delta", self.values)
        object.__setattr__(self, "values", self.values.detach().to("cpu", copy=True))

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape (O, I) of the layer."""
        num_rows, width = self.mask.shape
        return num_rows, width

    @property
    def rank(self) -> int:
        """None: it takes memory by its elements."""
        return 0

    @property
    def size_bytes(self) -> int:
        """Bytes on the host."""
        return self.values.nbytes + self.mask.indices.nbytes

    @property
    def shared(self) -> tuple[()]:
        """Nothing."""
        return ()

    def tensors(self) -> dict[str, Tensor]:
        """Name D as a whole matrix, made anew by each call."""
        return {"delta": self.mask.spread(self.values)}

    def pack(self) -> dict[str, SparseTensor]:
        """Name the active elements of D."""
        return {"delta": packed_values(self.values, self.shape, self.mask)}

    @classmethod
    def unpack(cls, target: Target, tensors: Mapping[str, SparseTensor]) -> Self:
        """Make the delta that `pack` gave this tensor for.

        Raises:
            InvalidAdapterError: It is no such delta.
        """
        if tensors.keys() != {"delta"} or len(tensors["delta"].shape) != 2:
            raise InvalidAdapterError(
                f"a sparse delta at {target.path} consists of {', '.join(sorted(tensors))}",
                hint="It must be one matrix, delta; the file is damaged or of a later version.",
            )
        values, mask = unpacked_values(tensors["delta"])
        if mask is None:
            mask = Mask.full(tensors["delta"].shape)
        return cls(values, mask)

    @classmethod
    def create(cls, start: Start) -> dict[str, Self]:
        """Make D zero where the mask is.

        Masks by seed take the same share of every layer. Those by gradient or by magnitude
        (of W) take the best elements of all layers together, so a layer can go empty.

        Raises:
            InvalidSettingsError: The gradients, or the base model's layers, are missing.
        """
        spec = start.spec
        if spec.mask == "seed":
            masks = {
                path: seeded(
                    shape,
                    spec.sparsity,
                    structure=spec.structure,
                    seed=start.seed,
                    name=f"{path}/sparse/delta",
                )
                for path, shape in start.layers.items()
            }
        else:
            score = start.gradient if spec.mask == "gradient" else start.needed_base().weight
            scores = {path: score(path) for path in start.layers}
            masks = choose(scores, spec.sparsity, structure=spec.structure, seed=start.seed)
        return {
            path: cls(torch.zeros(mask.num_active), mask)
            for path, mask in masks.items()
            if mask.num_active
        }

    def dense(self) -> Float[Tensor, "O I"]:
        """Return D."""
        return self.mask.spread(self.values.float())

    def trainable(self, scale: float, device: torch.device) -> "TrainableSparse":
        """Return the same under training, with the values divided by the scale."""
        return TrainableSparse(self, scale, device)

    @classmethod
    def combine(cls, parts: Sequence[tuple[Self, float]]) -> Self:
        """Return the sum of deltas of one layer, each times its factor, on all their elements.

        Raises:
            InvalidAdapterError: They are of different shapes.
        """
        shapes = sorted({delta.shape for delta, _ in parts})
        if len(shapes) > 1:
            raise InvalidAdapterError(
                f"adapters of layers with shapes {shapes[0]} and {shapes[1]} cannot be combined",
                hint="Combine adapters of one model.",
            )
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0]
        indices = torch.cat([delta.mask.indices for delta, _ in parts]).unique()
        values = torch.zeros(len(indices))
        for delta, factor in parts:
            places = torch.searchsorted(indices, delta.mask.indices)
            values[places] += delta.values.float() * factor
        return cls(values, Mask(shapes[0], indices))

    @classmethod
    def slots(cls, limits: BankLimits) -> "SparseSlots":
        """Return empty device memory for this kind."""
        return SparseSlots(limits)


class TrainableSparse:
    """x D^T, where the active elements of D are under training."""

    def __init__(self, delta: Sparse, scale: float, device: torch.device) -> None:
        self._scale = scale
        self._mask = delta.mask
        self._leaf = Leaf(delta.dense() / scale, delta.mask, device)
        self._place()

    def _place(self) -> None:
        """Lay out the mask for products."""
        with torch.inference_mode(mode=False):
            device = self._leaf.parameter.device
            self._pattern = Pattern.of(self._mask, device)
            self._transposed, self._order = Pattern.transposed(self._mask, device)

    def parameters(self) -> dict[str, Tensor]:
        """Name the active elements."""
        return {"delta": self._leaf.parameter}

    def factors(self) -> None:
        """Return None: D is no product of narrow matrices."""

    def product(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """Return x D^T times the scale."""
        wide, values = x.float(), self._leaf.parameter
        if is_sparse_enough(self._mask):
            added = sparse_product(wide, values, self._pattern, self._transposed, self._order)
        else:
            added = wide @ self._leaf.dense().T
        return (added * self._scale).to(x.dtype)

    def regrow(self, gradient: Float[Tensor, "O I"], how: Regrowth) -> dict[str, Tensor]:
        """Move the mask within the layer."""
        places = self._leaf.regrow(gradient, how)
        assert self._leaf.mask is not None
        self._mask = self._leaf.mask
        self._place()
        return {"delta": places}

    def snapshot(self) -> Sparse:
        """Return the value as it is now."""
        with torch.inference_mode(mode=False), torch.no_grad():
            return Sparse(self._leaf.parameter * self._scale, self._mask)


class SparseSlots:
    """The device memory of sparse deltas, a matrix for each slot and layer.

    Sparse rows, or the whole matrix where those would not pay (`lora/csr.py`). A slot takes
    up to what a low-rank adapter of the highest rank on all layers would.

    Args:
        limits: What the bank has room for.
    """

    def __init__(self, limits: BankLimits) -> None:
        self._limits = limits
        self._dtype = storage_dtype(limits.dtype, limits.device)
        self._matrices: dict[int, dict[str, Tensor]] = {}

    @property
    def size_bytes(self) -> int:
        """Memory that is allocated."""
        held = self._matrices.values()
        return sum(matrix_bytes(matrix) for matrices in held for matrix in matrices.values())

    def check(self, deltas: Mapping[str, Delta]) -> None:
        """Make sure that `write` can take the deltas.

        Raises:
            IncompatibleAdapterError: They are too large, or a value is for the dtype.
        """
        widths = sum(outputs + inputs for outputs, inputs in self._limits.linears.values())
        room = self._limits.max_rank * widths * self._dtype.itemsize
        needed = 0
        for path, delta in deltas.items():
            assert isinstance(delta, Sparse)
            needed += self._needed(delta)
            check_finite(path, [delta.values], self._dtype)
        if needed > room:
            raise IncompatibleAdapterError(
                f"the sparse adapter takes {needed} bytes, slots have room for {room}",
                hint="Make it sparser, or raise the highest rank in the engine's settings.",
            )

    def write(self, slot: int, deltas: Mapping[str, Delta]) -> None:
        """Replace what the slot holds by deltas that passed `check`; by nothing, if empty."""
        self._matrices.pop(slot, None)  # before its successor takes memory
        if deltas:
            # Matrices outlive the step, so they must not become tensors of its inference mode.
            with torch.inference_mode(mode=False), torch.no_grad():
                self._matrices[slot] = {path: self._matrix(delta) for path, delta in deltas.items()}

    def view(self, slots: Sequence[int]) -> "SparseView | None":
        """Return what each token's slot adds, or None if none of them adds anything."""
        if any(slot in self._matrices for slot in set(slots)):
            return SparseView(self, slots, self._limits.device)
        return None

    def matrices(self, slot: int) -> Mapping[str, Tensor]:
        """Return D of each layer that a slot changes."""
        return self._matrices.get(slot, {})

    def _needed(self, delta: Sparse) -> int:
        if not is_sparse_enough(delta.mask):
            return delta.mask.size * self._dtype.itemsize
        return delta.mask.num_active * (self._dtype.itemsize + 4) + 4 * (delta.shape[0] + 1)

    def _matrix(self, delta: Delta) -> Tensor:
        assert isinstance(delta, Sparse)
        values = delta.values.to(self._limits.device, self._dtype)
        if is_sparse_enough(delta.mask):
            return Pattern.of(delta.mask, self._limits.device).matrix(values)
        return delta.mask.spread(values)


class SparseView:
    """What the slots of one step add, slot by slot."""

    def __init__(self, bank: SparseSlots, slots: Sequence[int], device: torch.device) -> None:
        self._bank = bank
        self._slots = slots
        self._device = device

    @cached_property
    def _parts(self) -> list[tuple[Rows, Mapping[str, Tensor]]]:
        with torch.inference_mode(mode=False):
            return [
                (Rows.of(rows, len(self._slots), self._device), self._bank.matrices(slot))
                for slot, rows in by_slot(self._slots).items()
                if self._bank.matrices(slot)
            ]

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Return what to add to the output of the linear layer at `path` for input `x`."""
        parts = [(rows, held[path]) for rows, held in self._parts if path in held]
        if not parts:
            return None
        if parts[0][0].is_all:
            return _product(x, parts[0][1])
        added = nothing(x, parts[0][1].shape[0])
        for rows, matrix in parts:
            added = rows.put(added, _product(rows.take(x), matrix))
        return added

    def select(self, rows: Int[Tensor, " N"]) -> "SparseView | None":
        """Return the view of chosen rows of the step."""
        return self._bank.view([self._slots[row] for row in rows.tolist()])


DELTA = Sparse


def _product(x: Float[Tensor, "T I"], matrix: Float[Tensor, "O I"]) -> Float[Tensor, "T O"]:
    return (matrix @ x.to(matrix.dtype).T).T.to(x.dtype)
