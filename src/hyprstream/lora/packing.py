"""Tensors of an adapter to sparse arrays and back, bit by bit."""

import numpy as np
import torch
from torch import Tensor

from hyprstream.errors import InvalidAdapterError
from hyprstream.lora.mask import Mask
from hyprstream.lora.parts import check_size
from hyprstream.vdb.tensors import DType, SparseTensor

_NAMES: dict[torch.dtype, DType] = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}

DTYPES = tuple(_NAMES)
"""What values of an adapter may be."""


def packed(tensor: Tensor, mask: Mask | None) -> SparseTensor:
    """Return the active elements of a tensor in row-major order."""
    flat = tensor.reshape(-1) if mask is None else mask.active(tensor)
    return packed_values(flat, tuple(tensor.shape), mask)


def packed_values(values: Tensor, shape: tuple[int, ...], mask: Mask | None) -> SparseTensor:
    """Return elements as they lie, all of a shape or those of a mask."""
    name = _NAMES[values.dtype]
    plain = values.detach().contiguous()
    is_bits = name == "bfloat16"
    array = plain.view(torch.int16).numpy().view(np.uint16) if is_bits else plain.numpy()
    return SparseTensor(
        shape=shape,
        dtype=name,
        values=array.copy(),
        indices=None if mask is None else mask.indices.numpy().copy(),
    )


def unpacked(tensor: SparseTensor) -> tuple[Tensor, Mask | None]:
    """Return the whole tensor, and its mask unless every element is active.

    Raises:
        InvalidAdapterError: It would be larger than any adapter's.
    """
    check_size(tensor)
    values, mask = unpacked_values(tensor)
    return (values.view(tensor.shape) if mask is None else mask.spread(values)), mask


def unpacked_values(tensor: SparseTensor) -> tuple[Tensor, Mask | None]:
    """Return the active elements as they lie, and their mask unless they are all there are."""
    array = tensor.values.copy()
    if tensor.dtype == "bfloat16":
        values = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    else:
        values = torch.from_numpy(array)
    if tensor.indices is None:
        return values, None
    return values, Mask(tensor.shape, torch.from_numpy(tensor.indices.copy()))


def check_values(name: str, values: Tensor) -> None:
    """Make sure that values are of a known dtype, and finite.

    Raises:
        InvalidAdapterError: They are not.
    """
    if values.dtype not in DTYPES:
        raise InvalidAdapterError(
            f"{name} holds {str(values.dtype).removeprefix('torch.')}",
            hint="Use float32, bfloat16 or float16.",
        )
    if not torch.isfinite(values).all():
        raise InvalidAdapterError(
            f"{name} holds a value that is no finite number",
            hint="Its training has diverged; use an earlier version.",
        )
