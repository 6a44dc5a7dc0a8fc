"""A tensor under training, of which the active elements are the parameters."""

import torch
from torch import Tensor

from hyprstream.lora.mask import Mask


class Leaf:
    """Parameters, and the tensor that they make.

    With a mask, the parameters are the list of active elements: what lies outside is zero
    whatever an optimizer does, and an optimizer's state is as small as the mask.

    Args:
        tensor: The values to begin with.
        mask: The active elements; None if all are.
        device: Where to train.
    """

    def __init__(self, tensor: Tensor, mask: Mask | None, device: torch.device) -> None:
        self._mask = mask
        with torch.inference_mode(mode=False), torch.no_grad():
            values = tensor if mask is None else mask.active(tensor)
            self.parameter = values.to(device, torch.float32, copy=True).requires_grad_()

    @property
    def mask(self) -> Mask | None:
        """The active elements; None if all are."""
        return self._mask

    def dense(self) -> Tensor:
        """Return the whole tensor, differentiable in the parameters."""
        return self.parameter if self._mask is None else self._mask.spread(self.parameter)
