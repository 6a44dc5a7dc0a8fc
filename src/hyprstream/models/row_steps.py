"""Norms, rotations and gates as steps of autograd that keep only what goes into them.

The kernels compute them both ways. `kernel_has_gradient` says where they do; elsewhere torch
composes and differentiates them.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor
from torch.autograd.function import once_differentiable

from hyprstream.models import native


def kernel_has_gradient(*tensors: Tensor) -> bool:
    """Tell whether a gradient is wanted for rows, and the kernels compute it."""
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in tensors):
        return False
    dtypes = {x.dtype for x in tensors}
    return (
        native.kernels() is not None
        and all(x.is_cpu and x.dtype in native.DTYPES for x in tensors)
        and len(dtypes) == 1
    )


def normalised(
    x: Float[Tensor, "*T C"], scale: Float32[Tensor, " C"], eps: float
) -> Float[Tensor, "*T C"]:
    """Do what `native.rms_norm` does, differentiable in `x`."""
    y: Tensor = _Norm.apply(x, scale, eps)  # type: ignore[no-untyped-call]  # torch
    return y


def rotated(
    x: Float[Tensor, "T H D"], cos: Float[Tensor, "T 1 W"], sin: Float[Tensor, "T 1 W"]
) -> Float[Tensor, "T H D"]:
    """Do what `native.rotate` does, differentiable in `x`."""
    y: Tensor = _Turn.apply(x, cos, sin)  # type: ignore[no-untyped-call]  # torch
    return y


class Gated:
    """activation(gate) * up, as where the rows of a product come from (`quant.products`).

    Args:
        gated: Computes it.
        is_silu: The activation is silu, which the kernels have.
    """

    def __init__(self, gated: Callable[[Tensor, Tensor], Tensor], *, is_silu: bool) -> None:
        self._gated = gated
        self._is_silu = is_silu

    def rows(self, *sources: Float[Tensor, "T W"]) -> Float[Tensor, "T W"]:
        """Compute it from the gate and what it lets through."""
        gate, up = sources
        return self._gated(gate, up)

    def gradients(
        self, grad: Float[Tensor, "T W"], *sources: Float[Tensor, "T W"]
    ) -> tuple[Float[Tensor, "T W"], ...]:
        """Return the gradients for both."""
        gate, up = sources
        found = native.silu_gate_gradient(gate, up, grad) if self._is_silu else None
        if found is not None:
            return found
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in sources]
            y = self._gated(*leaves)
        return torch.autograd.grad(y, leaves, grad.to(y.dtype))


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, x: Tensor, scale: Tensor, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.scale, ctx.eps = scale, eps
        return _present(native.rms_norm(x, scale, eps))

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return _present(native.rms_norm_gradient(x, ctx.scale, ctx.eps, grad)), None, None


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor
    ) -> Tensor:
        ctx.tables = cos, sin
        return _present(native.rotate(x, cos, sin))

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        cos, sin = ctx.tables
        # Turned by the sine that stands with the partner: back, where all is a rotation.
        back = sin.roll(sin.shape[-1] // 2, -1)
        return _present(native.rotate(grad, cos, back)), None, None


def _present(y: Tensor | None) -> Tensor:
    assert y is not None, "kernel_has_gradient was asked first"
    return y
