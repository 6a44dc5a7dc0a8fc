"""Trains adapters on the weights that serve, a bounded piece of work at a time.

Nothing here keeps time, picks samples or decides whether an adapter has become better.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from torch import Tensor

from hyprstream.errors import AdapterExistsError, AdapterNotFoundError, IncompatibleAdapterError
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.trainable import TrainableLora
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.decoder import Decoder
from hyprstream.refs import AdapterName
from hyprstream.train.backward import Objective, Sums, backward, learning
from hyprstream.train.collate import collate, packs
from hyprstream.train.config import TrainConfig
from hyprstream.train.evaluate import SampleScore, sample_scores
from hyprstream.train.preference import prefer
from hyprstream.train.sample import Judged, Pair, Sample
from hyprstream.train.state import StepReport, TrainingState

_Choice = TypeVar("_Choice", Pair, Judged)


class Trainer:
    """Adapters under training, by name, on one base model.

    Runs on the engine thread. Deterministic: the same calls give the same bits, on one
    machine with one number of threads. A step that fails leaves its adapter as it was.

    Args:
        model: The base; it stays as it is.
    """

    def __init__(self, model: Decoder) -> None:
        self._model = model
        self._states: dict[AdapterName, TrainingState] = {}

    @property
    def names(self) -> list[AdapterName]:
        """Names of the adapters under training."""
        return list(self._states)

    def config(self, name: AdapterName) -> TrainConfig:
        """Return how an adapter is trained.

        Raises:
            AdapterNotFoundError: It is not under training.
        """
        return self._state(name).config

    @learning()
    def open(
        self, name: AdapterName, start: LoraWeights, *, spec: LoraSpec, config: TrainConfig
    ) -> None:
        """Begin to train an adapter.

        Raises:
            AdapterExistsError: One of that name is under training.
            IncompatibleAdapterError: It does not fit the model.
            InvalidSettingsError: Spec and config contradict each other.
        """
        if name in self._states:
            raise AdapterExistsError(
                f"the adapter {name} is under training", hint="Reset or close it."
            )
        self._states[name] = self._fresh(start, spec, config)

    def close(self, name: AdapterName) -> None:
        """End the training of an adapter, without a trace of it.

        Raises:
            AdapterNotFoundError: It is not under training.
        """
        self._state(name)
        del self._states[name]

    @learning()
    def accumulate(
        self,
        name: AdapterName,
        samples: Sequence[Sample],
        *,
        anchors: Sequence[Sample] | None = None,
    ) -> None:
        """Add samples to the coming step. In which portions they come makes no difference.

        Args:
            name: Of the adapter.
            samples: Computed in batches of up to `batch_tokens` tokens.
            anchors: Text on which the adapter is to stay close to the base model, if the
                config has a `base_pull`; None: the samples themselves.

        Raises:
            AdapterNotFoundError: It is not under training.
            ContextTooLongError: A sample does not fit the model.
            InvalidRequestError: A sample does not fit the model, or a batch.
            NonFiniteTrainingError: The loss is no finite number. The step is given up: what
                was accumulated for it is forgotten, and the adapter is as before it.
        """
        state = self._state(name)
        weight = _weight(samples)
        try:
            own_pull = state.config.base_pull if anchors is None else 0.0
            self._pass(state, samples, Objective(loss=1.0, pull=own_pull))
            if anchors and state.config.base_pull:
                # Of their mean as much as of the mean loss of the samples.
                share = weight / _weight(anchors)
                pull = Objective(loss=0.0, pull=state.config.base_pull * share)
                self._pass(state, anchors, pull, share=share)
        except BaseException:
            state.discard()
            raise

    @learning()
    def prefer(self, name: AdapterName, choices: Sequence[_Choice]) -> None:
        """Add preferences to the coming step, whose loss is the mean of theirs.

        Args:
            name: Of the adapter.
            choices: With their references (`preference.referenced`); all of one sort.

        Raises:
            HyprstreamError: As `accumulate` does.
        """
        state = self._state(name)
        config = state.config
        try:
            for pack in packs(choices, config.batch_tokens):
                beta, recompute = config.preference_beta, config.recompute
                sums = prefer(self._model, state.view(), pack, beta, recompute=recompute)
                state.pending.add(sums)
        except BaseException:
            state.discard()
            raise

    @learning()
    def apply(self, name: AdapterName) -> StepReport:
        """Take one optimizer step along the mean gradient of what was accumulated.

        Raises:
            AdapterNotFoundError: It is not under training.
            InvalidRequestError: Nothing was accumulated.
            NonFiniteTrainingError: The gradient is no finite number; as for `accumulate`.
        """
        return self._state(name).apply()

    def evaluate(
        self, weights: LoraWeights | None, samples: Sequence[Sample], *, batch_tokens: int = 2048
    ) -> list[float]:
        """Return for each sample the mean loss of its tokens that count, in nats; see `score`."""
        return [score.loss for score in self.score(weights, samples, batch_tokens=batch_tokens)]

    @learning()
    def score(
        self, weights: LoraWeights | None, samples: Sequence[Sample], *, batch_tokens: int = 2048
    ) -> list[SampleScore]:
        """Return what the model makes of each sample.

        Args:
            weights: The adapter; None for the base model alone.
            samples: Computed in batches of up to `batch_tokens` tokens.
            batch_tokens: What memory grows with.

        Raises:
            ContextTooLongError: A sample does not fit the model.
            InvalidRequestError: A sample does not fit the model, or a batch.
            NonFiniteTrainingError: A loss is no finite number.
        """
        view = None
        if weights is not None:
            self._check(weights)
            view = TrainableLora(weights, device=self._model.device)
        return sample_scores(self._model, view, samples, batch_tokens)

    def snapshot(self, name: AdapterName) -> LoraWeights:
        """Return an adapter as it is now, in float32; training goes on.

        Raises:
            AdapterNotFoundError: It is not under training.
        """
        return self._state(name).lora.snapshot()

    def saved(self, name: AdapterName) -> dict[str, Tensor]:
        """Return all that the coming steps depend on, between two steps; `load` goes on with it.

        Raises:
            AdapterNotFoundError: It is not under training.
        """
        return self._state(name).saved()

    @learning()
    def load(self, name: AdapterName, saved: Mapping[str, Tensor]) -> None:
        """Go on where `saved` was called: every later step gives the same bits.

        Args:
            name: An adapter that was opened with the snapshot of that moment (for the places
                of its masks), the same spec and the same config.
            saved: What it returned.

        Raises:
            AdapterNotFoundError: It is not under training.
            InvalidAdapterError: It is of another adapter.
        """
        self._state(name).load(saved)

    @learning()
    def reset(self, name: AdapterName, to: LoraWeights) -> None:
        """Go on from other weights, with nothing left of the past: steps are counted from 0.

        Raises:
            AdapterNotFoundError: It is not under training.
            IncompatibleAdapterError: The weights do not fit the model.
        """
        state = self._state(name)
        self._states[name] = self._fresh(to, state.spec, state.config)

    def _pass(
        self,
        state: TrainingState,
        samples: Sequence[Sample],
        objective: Objective,
        *,
        share: float | None = None,
    ) -> None:
        """Pass samples forward and back; those with a share are anchors."""
        for pack in packs(samples, state.config.batch_tokens):
            packed = collate(pack, self._model.config, self._model.device)
            recompute = state.config.recompute
            sums = backward(self._model, state.view(), packed, objective, recompute=recompute)
            if share is not None:
                sums = Sums(pull=sums.pull * share, num_tokens=sums.num_tokens)
            state.pending.add(sums)

    def _fresh(self, start: LoraWeights, spec: LoraSpec, config: TrainConfig) -> TrainingState:
        self._check(start)
        return TrainingState(start, spec, config, self._model.device)

    def _check(self, weights: LoraWeights) -> None:
        for path, delta in weights.modules.items():
            if self._model.linears.get(path) != delta.shape:
                raise IncompatibleAdapterError(
                    f"the adapter changes {path} of shape {delta.shape}, "
                    f"the model has {self._model.linears.get(path)}",
                    hint="Use the base model that the adapter was made for.",
                )

    def _state(self, name: AdapterName) -> TrainingState:
        state = self._states.get(name)
        if state is None:
            raise AdapterNotFoundError(
                f"no adapter {name} is under training", hint="Open it first."
            )
        return state


def _weight(samples: Sequence[Sample]) -> float:
    return sum(sample.weight * sum(sample.counts[1:]) for sample in samples)
