"""Trains adapters on the weights that serve, a bounded piece of work at a time.

Nothing here keeps time, picks samples or decides whether an adapter has become better.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from hyprstream.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    IncompatibleAdapterError,
    InvalidSettingsError,
)
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.trainable import TrainableLora
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import LoraView
from hyprstream.refs import AdapterName
from hyprstream.train.backward import Objective, Sums, backward, learning
from hyprstream.train.collate import Packed, collate, packs
from hyprstream.train.config import TrainConfig
from hyprstream.train.evaluate import SampleScore, sample_scores
from hyprstream.train.preference import prefer
from hyprstream.train.sample import Judged, Pair, Sample
from hyprstream.train.sliced import backward_pieces, loss_pieces, score_pieces
from hyprstream.train.state import StepReport, TrainingState
from hyprstream.train.stepwise import Pieces, StepwisePass

_SNAPSHOT_MODULES = 32  # copied and checked in one piece

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
        try:
            for portion in _portions(state.config, samples, anchors):
                for packed in self._packed(portion.samples, state.config.batch_tokens):
                    recompute = state.config.recompute
                    view, objective = state.view(), portion.objective
                    sums = backward(self._model, view, packed, objective, recompute=recompute)
                    state.pending.add(portion.counted(sums))
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

    def begin(
        self,
        name: AdapterName,
        samples: Sequence[Sample],
        *,
        anchors: Sequence[Sample] | None = None,
    ) -> StepwisePass[None]:
        """Return a pass that adds samples to the coming step as `accumulate` does, in pieces.

        Nothing else may be done to the adapter until it is done. One that is closed before
        gives the step up, as one that fails does.

        Raises:
            AdapterNotFoundError: It is not under training.
            InvalidSettingsError: It is trained with dropout, which would hide other inputs
                each time that a piece is computed.
        """
        state = self._state(name)
        if state.spec.dropout:
            raise InvalidSettingsError(
                "an adapter with dropout cannot be trained in pieces",
                hint="Make it without dropout, or train it while nothing is served.",
            )
        return StepwisePass(self._pieces(state, samples, anchors))

    def begin_evaluation(
        self, weights: LoraWeights | None, samples: Sequence[Sample], *, batch_tokens: int = 2048
    ) -> StepwisePass[list[float]]:
        """Return a pass that does what `evaluate` does, in pieces.

        Raises:
            IncompatibleAdapterError: The weights do not fit the model.
        """
        return StepwisePass(
            loss_pieces(self._model, self._evaluated(weights), samples, batch_tokens)
        )

    def begin_scoring(
        self, weights: LoraWeights | None, samples: Sequence[Sample], *, batch_tokens: int = 2048
    ) -> StepwisePass[list[SampleScore]]:
        """Return a pass that does what `score` does, in pieces.

        Raises:
            IncompatibleAdapterError: The weights do not fit the model.
        """
        return StepwisePass(
            score_pieces(self._model, self._evaluated(weights), samples, batch_tokens)
        )

    def apply(self, name: AdapterName) -> StepReport:
        """Take one optimizer step along the mean gradient of what was accumulated.

        Raises:
            AdapterNotFoundError: It is not under training.
            InvalidRequestError: Nothing was accumulated.
            NonFiniteTrainingError: The gradient is no finite number; as for `accumulate`.
        """
        return self.begin_apply(name).finish()

    def begin_apply(self, name: AdapterName) -> StepwisePass[StepReport]:
        """Return what takes the step as `apply` does, in pieces.

        One that is closed before it is done leaves the adapter half moved: `reset` it.

        Raises:
            AdapterNotFoundError: It is not under training.
        """
        return StepwisePass(self._state(name).apply())

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
        return sample_scores(self._model, self._evaluated(weights), samples, batch_tokens)

    def snapshot(self, name: AdapterName) -> LoraWeights:
        """Return an adapter as it is now, in float32; training goes on.

        Raises:
            AdapterNotFoundError: It is not under training.
        """
        return self.begin_snapshot(name).finish()

    def begin_snapshot(self, name: AdapterName) -> StepwisePass[LoraWeights]:
        """Return what does the same in pieces; training must not go on meanwhile.

        Raises:
            AdapterNotFoundError: It is not under training.
        """
        return StepwisePass(_snapshot(self._state(name).lora))

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

    def _pieces(
        self, state: TrainingState, samples: Sequence[Sample], anchors: Sequence[Sample] | None
    ) -> Pieces[None]:
        try:
            for portion in _portions(state.config, samples, anchors):
                for packed in self._packed(portion.samples, state.config.batch_tokens):
                    recompute = state.config.recompute
                    view, objective = state.view(), portion.objective
                    sums = yield from backward_pieces(
                        self._model, view, packed, objective, recompute=recompute
                    )
                    state.pending.add(portion.counted(sums))
        except BaseException:
            state.discard()
            raise

    def _packed(self, samples: Sequence[Sample], batch_tokens: int) -> Iterator[Packed]:
        for pack in packs(samples, batch_tokens):
            yield collate(pack, self._model.config, self._model.device)

    def _evaluated(self, weights: LoraWeights | None) -> LoraView | None:
        if weights is None:
            return None
        self._check(weights)
        return TrainableLora(weights, device=self._model.device)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Portion:
    """Samples of a step with what is summed up over them.

    Attributes:
        samples: The samples.
        objective: What is summed up.
        share: Of anchors, what their sums are multiplied with; None for other samples.
    """

    samples: Sequence[Sample]
    objective: Objective
    share: float | None = None

    def counted(self, sums: Sums) -> Sums:
        """Return what the step counts of sums over these samples."""
        if self.share is None:
            return sums
        return Sums(pull=sums.pull * self.share, num_tokens=sums.num_tokens)


def _portions(
    config: TrainConfig, samples: Sequence[Sample], anchors: Sequence[Sample] | None
) -> Iterator[_Portion]:
    own_pull = config.base_pull if anchors is None else 0.0
    yield _Portion(samples=samples, objective=Objective(loss=1.0, pull=own_pull))
    if anchors and config.base_pull:
        # Of their mean as much as of the mean loss of the samples.
        share = _weight(samples) / _weight(anchors)
        pull = Objective(loss=0.0, pull=config.base_pull * share)
        yield _Portion(samples=anchors, objective=pull, share=share)


def _snapshot(lora: TrainableLora) -> Pieces[LoraWeights]:
    modules = {}
    for number, path in enumerate(lora.paths, start=1):
        modules[path] = lora.snapshot_of(path)
        if number % _SNAPSHOT_MODULES == 0:
            yield
    return LoraWeights(modules)


def _weight(samples: Sequence[Sample]) -> float:
    return sum(sample.weight * sum(sample.counts[1:]) for sample in samples)
