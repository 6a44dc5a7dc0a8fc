"""A training run: steps, a look at held-out samples now and then, and the best version kept.

It ends after a number of steps, or when nothing has become better for a while. Between any
two steps it can be saved; what goes on from there is the same run, bit by bit. Holds no
files: `resume.py` puts on disk what `Run.saved` returns.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from torch import Tensor

from hyprstream.errors import InvalidSettingsError
from hyprstream.lora.weights import LoraWeights
from hyprstream.refs import AdapterName
from hyprstream.train.state import StepReport
from hyprstream.train.trainer import Trainer

Portion = Callable[[], None]
"""Adds something to the coming step of an adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """How an adapter does on what it is judged by.

    Attributes:
        loss: The number that is to fall.
        losses: The same for each sample.
    """

    loss: float
    losses: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """What a run learns from, and what it is judged by.

    Attributes:
        portions: One for each batch, without end; the same ones whenever a run is resumed.
        judge: Measures an adapter; None where nothing is held out.
    """

    portions: Iterator[Portion]
    judge: Callable[[LoraWeights], HeldOut] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """How long a run takes, and when it looks up."""

    num_steps: int = 100
    """Most optimizer steps."""
    evaluate_every: int = 10
    """Steps between looks at the held-out samples."""
    patience: int = 5
    """Looks in a row without a better one after which it stops; 0: never."""
    save_every: int = 10
    """Steps between saves."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        least = {"num_steps": 1, "evaluate_every": 1, "patience": 0, "save_every": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint=f"Make it {bound} or more."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One step of the curve of a run.

    Attributes:
        step: How many steps had been taken; 0 is the beginning.
        loss: Of the samples of the step, before it was taken; None at the beginning.
        held_out_loss: After it; None where it was not measured.
    """

    step: int
    loss: float | None
    held_out_loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """What is told after a step.

    Attributes:
        point: Of the curve.
        num_steps: Most steps there will be.
        report: Of the step.
        tokens_per_s: Tokens that were computed in a second of training; looks do not count.
        remaining_s: How long it will take at this pace, if it does not stop early.
        is_best: No earlier look found a lower loss.
    """

    point: Point
    num_steps: int
    report: StepReport
    tokens_per_s: float
    remaining_s: float
    is_best: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best version so far.

    Attributes:
        step: After how many steps; 0 is what the run began with.
        weights: The adapter.
        held_out: How it did; None where nothing is held out.
    """

    step: int
    weights: LoraWeights
    held_out: HeldOut | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """A run between two steps.

    Attributes:
        training: What the trainer needs to go on.
        current: The adapter as it is.
        best: The best version so far.
        start: How the adapter did at the beginning; None where nothing is held out.
        curve: All steps so far.
        num_stale: Looks since the best one.
    """

    training: Mapping[str, Tensor]
    current: LoraWeights
    best: Best
    start: HeldOut | None
    curve: Sequence[Point]
    num_stale: int


class Run:
    """A run over an adapter that is open in a trainer.

    Args:
        trainer: Where it is open.
        name: Of the adapter.
        lessons: What it learns from.
        config: How long.
        saved: Where an earlier process was, for an adapter opened with its current weights
            and lessons that begin anew; None begins.
        clock: Seconds that pass.
    """

    def __init__(
        self,
        trainer: Trainer,
        name: AdapterName,
        lessons: Lessons,
        config: RunConfig,
        *,
        saved: Saved | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._trainer = trainer
        self._name = name
        self._config = config
        self._clock = clock
        self._judge = lessons.judge
        self._portions = lessons.portions
        self._accumulation = trainer.config(name).accumulation
        self._pace = _Pace()
        if saved is None:
            current = trainer.snapshot(name)
            self.start = self._judge(current) if self._judge else None
            self._best = Best(step=0, weights=current, held_out=self.start)
            loss = None if self.start is None else self.start.loss
            self.curve = [Point(step=0, loss=None, held_out_loss=loss)]
            self._num_stale = 0
        else:
            trainer.load(name, saved.training)
            self.start, self._best = saved.start, saved.best
            self.curve = list(saved.curve)
            self._num_stale = saved.num_stale
            self._portions = islice(
                lessons.portions, self.num_steps_done * self._accumulation, None
            )

    @property
    def num_steps_done(self) -> int:
        """Steps that have been taken."""
        return self.curve[-1].step

    @property
    def best(self) -> Best:
        """The best version so far; where nothing is held out, the adapter as it is."""
        if self._judge is not None:
            return self._best
        weights = self._trainer.snapshot(self._name)
        return Best(step=self.num_steps_done, weights=weights, held_out=None)

    @property
    def is_over(self) -> bool:
        """Whether all steps were taken, or nothing has become better for too long."""
        patience = self._config.patience
        return self.num_steps_done >= self._config.num_steps or 0 < patience <= self._num_stale

    @property
    def is_due(self) -> bool:
        """Whether it is time to save."""
        return self.num_steps_done % self._config.save_every == 0

    def steps(self) -> Iterator[TrainingProgress]:
        """Take the steps that are left, and report each.

        Raises:
            HyprstreamError: As `Trainer.accumulate` and `Trainer.apply` do.
        """
        while not self.is_over:
            yield self._step()

    def measured(self, weights: LoraWeights) -> HeldOut | None:
        """Measure an adapter on what is held out; None where nothing is."""
        return None if self._judge is None else self._judge(weights)

    def saved(self) -> Saved:
        """Return all that going on takes, between two steps."""
        return Saved(
            training=self._trainer.saved(self._name),
            current=self._trainer.snapshot(self._name),
            best=self.best,
            start=self.start,
            curve=tuple(self.curve),
            num_stale=self._num_stale,
        )

    def _step(self) -> TrainingProgress:
        began = self._clock()
        for _ in range(self._accumulation):
            next(self._portions)()
        report = self._trainer.apply(self._name)
        trained = self._clock()
        step = self.num_steps_done + 1
        last = step == self._config.num_steps
        held_out, is_best = None, False
        if self._judge and (last or step % self._config.evaluate_every == 0):
            held_out, is_best = self._look(step)
        loss = None if held_out is None else held_out.loss
        self.curve.append(Point(step=step, loss=report.loss, held_out_loss=loss))
        self._pace.add(report.num_tokens, trained - began, self._clock() - began)
        return TrainingProgress(
            point=self.curve[-1],
            num_steps=self._config.num_steps,
            report=report,
            tokens_per_s=self._pace.tokens_per_s,
            remaining_s=self._pace.step_s * (self._config.num_steps - step),
            is_best=is_best,
        )

    def _look(self, step: int) -> tuple[HeldOut, bool]:
        """Measure the adapter as it is; keep it if it is the best so far."""
        assert self._judge is not None
        weights = self._trainer.snapshot(self._name)
        held_out = self._judge(weights)
        assert self._best.held_out is not None
        is_best = held_out.loss < self._best.held_out.loss
        if is_best:
            self._best = Best(step=step, weights=weights, held_out=held_out)
        self._num_stale = 0 if is_best else self._num_stale + 1
        return held_out, is_best


class _Pace:
    """How fast the steps of this process are."""

    def __init__(self) -> None:
        self._num_tokens = 0
        self._training_s = 0.0
        self._whole_s = 0.0
        self._num_steps = 0

    def add(self, num_tokens: int, training_s: float, whole_s: float) -> None:
        self._num_tokens += num_tokens
        self._training_s += training_s
        self._whole_s += whole_s
        self._num_steps += 1

    @property
    def tokens_per_s(self) -> float:
        return self._num_tokens / self._training_s if self._training_s else 0.0

    @property
    def step_s(self) -> float:
        return self._whole_s / self._num_steps
