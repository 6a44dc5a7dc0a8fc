"""What an adapter does to each layer, in numbers, from its stored tensors. NumPy only.

The norm of what is added to W is that of A B for a pair, that of the elements for a sparse
delta, and that of the core for a tiny one, whose bases are orthonormal.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import InvalidAdapterError
from hyprstream.lora.parts import Parts, by_path, check_size
from hyprstream.vdb.grid import widened
from hyprstream.vdb.tensors import SparseTensor

Reals = NDArray[np.float64]
Tensors = Mapping[str, SparseTensor]

_PAIR = {"a", "b"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleSummary:
    """What an adapter does to one layer.

    Attributes:
        path: The layer.
        kind: In which way it is changed.
        rank: Rank of the change; 0 for a kind that has none.
        num_active: Elements that may differ from zero.
        num_elements: Elements in all.
        norm: Frobenius norm of what is added to W.
    """

    path: str
    kind: str
    rank: int
    num_active: int
    num_elements: int
    norm: float

    @property
    def density(self) -> float:
        """Share of the elements that may differ from zero."""
        return self.num_active / self.num_elements if self.num_elements else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleChange:
    """How what is added to one layer differs between two adapters.

    Attributes:
        path: The layer.
        before: Norm of what the first one adds; 0 if it leaves the layer alone.
        after: Likewise of the second one.
        change: Norm of the difference; None if they change the layer in ways that cannot be
            compared without the base model.
    """

    path: str
    before: float
    after: float
    change: float | None

    @property
    def relative(self) -> float | None:
        """The change as a share of what was before; None if that is nothing, or not known."""
        if not self.change:
            return self.change
        return self.change / self.before if self.before else None


def summarise(tensors: Tensors) -> list[ModuleSummary]:
    """Describe each layer that an adapter changes, in the order of its tensors.

    Raises:
        InvalidAdapterError: The tensors are no adapter.
    """
    return [
        ModuleSummary(
            path=path,
            kind=kind,
            rank=_rank(path, kind, parts),
            num_active=sum(tensor.num_active for tensor in parts.values()),
            num_elements=sum(tensor.size for tensor in parts.values()),
            norm=_norm(path, kind, parts),
        )
        for path, (kind, parts) in by_path(tensors).items()
    ]


def compare(before: Tensors, after: Tensors) -> list[ModuleChange]:
    """Compare what two adapters add to each layer.

    Raises:
        InvalidAdapterError: The tensors are no adapters.
    """
    first, second = by_path(before), by_path(after)
    return [_compared(path, first, second) for path in dict.fromkeys([*first, *second])]


def _compared(path: str, first: Parts, second: Parts) -> ModuleChange:
    norms = [_norm(path, *parts[path]) if path in parts else 0.0 for parts in (first, second)]
    if path not in first or path not in second:
        change: float | None = max(norms)
    else:
        change = _difference(path, first[path], second[path])
    return ModuleChange(path=path, before=norms[0], after=norms[1], change=change)


def _difference(path: str, first: tuple[str, Tensors], second: tuple[str, Tensors]) -> float | None:
    if first[0] != second[0]:
        return None
    one, other = first[1], second[1]
    if first[0] == "low_rank":
        a1, b1 = _factors(path, one)
        a2, b2 = _factors(path, other)
        if len(a1) != len(a2) or b1.shape[1] != b2.shape[1]:
            return None
        if np.array_equal(a1, a2) and np.array_equal(b1, b2):
            return 0.0  # which rounding would hide
        return _product_norm(np.concatenate([a1, a2], 1), np.concatenate([b1, -b2]))
    if {n: t.shape for n, t in one.items()} != {n: t.shape for n, t in other.items()}:
        return None
    return math.hypot(*(_tensor_difference(one[name], other[name]) for name in one))


def _tensor_difference(one: SparseTensor, other: SparseTensor) -> float:
    indices = np.concatenate([_indices(one), _indices(other)])
    values = np.concatenate([_values(one), -_values(other)])
    places, at = np.unique(indices, return_inverse=True)
    return float(np.linalg.norm(np.bincount(at, values, len(places))))


def _norm(path: str, kind: str, parts: Tensors) -> float:
    if kind == "low_rank":
        return _product_norm(*_factors(path, parts))
    return math.hypot(*(float(np.linalg.norm(_values(tensor))) for tensor in parts.values()))


def _rank(path: str, kind: str, parts: Tensors) -> int:
    if kind == "low_rank":
        return int(_factors(path, parts)[0].shape[1])
    if kind == "tiny":
        return max(max(tensor.shape, default=0) for tensor in parts.values())
    return 0


def _factors(path: str, parts: Tensors) -> tuple[Reals, Reals]:
    """Return A and B, (I, R) and (R, O)."""
    shapes = {name: tensor.shape for name, tensor in parts.items()}
    if (
        shapes.keys() != _PAIR
        or any(len(shape) != 2 for shape in shapes.values())
        or shapes["a"][1] != shapes["b"][0]
    ):
        raise InvalidAdapterError(
            f"the low-rank adapter at {path} consists of {shapes}",
            hint="It must be a pair of matrices; the file is damaged or of a later version.",
        )
    a, b = (_dense(parts[name]) for name in ("a", "b"))
    return a, b


def _product_norm(a: Reals, b: Reals) -> float:
    """Return the norm of a b without making the product, which may be large."""
    return math.sqrt(max(0.0, float(np.sum((a.T @ a) * (b @ b.T)))))


def _dense(tensor: SparseTensor) -> Reals:
    check_size(tensor)
    whole = tensor.to_dense()
    return widened(whole, tensor.dtype).astype(np.float64)


def _values(tensor: SparseTensor) -> Reals:
    return widened(tensor.values, tensor.dtype).astype(np.float64)


def _indices(tensor: SparseTensor) -> NDArray[np.int64]:
    return np.arange(tensor.size) if tensor.indices is None else tensor.indices
