"""A tensor under training, of which the active elements are the parameters."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from hyprstream.lora.mask import Mask, drop_and_grow
from hyprstream.lora.spec import Structure


@dataclass(frozen=True, slots=True, kw_only=True)
class Regrowth:
    """How far masks move at a time (`drop_and_grow`).

    Attributes:
        fraction: Share of the active elements, or leaves, to give up.
        structure: Whether whole leaves move; masks have to be made of such.
        seed: Decides between equal values.
    """

    fraction: float
    structure: Structure = "unstructured"
    seed: int = 0


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

    def regrow(self, gradient: Tensor, how: Regrowth) -> Int[Tensor, " N"]:
        """Move the mask to where the gradient is largest.

        Args:
            gradient: Of the loss for the whole tensor, up to a factor.
            how: How far.

        Returns:
            What `move` does.
        """
        assert self._mask is not None, "there is no mask to move"
        return self.move(
            drop_and_grow(
                self._mask,
                self.dense().detach(),
                gradient,
                fraction=how.fraction,
                structure=how.structure,
                seed=how.seed,
            )
        )

    def move(self, mask: Mask) -> Int[Tensor, " N"]:
        """Move to another mask: what stays active keeps its value, what is new is zero.

        The parameter is a new one, as the short last leaf can change how many elements it
        has; whoever keeps numbers for each element moves them by what is returned.

        Returns:
            For each element of the new mask its place among those of the old one, or -1.
        """
        assert self._mask is not None, "there is no mask to move"
        old = self._mask.indices
        places = torch.searchsorted(old, mask.indices).clamp(max=len(old) - 1)
        places = torch.where(old[places] == mask.indices, places, -1).to(self.parameter.device)
        with torch.inference_mode(mode=False), torch.no_grad():
            values = self.parameter[places.clamp(min=0)]
            self.parameter = torch.where(places >= 0, values, 0).requires_grad_()
        self._mask = mask
        return places
