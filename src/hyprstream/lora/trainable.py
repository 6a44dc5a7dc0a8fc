"""An adapter under training: a `LoraView` whose parameters have gradients.

It is an input of the forward pass like any view, so the model is neither changed nor put in
a mode. Runs on the engine thread.
"""

from collections.abc import Mapping, Sequence
from copy import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.lora.delta import Delta, TrainableDelta
from hyprstream.lora.leaf import Regrowth
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.forward import Factored, Factors


class TrainableLora(Factored):
    """Adds to every row what the adapter is at the moment.

    Invariants, checked by `test_trainable.py`: gradients are those of the dense sum W + D;
    what lies outside of a mask is zero whatever an optimizer does to the parameters.

    Args:
        weights: What to begin with; it does not change.
        scales: By path, the factor that the weights hold folded in and training keeps outside
            of the parameters (`LoraSpec.scale_of`): it sets how far a step of the learning
            rate reaches. 1 where there is none.
        dropout: Share of a layer's inputs to hide from the adapter; the others are scaled up.
        seed: Decides which.
        device: Where to train.
    """

    def __init__(
        self,
        weights: LoraWeights,
        *,
        device: torch.device,
        scales: Mapping[str, float] | None = None,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        self._dropout = dropout
        self._random = torch.Generator(device).manual_seed(seed)
        self._kinds = {path: delta.kind for path, delta in weights.modules.items()}
        self._deltas: dict[str, TrainableDelta] = {
            path: delta.trainable((scales or {}).get(path, 1.0), device)
            for path, delta in weights.modules.items()
        }

    def parameters(self) -> dict[str, Tensor]:
        """Name the leaves to optimise, float32, as `pack` names tensors.

        A tensor with a mask is the list of its active elements; one without has its shape.
        """
        return {
            f"{path}/{self._kinds[path]}/{name}": parameter
            for path, delta in self._deltas.items()
            for name, parameter in delta.parameters().items()
        }

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Return what to add to the output of the linear layer at `path` for input `x`."""
        delta = self._deltas.get(path)
        if delta is None:
            return None
        if self._dropout:
            kept = torch.rand(x.shape, generator=self._random, device=x.device) >= self._dropout
            x = x * kept / (1 - self._dropout)
        return delta.product(x)

    def factors(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        self, paths: Sequence[str]
    ) -> list[Factors | None] | None:
        """Return what is added at each path, or None if anything there is no product of factors.

        With dropout nothing is: each layer's inputs are hidden from the adapter alone.
        """
        if self._dropout:
            return None
        found: list[Factors | None] = []
        for path in paths:
            delta = self._deltas.get(path)
            factors = None if delta is None else delta.factors()
            if delta is not None and factors is None:
                return None
            found.append(factors)
        return found

    @property
    def random(self) -> torch.Generator:
        """What decides which inputs are hidden next."""
        return self._random

    def select(self, rows: Int[Tensor, " N"]) -> "TrainableLora":  # noqa: ARG002
        """Return the view of chosen rows of the step: all rows use the one adapter."""
        return self

    def without_dropout(self) -> "TrainableLora":
        """Return a view of the same parameters, for evaluation."""
        view = copy(self)
        view._dropout = 0.0
        return view

    def regrow(
        self, gradients: Mapping[str, Float[Tensor, "O I"]], how: Regrowth
    ) -> dict[str, Tensor]:
        """Move all masks to where the loss falls fastest (RigL, arXiv:1911.11134).

        Those with a mask become new parameters (`parameters`), without gradients.

        Args:
            gradients: Of the loss for W of each layer, as `WeightGradients` records them
                beside this view.
            how: How far.

        Returns:
            For each parameter with a mask, the place of each new element among the old ones,
            or -1 (int64, (N,)): what an optimizer keeps has to move likewise.
        """
        return {
            f"{path}/{self._kinds[path]}/{name}": places
            for path, delta in self._deltas.items()
            for name, places in delta.regrow(gradients[path], how).items()
        }

    @property
    def paths(self) -> list[str]:
        """The layers that it changes."""
        return list(self._deltas)

    def snapshot(self) -> LoraWeights:
        """Return the weights as they are now, in float32."""
        return LoraWeights({path: self.snapshot_of(path) for path in self._deltas})

    def snapshot_of(self, path: str) -> Delta:
        """Return what is added to one layer now, in float32."""
        return self._deltas[path].snapshot()
