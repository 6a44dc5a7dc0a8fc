"""An adapter fused into the weights of its base model, and taken out again.

For plain float weights: a rounded sum is not exactly undone, so what is taken out leaves an
error of the weight's rounding.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError
from hyprstream.lora.weights import LoraWeights


def fuse(
    base: Mapping[str, Float[Tensor, "O I"]], weights: LoraWeights, factor: float = 1.0
) -> dict[str, Tensor]:
    """Return W + factor D of each layer that the adapter changes, in the dtype of W.

    The sum is formed in float32 and rounded once. To fuse several adapters, `combine` them
    first, or fuse one after the other.

    Args:
        base: W of each linear layer by path; more layers than the adapter's do no harm.
        weights: The adapter.
        factor: What it is multiplied with; -1 takes out what was fused.

    Raises:
        IncompatibleAdapterError: The adapter was made for another model.
    """
    fused = {}
    for path, delta in weights.modules.items():
        weight = base.get(path)
        if weight is None or tuple(weight.shape) != delta.shape:
            layer = "has none there" if weight is None else f"has {tuple(weight.shape)} there"
            raise IncompatibleAdapterError(
                f"the adapter changes a linear layer of shape {delta.shape} at {path}, "
                f"the model {layer}",
                hint="Use the adapter with the base model that it was trained on.",
            )
        change = delta.dense().to(weight.device) * factor
        fused[path] = (weight.to(torch.float32) + change).to(weight.dtype)
    return fused


def take_out(fused: Mapping[str, Float[Tensor, "O I"]], weights: LoraWeights) -> dict[str, Tensor]:
    """Return W of each layer from W + D, up to the rounding of both sums.

    Raises:
        IncompatibleAdapterError: The adapter was made for another model.
    """
    return fuse(fused, weights, -1.0)
