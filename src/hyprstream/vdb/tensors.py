"""A tensor of which only some elements are active: what a grid holds and what a codec codes.

An adapter is a mapping from names to such tensors. Names are `PATH/KIND/TENSOR`, for example
`layers.0.self_attn.q_proj/low_rank/a`. Plain arrays, no torch and no files.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import InvalidAdapterError

DType = Literal["float32", "float16", "bfloat16"]

ARRAY_DTYPES: dict[DType, type[np.generic]] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": np.uint16,
}
"""How values lie in an array; bfloat16, which NumPy does not have, as its bits."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SparseTensor:
    """A tensor whose inactive elements are exactly zero; active ones may be zero, too.

    Attributes:
        shape: Its dimensions.
        dtype: What its values are.
        values: The active elements, (N,), in the order of their indices.
        indices: Row-major flat index of each, (N,) int64, ascending and each once; None if
            every element is active.
    """

    shape: tuple[int, ...]
    dtype: DType
    values: NDArray[Any]
    indices: NDArray[np.int64] | None

    def __post_init__(self) -> None:
        """Reject parts that contradict one another.

        Raises:
            InvalidAdapterError: They do.
        """
        if self.dtype not in ARRAY_DTYPES or self.values.dtype != ARRAY_DTYPES[self.dtype]:
            raise _contradiction(f"values are {self.values.dtype}, said to be {self.dtype}")
        if min(self.shape, default=1) < 0:
            raise _contradiction(f"the shape is {self.shape}")
        if self.indices is None:
            if self.values.shape != (self.size,):
                raise _contradiction(f"{self.values.shape} values fill no shape {self.shape}")
            return
        if self.indices.dtype != np.int64 or self.indices.shape != self.values.shape:
            raise _contradiction("there is not one int64 index for each value")
        if self.indices.ndim != 1:
            raise _contradiction("the indices are no list")
        if self.indices.size and (
            self.indices[0] < 0
            or self.indices[-1] >= self.size
            or not (self.indices[1:] > self.indices[:-1]).all()
        ):
            raise _contradiction("indices repeat, fall, or lie outside the shape")

    @property
    def size(self) -> int:
        """Number of elements, active or not."""
        return prod(self.shape)

    @property
    def num_active(self) -> int:
        """Number of active elements."""
        return len(self.values)

    @property
    def density(self) -> float:
        """Share of elements that are active; 1 for a tensor without elements."""
        return self.num_active / self.size if self.size else 1.0

    def to_dense(self) -> NDArray[Any]:
        """Return the whole tensor, in the array dtype of its values."""
        if self.indices is None:
            return self.values.reshape(self.shape)
        dense = np.zeros(self.size, self.values.dtype)
        dense[self.indices] = self.values
        return dense.reshape(self.shape)

    @classmethod
    def from_dense(
        cls, array: NDArray[Any], dtype: DType, mask: NDArray[np.bool_] | None = None
    ) -> Self:
        """Take the elements where `mask` is true, or all of them.

        Raises:
            InvalidAdapterError: The array holds something else than `dtype`, or the mask has
                another shape.
        """
        if mask is None:
            return cls(shape=array.shape, dtype=dtype, values=array.reshape(-1), indices=None)
        if mask.shape != array.shape:
            raise _contradiction(f"a mask of {mask.shape} is for no shape {array.shape}")
        indices = np.flatnonzero(mask).astype(np.int64)
        return cls(
            shape=array.shape, dtype=dtype, values=array.reshape(-1)[indices], indices=indices
        )


def _contradiction(problem: str) -> InvalidAdapterError:
    return InvalidAdapterError(
        f"a sparse tensor contradicts itself: {problem}",
        hint="Make it with SparseTensor.from_dense.",
    )
