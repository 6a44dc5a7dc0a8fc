"""Products with up to three weights in one call of the native kernels.

Where these are not for the weights or the rows the answer is None, and the caller computes in
torch, which is the reference.
"""

import ctypes
from array import array
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.kernels.native import KINDS, DenseMatrix, Instructions, PackedMatrix
from hyprstream.models.native import kernels, kind_of
from hyprstream.models.quant import products

_MAX_WEIGHTS = 3
# Up to so many rows products with dense weights were faster than torch's (docs/decisions/0010).
_MANY_ROWS = 64
# The same where AVX512_BF16 makes torch's faster.
_SOME_ROWS = 16
# With AMX only so many, where reading the weights is what takes the time: nothing was measured.
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
    native, first = kernels(), weights[0]
    if native is None or x.dtype != torch.bfloat16 or kind_of(x) is None:
        return None
    if not isinstance(first, NativeWeight):
        return None
    is_dense = isinstance(first.matrix, DenseMatrix)
    if is_dense and not 0 < x.shape[0] <= max_dense_rows():
        return None
    x = x.contiguous()
    results: list[Tensor] = []
    ends: list[int | None] = []
    for weight in weights:
        if not isinstance(weight, type(first)) or weight.address is None:
            return None
        y = x.new_empty(x.shape[0], weight.matrix.outputs)
        results.append(y)
        ends += [weight.address, y.data_ptr()]
    ends += [None] * (2 * _MAX_WEIGHTS - len(ends))
    multiply = native.dense_products if is_dense else native.packed_products
    how = torch.get_num_threads(), native.instructions
    multiply(KINDS["bfloat16"], x.data_ptr(), x.shape[0], *how, *ends)
    return results


def peaks(weight: object, x: Float[Tensor, "T I"]) -> list[tuple[float, int]] | None:
    """Return the largest number of each row of x W^T and its first place.

    The others are never written: beside a large vocabulary that is memory spared. None where
    the weight is not packed, or `multiply_all` would return it.

    Args:
        weight: For the kernels if it is packed.
        x: Rows in bfloat16.
    """
    native = kernels()
    if native is None or x.dtype != torch.bfloat16 or kind_of(x) is None:
        return None
    if not isinstance(weight, NativeWeight) or not isinstance(weight.matrix, PackedMatrix):
        return None
    if weight.address is None:
        return None
    x = x.contiguous()
    num_rows = x.shape[0]
    values, places = array("f", bytes(4 * num_rows)), array("q", bytes(8 * num_rows))
    native.packed_peaks(
        KINDS["bfloat16"],
        x.data_ptr(),
        num_rows,
        torch.get_num_threads(),
        native.instructions,
        weight.address,
        values.buffer_info()[0],
        places.buffer_info()[0],
    )
    return list(zip(values, places, strict=True))


@cache
def max_dense_rows() -> int:
    """Return up to how many rows the kernel is faster than torch."""
    native = kernels()
    if native is None or native.instructions == Instructions.PLAIN:
        return 0
    if not products.bfloat16_is_fast():
        return _MANY_ROWS
    return _FEW_ROWS if products.has_amx() else _SOME_ROWS
