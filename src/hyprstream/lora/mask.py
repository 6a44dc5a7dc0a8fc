"""Which elements of a tensor may differ from zero, and how they are chosen.

A mask is unstructured, or made of whole leaves: runs of 512 consecutive elements in flat
order, which is what one leaf of a stored grid holds. Choices are pure functions of scores,
a seed and a name; where scores are equal, the seed decides, so they are the same on every
machine. Runs on any thread.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from hyprstream.errors import InvalidAdapterError
from hyprstream.lora.seeds import words
from hyprstream.lora.spec import Structure

LEAF_ELEMENTS = 512
"""Elements of a leaf, in flat order."""


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """The active elements of a tensor; all others are zero.

    Attributes:
        shape: Dimensions of the tensor.
        indices: Flat index of each active element, (N,) int64, ascending, on the host.
    """

    shape: tuple[int, ...]
    # Without shape annotation: it comes from outside, so it is checked in production too.
    indices: Tensor

    def __post_init__(self) -> None:
        """Reject indices that repeat, fall, or lie outside.

        Raises:
            InvalidAdapterError: They do.
        """
        indices = self.indices
        if indices.dtype != torch.int64 or indices.ndim != 1 or min(self.shape, default=1) < 0:
            raise _invalid(f"{tuple(indices.shape)} indices of {indices.dtype} for {self.shape}")
        object.__setattr__(self, "indices", indices.detach().to("cpu", copy=True))
        if indices.numel() and (
            int(indices[0]) < 0
            or int(indices[-1]) >= self.size
            or not bool((indices[1:] > indices[:-1]).all())
        ):
            raise _invalid("its indices repeat, fall, or lie outside the shape")

    @property
    def size(self) -> int:
        """Number of elements, active or not."""
        return prod(self.shape)

    @property
    def num_active(self) -> int:
        """Number of active elements."""
        return self.indices.shape[0]

    @property
    def sparsity(self) -> float:
        """Share of elements that are not active."""
        return 1 - self.num_active / self.size if self.size else 0.0

    @classmethod
    def full(cls, shape: tuple[int, ...]) -> Self:
        """Take every element."""
        return cls(shape, torch.arange(prod(shape)))

    @classmethod
    def from_dense(cls, active: Bool[Tensor, "..."]) -> Self:
        """Take the elements where `active` is true."""
        return cls(tuple(active.shape), active.flatten().nonzero().flatten())

    def dense(self) -> Bool[Tensor, "..."]:
        """Return for each element whether it is active."""
        flat = torch.zeros(self.size, dtype=torch.bool)
        flat[self.indices] = True
        return flat.view(self.shape)

    def active(self, tensor: Tensor) -> Tensor:
        """Return the active elements of a tensor of this shape, in flat order."""
        return tensor.reshape(-1)[self.indices.to(tensor.device)]

    def spread(self, values: Tensor) -> Tensor:
        """Return the tensor whose active elements are `values`, differentiable in them."""
        flat = values.new_zeros(self.size)
        return flat.index_copy(0, self.indices.to(values.device), values).view(self.shape)

    def check(self, tensor: Tensor, name: str) -> None:
        """Make sure that a tensor is zero outside of the mask.

        Raises:
            InvalidAdapterError: It is not, or it has another shape.
        """
        if tuple(tensor.shape) != self.shape:
            raise _invalid(f"it has shape {self.shape}, {name} has {tuple(tensor.shape)}")
        if torch.count_nonzero(tensor) != torch.count_nonzero(self.active(tensor)):
            raise _invalid(f"{name} holds values outside of it")


def seeded(
    shape: tuple[int, ...], sparsity: float, *, structure: Structure, seed: int, name: str
) -> Mask:
    """Choose by seed alone: the positions whose numbers in stream `name` are smallest."""
    same = {name: torch.zeros(shape)}
    return choose(same, sparsity, structure=structure, seed=seed)[name]


def choose(
    scores: Mapping[str, Float[Tensor, "..."]],
    sparsity: float,
    *,
    structure: Structure = "unstructured",
    seed: int = 0,
) -> dict[str, Mask]:
    """Choose the elements, or leaves, with the highest absolute scores of all tensors together.

    Args:
        scores: Of each element of each tensor, by name; a leaf's is the sum of its elements'.
        sparsity: Share of elements (leaves) that are left out, of all tensors together. At
            least one stays.
        structure: Whether whole leaves are chosen.
        seed: Decides between equal scores.

    Raises:
        InvalidAdapterError: A score is not finite.
    """
    units = {name: _of_units(tensor, structure) for name, tensor in scores.items()}
    num_units = sum(unit.shape[0] for unit in units.values())
    chosen = _best(units, max(1, int(num_units * (1 - sparsity) + 0.5)), seed)
    return {
        name: _mask(tuple(scores[name].shape), numbers, structure)
        for name, numbers in chosen.items()
    }


def drop_and_grow(
    mask: Mask,
    weights: Float[Tensor, "..."],
    gradient: Float[Tensor, "..."],
    *,
    fraction: float,
    structure: Structure = "unstructured",
    seed: int = 0,
) -> Mask:
    """Move part of a mask to where the gradient is largest (RigL, arXiv:1911.11134).

    Args:
        mask: What is active now.
        weights: The tensor; zero outside of the mask.
        gradient: Of the loss, for every element whether active or not.
        fraction: Share of the active elements, or leaves, to give up: those of the smallest
            absolute values.
        structure: Whether whole leaves move; the mask has to be made of such.
        seed: Decides between equal values.

    Returns:
        A mask of as many elements or leaves. What is new in it starts at zero, and what was
        dropped can be among what is grown.

    Raises:
        InvalidAdapterError: A value is not finite.
    """
    old = _units_of(mask, structure)
    values = _of_units(weights, structure)[old]
    num_kept = old.numel() - int(fraction * old.numel())
    best = _best({"weights": values}, num_kept, seed)["weights"] if num_kept else old[:0]
    kept = old[best]
    growth = _of_units(gradient, structure)
    free = torch.ones(growth.shape[0], dtype=torch.bool)
    free[kept] = False
    places = free.nonzero().flatten()
    num_grown = old.numel() - num_kept
    grown = places[_best({"gradient": growth[places]}, num_grown, seed)["gradient"]]
    return _mask(mask.shape, torch.cat([kept, grown]).sort().values, structure)


def _of_units(scores: Tensor, structure: Structure) -> Tensor:
    flat = scores.detach().to("cpu", torch.float32).reshape(-1).abs()
    if not torch.isfinite(flat).all():
        raise _invalid("it is chosen by scores that are no finite numbers")
    if structure == "unstructured":
        return flat
    padding = -flat.shape[0] % LEAF_ELEMENTS
    return torch.nn.functional.pad(flat, (0, padding)).view(-1, LEAF_ELEMENTS).sum(1)


def _units_of(mask: Mask, structure: Structure) -> Tensor:
    return mask.indices if structure == "unstructured" else (mask.indices // LEAF_ELEMENTS).unique()


def _mask(shape: tuple[int, ...], units: Tensor, structure: Structure) -> Mask:
    if structure == "leaf":
        units = (units[:, None] * LEAF_ELEMENTS + torch.arange(LEAF_ELEMENTS)).flatten()
        units = units[units < prod(shape)]  # the last leaf may be cut short
    return Mask(shape, units)


def _best(units: Mapping[str, Tensor], num_chosen: int, seed: int) -> dict[str, Tensor]:
    """Return for each tensor the numbers, ascending, of its units among the best of all."""
    if num_chosen == 0:
        return {name: torch.zeros(0, dtype=torch.int64) for name in units}
    every = torch.cat(list(units.values()))
    last = every.kthvalue(every.shape[0] - num_chosen + 1).values
    tied = {name: (unit == last).nonzero().flatten().numpy() for name, unit in units.items()}
    num_left = num_chosen - int((every > last).sum())
    taken = _by_seed(tied, num_left, seed)
    return {
        name: torch.cat([(unit > last).nonzero().flatten(), torch.from_numpy(taken[name])])
        .sort()
        .values
        for name, unit in units.items()
    }


def _by_seed(
    places: Mapping[str, NDArray[np.int64]], num_chosen: int, seed: int
) -> dict[str, NDArray[np.int64]]:
    """Return the places whose numbers are smallest."""
    keys = {name: words(seed, name, place) for name, place in places.items()}
    limit = np.partition(np.concatenate(list(keys.values())), num_chosen - 1)[num_chosen - 1]
    return {name: place[keys[name] <= limit] for name, place in places.items()}


def _invalid(problem: str) -> InvalidAdapterError:
    return InvalidAdapterError(
        f"a mask does not fit: {problem}",
        hint="Make masks with hyprstream.lora.mask, from tensors of the adapter's shapes.",
    )
