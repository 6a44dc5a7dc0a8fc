"""An adapter as integers and scales: exactly what a stream of the learned code holds.

Its tensors are integers times scales, element by element in float32, so that they have the
same bits wherever they are made; no matrix product takes part.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import InvalidAdapterError
from hyprstream.vdb.entropy.groups import MAX_MAGNITUDE
from hyprstream.vdb.learned.scales import scales
from hyprstream.vdb.tensors import SparseTensor

Integers = NDArray[np.int32]
Codes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mask:
    """Which elements of a tensor are active.

    Attributes:
        indices: Their row-major flat indices, ascending, (N,) int64.
        seed: The seed from which `entropy.masks.seeded_indices` draws them; None if none does.
    """

    indices: Codes
    seed: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """A low-rank pair: a = p^T scale, (I, R), and b = scale q, (R, O), zero beyond rank K.

    Attributes:
        rank: R.
        codes: Code of the scale that both sides of a component share, (K,).
        p: Integers of a, (K, I); 0 outside of its mask.
        q: Integers of b, (K, O); 0 outside of its mask.
        p_mask: Active elements of a, in the order of a; None if all are.
        q_mask: Active elements of b.
    """

    rank: int
    codes: Codes
    p: Integers
    q: Integers
    p_mask: Mask | None = None
    q_mask: Mask | None = None

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            InvalidAdapterError: They do not.
        """
        if not len(self.codes) == len(self.p) == len(self.q) <= self.rank:
            raise _contradiction(f"{len(self.codes)} scales, {len(self.p)} and {len(self.q)} rows")
        _check_integers(self.p)
        _check_integers(self.q)

    def tensors(self, name: str) -> dict[str, SparseTensor]:
        """Return a and b as NAME/a and NAME/b."""
        factors = scales(self.codes)
        a = np.zeros((self.p.shape[1], self.rank), np.float32)
        b = np.zeros((self.rank, self.q.shape[1]), np.float32)
        np.multiply(self.p.T.astype(np.float32), factors, out=a[:, : len(factors)])
        np.multiply(self.q.astype(np.float32), factors[:, None], out=b[: len(factors)])
        return {f"{name}/a": _tensor(a, self.p_mask), f"{name}/b": _tensor(b, self.q_mask)}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Single:
    """A tensor by itself: its active values are integers times one scale.

    Attributes:
        shape: Its dimensions.
        code: Code of the scale.
        values: Integers of the active elements, in their order, (N,).
        mask: The active elements; None if all are.
    """

    shape: tuple[int, ...]
    code: int
    values: Integers
    mask: Mask | None = None

    def __post_init__(self) -> None:
        """Check that the parts belong together.

        Raises:
            InvalidAdapterError: They do not.
        """
        size = prod(self.shape) if self.mask is None else len(self.mask.indices)
        if self.values.shape != (size,):
            raise _contradiction(f"{self.values.shape} values for {size} elements")
        _check_integers(self.values)

    def tensors(self, name: str) -> dict[str, SparseTensor]:
        """Return the tensor as NAME."""
        values = self.values.astype(np.float32) * scales(np.array([self.code]))
        indices = None if self.mask is None else self.mask.indices
        tensor = SparseTensor(shape=self.shape, dtype="float32", values=values, indices=indices)
        return {name: tensor}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantised:
    """An adapter as integers and scales.

    Attributes:
        parts: By name; that of a pair is what its two tensors' names have in common.
        step_code: Code of the step, in units of what the adapter adds to a layer's matrix.
        depth: How many updates lie between it and its key frame.
        identity: Hash of the stream that holds it; empty for one that none does.
    """

    parts: Mapping[str, Pair | Single]
    step_code: int
    depth: int = 0
    identity: bytes = field(default=b"")

    def tensors(self) -> dict[str, SparseTensor]:
        """Return the adapter as tensors of float32."""
        found: dict[str, SparseTensor] = {}
        for name, part in self.parts.items():
            found.update(part.tensors(name))
        return found


def _tensor(dense: NDArray[np.float32], mask: Mask | None) -> SparseTensor:
    flat = dense.reshape(-1)
    indices = None if mask is None else mask.indices
    values = flat if indices is None else flat[indices]
    return SparseTensor(shape=dense.shape, dtype="float32", values=values, indices=indices)


def _check_integers(values: Integers) -> None:
    if values.dtype != np.int32 or (
        values.size and max(int(values.max()), -int(values.min())) > MAX_MAGNITUDE
    ):
        raise _contradiction(f"an integer is above {MAX_MAGNITUDE}")


def _contradiction(problem: str) -> InvalidAdapterError:
    return InvalidAdapterError(
        f"the adapter cannot be coded: {problem}",
        hint="Choose a larger step, or make it with `quantise`.",
    )
