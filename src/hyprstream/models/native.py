"""The native kernels, for the parts of models: who may use them, and small calls.

Everything here is optional. Where there is no kernel for a tensor, or autograd watches it,
the answer is None and the caller computes in torch, which is the reference.
"""

from array import array
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor

from hyprstream.kernels.native import CODE_TILE, KINDS, Kernels, Kind, open_kernels
from hyprstream.models.config import AttentionConfig

MAX_QUERIES = 8
"""From so many queries of a sequence on, products in torch are faster: they read each key once."""

_WIDTH_STEP = 16

DTYPES: Mapping[torch.dtype, Kind] = {
    torch.float32: KINDS["float32"],
    torch.bfloat16: KINDS["bfloat16"],
}
"""Numbers that kernels compute with."""


@cache
def kernels() -> Kernels | None:
    """Return the kernels if they were compiled for this machine."""
    return open_kernels()


def kind_of(x: Tensor) -> Kind | None:
    """Return what the numbers of `x` are for a kernel; None where torch has to compute."""
    if not x.is_cpu or (x.requires_grad and torch.is_grad_enabled()):
        return None
    return DTYPES.get(x.dtype)


def rms_norm(
    x: Float[Tensor, "*T C"], scale: Float32[Tensor, " C"], eps: float
) -> Float[Tensor, "*T C"] | None:
    """Return x / sqrt(mean(x^2) + eps) * scale over the last dimension."""
    native, kind = kernels(), kind_of(x)
    if native is None or kind is None:
        return None
    x = x.contiguous()
    y = torch.empty_like(x)
    width = x.shape[-1]
    rows = x.numel() // width
    native.rms_norm(kind, x.data_ptr(), scale.data_ptr(), eps, rows, width, y.data_ptr())
    return y


def rotate(
    x: Float[Tensor, "T H D"], cos: Float[Tensor, "T 1 W"], sin: Float[Tensor, "T 1 W"]
) -> Float[Tensor, "T H D"] | None:
    """Return `x` with its first W channels turned; see `rotary.rotate`."""
    native, kind = kernels(), kind_of(x)
    if native is None or kind is None or cos.dtype != x.dtype:
        return None
    x = x.contiguous()
    y = torch.empty_like(x)
    tables = cos.data_ptr(), sin.data_ptr()
    native.rotate(kind, x.data_ptr(), *tables, *x.shape, cos.shape[-1], y.data_ptr())
    return y


def silu_gate(gate: Float[Tensor, "T W"], up: Float[Tensor, "T W"]) -> Float[Tensor, "T W"] | None:
    """Return silu(gate) * up."""
    native, kind = kernels(), kind_of(gate)
    if native is None or kind is None or kind_of(up) != kind:
        return None
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    native.gate(kind, gate.data_ptr(), up.data_ptr(), gate.numel(), y.data_ptr())
    return y


def rms_norm_gradient(
    x: Float[Tensor, "*T C"],
    scale: Float32[Tensor, " C"],
    eps: float,
    grad: Float[Tensor, "*T C"],
) -> Float[Tensor, "*T C"] | None:
    """Return the gradient for `x` of what `rms_norm` makes of it."""
    native, kind = kernels(), kind_of(x)
    if native is None or kind is None or grad.dtype != x.dtype:
        return None
    x, grad = x.contiguous(), grad.contiguous()
    y = torch.empty_like(x)
    width = x.shape[-1]
    sizes = x.numel() // width, width
    ends = x.data_ptr(), scale.data_ptr(), eps, grad.data_ptr()
    native.rms_norm_gradient(kind, *ends, *sizes, y.data_ptr())
    return y


def silu_gate_gradient(
    gate: Float[Tensor, "T W"], up: Float[Tensor, "T W"], grad: Float[Tensor, "T W"]
) -> tuple[Float[Tensor, "T W"], Float[Tensor, "T W"]] | None:
    """Return the gradients for what `silu_gate` takes; `grad` is in float32 for a kernel."""
    native, kind = kernels(), kind_of(gate)
    if native is None or kind is None or kind_of(up) != kind or grad.dtype != torch.float32:
        return None
    gate, up, grad = gate.contiguous(), up.contiguous(), grad.contiguous()
    found = torch.empty_like(gate), torch.empty_like(up)
    ends = gate.data_ptr(), up.data_ptr(), grad.data_ptr()
    native.gate_gradient(kind, *ends, gate.numel(), *(y.data_ptr() for y in found))
    return found


def cross_entropy(
    logits: Float[Tensor, "N V"], targets: Int64[Tensor, " N"], factors: Float32[Tensor, " N"]
) -> Float32[Tensor, " N"] | None:
    """Return the cross entropy of each row, in nats.

    The logits are overwritten by its gradient for them, each row's times its factor.
    """
    native, kind = kernels(), kind_of(logits)
    if native is None or kind is None or not logits.is_contiguous():
        return None
    targets, factors = targets.contiguous(), factors.contiguous()
    losses = torch.empty_like(factors)
    ends = logits.data_ptr(), targets.data_ptr(), factors.data_ptr()
    native.cross_entropy(kind, *ends, *logits.shape, losses.data_ptr())
    return losses


def attend(
    config: AttentionConfig,
    q: Float[Tensor, "Q H D"],
    k: Float[Tensor, "L K D"],
    v: Float[Tensor, "L K D"],
    num_before: int,
) -> Float[Tensor, "Q H D"] | None:
    """Mix the values of one sequence for few last queries; see `attention.mixed_values`."""
    native, kind = kernels(), kind_of(q)
    num_queries, _, width = q.shape
    if native is None or kind is None or num_queries > MAX_QUERIES or width % _WIDTH_STEP:
        return None
    if k.dtype != q.dtype or not (k.is_contiguous() and v.is_contiguous()):
        return None
    return _of_one_sequence(partial(native.attend, kind), config, q, k, v, k.shape[0], num_before)


def attend_codes(
    config: AttentionConfig,
    q: Float[Tensor, "Q H D"],
    keys: UInt8[Tensor, "N K B"],
    values: UInt8[Tensor, "N K B"],
    num_before: int,
) -> Float[Tensor, "Q H D"] | None:
    """Mix the values of one sequence, which lie as in `engine/eight_bits.py`, for few last queries.

    Args:
        config: Scale, window and soft cap of the layer.
        q: Queries of the positions from `num_before` on.
        keys: Tiles of keys, those of the queries among them.
        values: Tiles of values.
        num_before: Positions before the first query.
    """
    native, kind = kernels(), kind_of(q)
    if native is None or kind is None or len(q) > MAX_QUERIES:
        return None
    attend = partial(native.attend_codes, kind, native.instructions)
    size = keys.shape[0] * CODE_TILE
    return _of_one_sequence(attend, config, q, keys, values, size, num_before)


def _of_one_sequence(
    attend: Callable[..., None],
    config: AttentionConfig,
    q: Float[Tensor, "Q H D"],
    keys: Tensor,
    values: Tensor,
    num_places: int,
    num_before: int,
) -> Float[Tensor, "Q H D"]:
    """Let a kernel attend over one block with all places, in which the sequence lies."""
    num_queries, num_heads, width = q.shape
    q = q.contiguous()
    mixed = torch.empty_like(q)
    ends = array("i", range(num_before + 1, num_before + 1 + num_queries))
    zeros = array("i", bytes(4 * num_queries))  # one block, from which all queries read
    attend(
        q.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        mixed.data_ptr(),
        num_queries,
        ends.buffer_info()[0],
        zeros.buffer_info()[0],
        zeros.buffer_info()[0],
        num_heads,
        keys.shape[1],
        width,
        num_places,
        config.window or 0,
        config.scale,
        config.softcap or 0.0,
    )
    return mixed


def keep_codes(
    places: Int64[Tensor, " T"],
    k: Float[Tensor, "T K D"],
    v: Float[Tensor, "T K D"],
    keys: UInt8[Tensor, "N K B"],
    values: UInt8[Tensor, "N K B"],
) -> bool:
    """Write keys and values in 8 bits, as `engine/eight_bits.py` does; False where torch has to."""
    native, kind = kernels(), kind_of(k)
    if native is None or kind is None or kind_of(v) != kind:
        return False
    k, v, places = k.contiguous(), v.contiguous(), places.contiguous()
    rows = k.data_ptr(), v.data_ptr(), places.data_ptr()
    native.keep_codes(kind, *rows, *k.shape, keys.data_ptr(), values.data_ptr())
    return True
