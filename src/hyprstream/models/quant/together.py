"""Products with up to three weights in one call of the native kernels.

Where these are not for the weights or the rows the answer is None, and the caller computes in
torch, which is the reference.
"""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.kernels.native import KINDS, DenseMatrix, Instructions, Kernels, PackedMatrix
from hyprstream.models.native import kernels, kind_of
from hyprstream.models.quant import products

_MAX_WEIGHTS = 3
# Up to so many rows products with dense weights were faster than torch's (docs/decisions/0010).
_MANY_ROWS = 64
_MANY_ROWS_AVX2 = 8
# Where torch has instructions for bfloat16 only so many, where reading the weights is what
# takes the time: nothing was measured on such processors.
_FEW_ROWS = 4


class NativeWeight:
    """A weight that the kernels may multiply with.

    Attributes:
        matrix: What they know of it.
        address: Where they find that; None where they cannot read the weight.
    """

    def __init__(self, matrix: PackedMatrix | DenseMatrix, data: int | None) -> None:
        """Describe a weight.

        Args:
            matrix: Its description; the weight's memory lives as long as this object.
            data: Where its memory begins; None if the kernels cannot read it.
        """
        self.matrix = matrix
        self.address = None if data is None else ctypes.addressof(matrix)


def multiply_all(
    weights: Sequence[object], x: Float[Tensor, "T I"]
) -> list[Float[Tensor, "T _"]] | None:
    """Return x W^T for up to three weights; None where that is not for the kernels.

    A row's results do not depend on the other rows, on the number of threads nor on what the
    weights are multiplied together with.

    Args:
        weights: For the kernels if all are packed, or all dense.
        x: Rows in bfloat16.
    """
    native = kernels()
    if native is None or x.dtype != torch.bfloat16 or kind_of(x) is None:
        return None
    matrices: list[NativeWeight] = []
    for weight in weights:
        if not isinstance(weight, NativeWeight) or weight.address is None:
            return None
        matrices.append(weight)
    kinds = {type(weight.matrix) for weight in matrices}
    if len(kinds) > 1:
        return None
    if DenseMatrix not in kinds:
        return _products(native, native.packed_products, matrices, x)
    if not 0 < x.shape[0] <= _max_dense_rows():
        return None
    return _products(native, native.dense_products, matrices, x)


def _products(
    native: Kernels,
    multiply: Callable[..., None],
    weights: Sequence[NativeWeight],
    x: Float[Tensor, "T I"],
) -> list[Float[Tensor, "T _"]]:
    x = x.contiguous()
    results: list[Tensor] = []
    ends: list[int | None] = []
    for weight in weights:
        y = x.new_empty(x.shape[0], weight.matrix.outputs)
        results.append(y)
        ends += [weight.address, y.data_ptr()]
    ends += [None] * (2 * _MAX_WEIGHTS - len(ends))
    threads, kind = torch.get_num_threads(), KINDS["bfloat16"]
    multiply(kind, x.data_ptr(), x.shape[0], threads, native.instructions, *ends)
    return results


@cache
def _max_dense_rows() -> int:
    """Return up to how many rows the kernel is faster than torch."""
    native = kernels()
    if native is None or native.instructions == Instructions.PLAIN:
        return 0
    if products.bfloat16_is_fast():
        return _FEW_ROWS
    return _MANY_ROWS if native.instructions == Instructions.AVX512 else _MANY_ROWS_AVX2
