"""Fresh adapters: they add nothing yet, and follow from a spec and a seed alone.

Seeded values are the same on every machine (`lora/seeds.py`). What follows from the base
model, as masks by magnitude and bases do, is so up to rounding.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.delta import Start
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights, kind_of


def create(
    spec: LoraSpec,
    linears: Mapping[str, tuple[int, int]],
    *,
    seed: int = 0,
    base: BaseLayers | None = None,
    gradients: Mapping[str, Float[Tensor, "O I"]] | None = None,
) -> LoraWeights:
    """Make an adapter that adds nothing.

    Args:
        spec: What it shall look like.
        linears: Logical shape (O, I) of each linear layer of the model, as in
            `Decoder.linears`.
        seed: Decides everything that is random.
        base: The base model's layers; tiny adapters and sparse ones with a mask by magnitude
            need them.
        gradients: Gradient of a loss for W of each target, for masks chosen by it
            (`lora/gradients.py`).

    Raises:
        InvalidSettingsError: The model lacks a target, or something that the spec needs was
            not handed in.
        InvalidAdapterError: A rank is higher than a layer allows, or a gradient not finite.
    """
    layers = {path: linears[path] for path in spec.targeted(linears)}
    start = Start(spec=spec, layers=layers, seed=seed, base=base, gradients=gradients)
    return LoraWeights(kind_of(spec.kind).create(start))
