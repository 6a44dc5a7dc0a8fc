"""One adapter under training: its parameters, its optimizer, and the step that is being made."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hyprstream.errors import (
    InvalidAdapterError,
    InvalidSettingsError,
    NonFiniteTrainingError,
)
from hyprstream.lora.bank import SummedView
from hyprstream.lora.gradients import WeightGradients
from hyprstream.lora.leaf import Regrowth
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.trainable import TrainableLora
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.forward import LoraView
from hyprstream.train.config import TrainConfig
from hyprstream.train.optim import AdapterOptimizer
from hyprstream.train.step import PendingStep
from hyprstream.train.stepwise import Pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one optimizer step saw.

    Attributes:
        step: Its number, from 0.
        loss: Mean loss of the tokens that count, in nats, before the step.
        pull: Mean divergence from the base model, in nats; 0 where none was asked for.
        grad_norm: Norm of the gradient of both, before it was scaled down.
        learning_rate: How fast the parameters moved.
        num_tokens: Tokens that were computed, those of anchors included.
    """

    step: int
    loss: float
    pull: float
    grad_norm: float
    learning_rate: float
    num_tokens: int


class TrainingState:
    """An adapter under training.

    Attributes:
        lora: The adapter as it is now.
        pending: The step that is being made.
        spec: Scales, dropout, and the structure of masks.
        config: Optimizer and schedule.

    Args:
        start: What to begin with.
        spec: Scales, dropout, and the structure of masks.
        config: Optimizer and schedule.
        device: Where to train.

    Raises:
        InvalidSettingsError: The settings contradict one another.
    """

    def __init__(
        self, start: LoraWeights, spec: LoraSpec, config: TrainConfig, device: torch.device
    ) -> None:
        if config.recompute and spec.dropout:
            raise InvalidSettingsError(
                "recompute and dropout exclude each other: another time, other inputs are hidden",
                hint="Switch one of them off.",
            )
        self.spec = spec
        self.config = config
        self.lora = TrainableLora(
            start,
            device=device,
            scales={path: spec.scale_of(path) for path in start.modules},
            dropout=spec.dropout,
            seed=config.seed,
        )
        self._layers = {path: delta.shape for path, delta in start.modules.items()}
        self._device = device
        parameters = self.lora.parameters()
        self._optimizer = AdapterOptimizer(parameters, config)
        self.pending = PendingStep(parameters)
        self._num_steps = 0
        self._watch: WeightGradients | None = None

    def view(self) -> LoraView:
        """Return what takes part in the forward passes of this step."""
        if self.spec.sparsity and self.config.regrowth(self._num_steps):
            if self._watch is None:
                self._watch = WeightGradients(self._layers, self._device)
            return SummedView([self.lora, self._watch])
        return self.lora

    def apply(self) -> Pieces[StepReport]:
        """Take the step, in pieces; it is forgotten if that fails.

        Raises:
            InvalidRequestError: Nothing was accumulated.
            NonFiniteTrainingError: The gradient is no finite number.
        """
        rate = self.config.rate(self._num_steps)
        try:
            with self.pending.taken() as sums:
                norm = self.pending.check_gradients(self.config.max_grad_norm)
                self._check_watched()
                yield
                # From here on nothing is refused any more.
                yield from self._optimizer.pieces(rate)
                self._regrow()
        finally:
            self._watch = None
        report = StepReport(
            step=self._num_steps,
            loss=sums.loss / sums.weight,
            pull=sums.pull / sums.weight,
            grad_norm=norm,
            learning_rate=rate,
            num_tokens=sums.num_tokens,
        )
        self._num_steps += 1
        return report

    def discard(self) -> None:
        """Forget the step that is being made."""
        self.pending.discard()
        self._watch = None

    def saved(self) -> dict[str, Tensor]:
        """Return copies of all that the coming steps depend on besides the settings."""
        assert not self.pending.is_begun, "a step that is being made has no place in what is saved"
        found = {f"parameter/{n}": p.detach() for n, p in self.lora.parameters().items()}
        found |= {f"optimizer/{n}": value for n, value in self._optimizer.state().items()}
        found["random"] = self.lora.random.get_state()
        found["num_steps"] = torch.tensor(self._num_steps)
        return {name: value.to("cpu", copy=True) for name, value in found.items()}

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Go on where another state of the same layers, masks and settings was saved.

        Raises:
            InvalidAdapterError: What is saved is of other parameters.
        """
        parameters = self.lora.parameters()
        parts: dict[str, dict[str, Tensor]] = {"parameter": {}, "optimizer": {}}
        for name, value in saved.items():
            part, _, rest = name.partition("/")
            if rest:
                parts[part][rest] = value
        kept = {name: value.shape for name, value in parts["parameter"].items()}
        if kept != {name: parameter.shape for name, parameter in parameters.items()}:
            raise InvalidAdapterError(
                "what was saved of the training belongs to another adapter",
                hint="Begin the training again.",
            )
        for name, parameter in parameters.items():
            parameter.copy_(parts["parameter"][name])
        self._optimizer.load(parts["optimizer"])
        self.lora.random.set_state(saved["random"])
        self._num_steps = int(saved["num_steps"])

    def _check_watched(self) -> None:
        watched = [] if self._watch is None else self._watch.sums.values()
        if not all(bool(sums.isfinite().all()) for sums in watched):
            raise NonFiniteTrainingError("the gradient")

    def _regrow(self) -> None:
        if self._watch is None:
            return
        how = Regrowth(
            fraction=self.config.regrowth(self._num_steps),
            structure=self.spec.structure,
            seed=self.config.seed,
        )
        places = self.lora.regrow(self._watch.sums, how)
        parameters = self.lora.parameters()
        self._optimizer.move(parameters, places)
        self.pending.replace(parameters)
