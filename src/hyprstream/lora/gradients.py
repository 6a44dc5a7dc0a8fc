"""The gradient of a loss for the weights of linear layers, without training them.

A view that adds nothing and sees what flows back. From the gradient G of W follow those of
every kind of adapter, for elements that are active and for those that are not: A^T G^T for a
low-rank B, G^T B^T for A. So one recording serves the choice of masks at creation and their
moves in training, alone or summed with an adapter (`SummedView`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable


class WeightGradients:
    """Sums up dL/dW of chosen layers over all backward passes since it was made.

    Takes a float32 matrix of the weight's size for each of them.

    Args:
        layers: Logical shape (O, I) of each layer to watch, by path.
        device: Where the model lives.
    """

    def __init__(self, layers: Mapping[str, tuple[int, int]], device: torch.device) -> None:
        with torch.inference_mode(mode=False):
            self._sums = {path: torch.zeros(shape, device=device) for path, shape in layers.items()}
            # Something that wants a gradient, so that one flows to every layer.
            self._source = torch.zeros((), device=device, requires_grad=True)

    @property
    def sums(self) -> dict[str, Tensor]:
        """The gradient of each layer's W so far, (O, I)."""
        return dict(self._sums)

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Return zeros that record what flows back to them."""
        total = self._sums.get(path)
        if total is None:
            return None
        added: Tensor = _Watched.apply(x, self._source, total)  # type: ignore[no-untyped-call]
        return added

    def select(self, rows: Int[Tensor, " N"]) -> "WeightGradients":  # noqa: ARG002
        """Return the view of chosen rows: all are watched."""
        return self


class _Watched(torch.autograd.Function):
    """Zeros whose backward pass adds the gradient of the layer's W to `total`."""

    @staticmethod
    def forward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any,
        x: Tensor,
        source: Tensor,  # noqa: ARG004  # it makes autograd come here
        total: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.total = total
        return x.new_full((x.shape[0], total.shape[0]), -0.0)  # changes no bit of a sum

    @staticmethod
    @once_differentiable
    def backward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any, grad: Tensor
    ) -> tuple[None, None, None]:
        (x,) = ctx.saved_tensors
        ctx.total.add_(grad.float().T @ x.float())
        return None, None, None
