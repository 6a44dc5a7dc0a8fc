"""A small core in the singular basis of W (LoRA-XS, arXiv:2405.17604).

The basis follows from the base model, so an adapter stores its core alone, under a name that
says which W the basis is of. On the host and in slots one basis serves all adapters that
are written in it. `Tiny` is the value on the host, `TinySlots` the device memory of all
slots, and `TinyView` what one step reads from it. Slots are used on the engine thread.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.lora.basis import Basis
from hyprstream.lora.delta import BankLimits, Delta, Start, Target
from hyprstream.lora.leaf import Leaf, Regrowth
from hyprstream.lora.mask import Mask, choose
from hyprstream.lora.ops import in_one_dtype, storage_dtype
from hyprstream.lora.packing import check_values, packed, unpacked
from hyprstream.lora.rows import Rows, by_slot, nothing
from hyprstream.vdb.tensors import SparseTensor


@dataclass(frozen=True, slots=True, eq=False)
class Tiny:
    """x V C U, added to the output of a linear layer for its input x.

    Attributes:
        core: C, (R, R), with the adapter's scale folded in.
        basis: V, (I, R), and U, (R, O); shared, not copied.
        mask: The active elements of C, outside of which it is zero; None if all are.
    """

    kind: ClassVar[str] = "tiny"

    # Without shape annotation: it comes from outside, so it is checked in production too.
    core: Tensor
    basis: Basis
    mask: Mask | None = None

    def __post_init__(self) -> None:
        """Copy the core, and reject one that does not belong to the basis.

        Raises:
            InvalidAdapterError: Shape, dtype or values are wrong, or not zero where the mask
                says so.
        """
        if tuple(self.core.shape) != (self.basis.rank, self.basis.rank):
            raise InvalidAdapterError(
                f"a core of shape {tuple(self.core.shape)} is for no basis of rank "
                f"{self.basis.rank}",
                hint="A core is square, as wide as its basis has vectors.",
            )
        check_values("a core", self.core)
        if self.mask is not None:
            self.mask.check(self.core, "the core")
        copied = self.core.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        object.__setattr__(self, "core", copied)

    @property
    def shape(self) -> tuple[int, int]:
        """Logical shape (O, I) of the layer."""
        return self.basis.shape

    @property
    def rank(self) -> int:
        """Width of the core."""
        return self.basis.rank

    @property
    def size_bytes(self) -> int:
        """Bytes on the host that are its own; the basis is shared."""
        return self.core.nbytes + (0 if self.mask is None else self.mask.indices.nbytes)

    def tensors(self) -> dict[str, Tensor]:
        """Name the core."""
        return {"core": self.core}

    def pack(self) -> dict[str, SparseTensor]:
        """Name the core, by what its basis is of."""
        return {f"core-{self.basis.digest}": packed(self.core, self.mask)}

    @classmethod
    def unpack(cls, target: Target, tensors: Mapping[str, SparseTensor]) -> Self:
        """Make the delta that `pack` gave this tensor for, in the basis of the target's W.

        Raises:
            InvalidAdapterError: It is no such delta, or the base model is not at hand.
            IncompatibleAdapterError: Its basis is of another W.
        """
        name, core, mask = _only_core(target.path, tensors)
        if target.base is None:
            raise InvalidAdapterError(
                f"the tiny adapter's core at {target.path} says nothing without the base model",
                hint="Hand in the base model's layers.",
            )
        basis = target.base.basis(target.path, core.shape[0])
        if name != f"core-{basis.digest}":
            raise IncompatibleAdapterError(
                f"the tiny adapter at {target.path} is for a weight {name.removeprefix('core-')}, "
                f"the model has {basis.digest}",
                hint="Use the adapter with the base model that it was trained on, in the same "
                "weight format.",
            )
        return cls(core, basis, mask)

    @classmethod
    def create(cls, start: Start) -> dict[str, Self]:
        """Make C zero.

        Masks by gradient keep where that of C, V^T G^T U^T for the gradient G of W, is
        largest. All others are by seed, for the core has no magnitudes yet.

        Raises:
            InvalidSettingsError: The base model's layers, or the gradients, are missing.
        """
        return {path: cls._fresh(start, path) for path in start.layers}

    @classmethod
    def _fresh(cls, start: Start, path: str) -> Self:
        spec, rank = start.spec, start.spec.rank_of(path)
        basis = start.needed_base().basis(path, rank)
        core = torch.zeros(rank, rank)
        if spec.sparsity == 0:
            return cls(core, basis)
        score = core
        if spec.mask == "gradient":
            score = basis.down.T @ start.gradient(path).T @ basis.up.T
        masks = choose({path: score}, spec.sparsity, structure=spec.structure, seed=start.seed)
        return cls(core, basis, masks[path])

    def dense(self) -> Float[Tensor, "O I"]:
        """Return U^T C^T V^T."""
        return (self.basis.down @ self.core.float() @ self.basis.up).T

    def trainable(self, scale: float, device: torch.device) -> "TrainableTiny":
        """Return the same under training, with the core divided by the scale."""
        return TrainableTiny(self, scale, device)

    @classmethod
    def combine(cls, parts: Sequence[tuple[Self, float]]) -> Self:
        """Return the sum of deltas of one layer, each times its factor, at the highest rank.

        Raises:
            InvalidAdapterError: Their bases are of different weights.
        """
        digests = sorted({delta.basis.digest for delta, _ in parts})
        if len(digests) > 1:
            raise InvalidAdapterError(
                f"tiny adapters for weights {digests[0]} and {digests[1]} cannot be combined",
                hint="Combine adapters of one model.",
            )
        if len(parts) == 1 and parts[0][1] == 1:
            return parts[0][0]
        basis = max((delta.basis for delta, _ in parts), key=lambda basis: basis.rank)
        core = torch.zeros(basis.rank, basis.rank)
        active = torch.zeros(basis.rank, basis.rank, dtype=torch.bool)
        for delta, factor in parts:
            # A basis of lower rank is the beginning of one of higher rank.
            corner = slice(delta.rank), slice(delta.rank)
            core[corner] += delta.core.float() * factor
            active[corner] |= True if delta.mask is None else delta.mask.dense()
        return cls(core, basis, None if active.all() else Mask.from_dense(active))

    @classmethod
    def slots(cls, limits: BankLimits) -> "TinySlots":
        """Return empty device memory for this kind."""
        return TinySlots(limits)


class TrainableTiny:
    """x V C U times the scale, where C is under training."""

    def __init__(self, delta: Tiny, scale: float, device: torch.device) -> None:
        self._scale = scale
        self._basis = delta.basis
        self._placed = PlacedBasis.of(delta.basis, torch.float32, device)
        self._core = Leaf(delta.core.float() / scale, delta.mask, device)

    def parameters(self) -> dict[str, Tensor]:
        """Name the core, or what is active of it."""
        return {"core": self._core.parameter}

    def product(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """Return x V C U times the scale."""
        return self._placed.product(x, [x.shape[0]], [self._core.dense()]) * self._scale

    def regrow(self, gradient: Float[Tensor, "O I"], how: Regrowth) -> dict[str, Tensor]:
        """Move the mask; the gradient of C is V^T G^T U^T, but for the scale."""
        if self._core.mask is None:
            return {}
        steep = self._placed.down @ gradient.float().T @ self._placed.up.T
        return {"core": self._core.regrow(steep, how)}

    def snapshot(self) -> Tiny:
        """Return the value as it is now, with the scale folded in."""
        with torch.inference_mode(mode=False), torch.no_grad():
            return Tiny(self._core.dense() * self._scale, self._basis, self._core.mask)


@dataclass(frozen=True, slots=True, eq=False)
class PlacedBasis:
    """A basis on a device.

    Attributes:
        basis: Where it came from.
        down: V^T, so that each vector lies in one piece.
        up: U.
    """

    basis: Basis
    down: Float[Tensor, "R I"]
    up: Float[Tensor, "R O"]

    @classmethod
    def of(cls, basis: Basis, dtype: torch.dtype, device: torch.device) -> Self:
        """Copy a basis to a device."""
        down = basis.down.T.contiguous().to(device, dtype)
        return cls(basis, down, basis.up.to(device, dtype))

    def product(
        self,
        x: Float[Tensor, "N I"],
        counts: Sequence[int],
        cores: Sequence[Float[Tensor, "R R"]],
    ) -> Float[Tensor, "N O"]:
        """Return x V C U for rows that are sorted by their core, in the dtype of `x`.

        Args:
            x: The rows.
            counts: How many rows each core has.
            cores: C of each.
        """
        dtype = x.dtype
        x, down, up, *cores = in_one_dtype(x, self.down, self.up, *cores)
        hidden = F.linear(x, down).split(list(counts))
        turned = [rows @ core for rows, core in zip(hidden, cores, strict=True)]
        return (torch.cat(turned) @ up).to(dtype)


@dataclass(frozen=True, slots=True, eq=False)
class PlacedCore:
    """What a slot adds at a layer."""

    placed: PlacedBasis
    core: Float[Tensor, "R R"]


class TinySlots:
    """The device memory of tiny adapters: a core for each slot and layer, and shared bases.

    Args:
        limits: What the bank has room for.
    """

    def __init__(self, limits: BankLimits) -> None:
        self._limits = limits
        self._dtype = storage_dtype(limits.dtype, limits.device)
        self._cores: dict[int, dict[str, PlacedCore]] = {}

    @property
    def size_bytes(self) -> int:
        """Memory that is allocated; a shared basis counts once."""
        held = [placed for cores in self._cores.values() for placed in cores.values()]
        bases = {id(core.placed): core.placed for core in held}.values()
        return sum(core.core.nbytes for core in held) + sum(
            placed.down.nbytes + placed.up.nbytes for placed in bases
        )

    def check(self, deltas: Mapping[str, Delta]) -> None:
        """Make sure that `write` can take the deltas.

        Raises:
            IncompatibleAdapterError: A rank is too high, or a value too large for the dtype.
        """
        for path, delta in deltas.items():
            if delta.rank > self._limits.max_rank:
                raise IncompatibleAdapterError(
                    f"the adapter has rank {delta.rank} at {path}, "
                    f"slots have room for {self._limits.max_rank}",
                    hint="Raise the highest rank in the engine's settings.",
                )
            for tensor in delta.tensors().values():
                if not torch.isfinite(tensor.to(self._dtype)).all():
                    name = str(self._dtype).removeprefix("torch.")
                    raise IncompatibleAdapterError(
                        f"the adapter's values at {path} are too large for {name}",
                        hint="Load the model with dtype bfloat16 or float32.",
                    )

    def write(self, slot: int, deltas: Mapping[str, Delta]) -> None:
        """Replace what the slot holds by deltas that passed `check`; by nothing, if empty."""
        self._cores.pop(slot, None)
        if deltas:
            # Cores outlive the step, so they must not become tensors of its inference mode.
            with torch.inference_mode(mode=False), torch.no_grad():
                self._cores[slot] = {
                    path: self._placed(path, delta) for path, delta in deltas.items()
                }

    def view(self, slots: Sequence[int]) -> "TinyView | None":
        """Return what each token's slot adds, or None if none of them adds anything."""
        if any(slot in self._cores for slot in set(slots)):
            return TinyView(self, slots, self._limits.device)
        return None

    def core(self, slot: int, path: str) -> PlacedCore | None:
        """Return what a slot adds at a layer."""
        return self._cores.get(slot, {}).get(path)

    def _placed(self, path: str, delta: Delta) -> PlacedCore:
        assert isinstance(delta, Tiny)
        core = delta.core.to(self._limits.device, self._dtype)
        for cores in self._cores.values():
            held = cores.get(path)
            if held is not None and _is_same(held.placed.basis, delta.basis):
                return PlacedCore(held.placed, core)
        return PlacedCore(PlacedBasis.of(delta.basis, self._dtype, self._limits.device), core)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of a batch that share a basis at a layer, sorted by slot."""

    rows: Rows
    placed: PlacedBasis
    counts: list[int]
    cores: list[Float[Tensor, "R R"]]

    def product(self, x: Float[Tensor, "N I"]) -> Float[Tensor, "N O"]:
        """Return what is added to them."""
        return self.placed.product(x, self.counts, self.cores)


class TinyView:
    """What the slots of one step add; the rows of each layer are sorted once."""

    def __init__(self, bank: TinySlots, slots: Sequence[int], device: torch.device) -> None:
        self._bank = bank
        self._slots = slots
        self._device = device
        self._rows = by_slot(slots)
        self._parts: dict[str, list[Part]] = {}

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Return what to add to the output of the linear layer at `path` for input `x`."""
        if path not in self._parts:
            with torch.inference_mode(mode=False):
                self._parts[path] = self._sorted(path)
        parts = self._parts[path]
        if not parts:
            return None
        if parts[0].rows.is_all:
            return parts[0].product(x)
        added = nothing(x, parts[0].placed.up.shape[1])
        for part in parts:
            added = part.rows.put(added, part.product(part.rows.take(x)))
        return added

    def select(self, rows: Int[Tensor, " N"]) -> "TinyView | None":
        """Return the view of chosen rows of the step."""
        return self._bank.view([self._slots[row] for row in rows.tolist()])

    def _sorted(self, path: str) -> list[Part]:
        sharing: dict[int, list[tuple[list[int], PlacedCore]]] = {}
        for slot, rows in self._rows.items():
            held = self._bank.core(slot, path)
            if held is not None:
                sharing.setdefault(id(held.placed), []).append((rows, held))
        return [
            Part(
                rows=Rows.of(
                    [row for rows, _ in members for row in rows], len(self._slots), self._device
                ),
                placed=members[0][1].placed,
                counts=[len(rows) for rows, _ in members],
                cores=[held.core for _, held in members],
            )
            for members in sharing.values()
        ]


DELTA = Tiny


def _only_core(path: str, tensors: Mapping[str, SparseTensor]) -> tuple[str, Tensor, Mask | None]:
    """Return the one tensor, which has to be square."""
    if len(tensors) == 1:
        ((name, tensor),) = tensors.items()
        if name.startswith("core-") and len(tensor.shape) == 2 and len(set(tensor.shape)) == 1:
            return name, *unpacked(tensor)
    raise InvalidAdapterError(
        f"a tiny delta at {path} consists of {', '.join(sorted(tensors))}",
        hint="It must be one square core; the file is damaged or of a later version.",
    )


def _is_same(first: Basis, second: Basis) -> bool:
    return first is second or (
        first.shape == second.shape
        and first.rank == second.rank
        and torch.equal(first.down, second.down)
        and torch.equal(first.up, second.up)
    )
