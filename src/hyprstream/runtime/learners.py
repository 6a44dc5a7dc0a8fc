"""Who learns, how, within which budget; and what the adaptation loop works with. No torch."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar, runtime_checkable

from hyprstream.errors import InvalidSettingsError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.canary import Trial
from hyprstream.runtime.journal_rows import Action, Decision
from hyprstream.store.records import Canary
from hyprstream.train.buffer import Fate, SampleBuffer
from hyprstream.train.gate import Gate
from hyprstream.train.sample import Sample

Weights = TypeVar("Weights")

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What the learning of one adapter may take on one day (UTC)."""

    steps: int = 2_000
    """Optimizer steps."""
    seconds: float = 7_200.0
    """Time of slices."""
    tokens: int = 4_000_000
    """Tokens that are computed for steps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerConfig:
    """How one adapter learns from its samples."""

    min_waiting: int = 32
    """Fewest samples that make a version."""
    max_samples: int = 128
    """Most samples that make one, used ones that are learnt again included."""
    samples_per_step: int = 16
    """Samples of an optimizer step."""
    anchors_per_step: int = 4
    """Texts of the base model's own that a step is held by."""
    epochs: float = 12.0
    """How often a sample is learnt from for one version, unless it stops being of use before."""
    eval_tokens: int = 256
    """Tokens that are measured at a time."""
    min_held_out: int = 12
    """Fewest samples to judge by; learning waits for them."""
    look_every: int = 8
    """Steps between looks at samples that are held out, and at whether trusted sets got worse
    than the gate allows, which ends it. A version is made of what was best. 0: never."""
    look_samples: int = 16
    """Samples that a look measures: held out ones, and of each trusted set."""
    patience: int = 2
    """Looks in a row that are no better than the best one before learning stops."""
    budget: Budget = field(default_factory=Budget)
    seed: int = 0
    """Decides the order of samples."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        counts = (
            "min_waiting", "max_samples", "samples_per_step", "anchors_per_step", "eval_tokens",
            "patience",
        )  # fmt: skip
        for name in counts:
            if getattr(self, name) < 1:
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint="Make it 1 or more."
                )
        if self.look_samples < 8:  # the bounds are not to be trusted below
            raise InvalidSettingsError(
                f"look_samples is {self.look_samples}", hint="Make it 8 or more."
            )
        if self.look_every < 0:
            raise InvalidSettingsError(
                f"look_every is {self.look_every}", hint="Make it 0 or more."
            )
        if not self.epochs > 0:
            raise InvalidSettingsError(f"epochs is {self.epochs}", hint="Make it 2 to 12.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Learner:
    """An adapter that learns.

    Attributes:
        name: The adapter.
        trusted: Samples that it must not get worse on, by the name of the set. Nothing of
            them is ever learnt from.
        uniform_loss: The logarithm of the vocabulary's size.
        spec: What the adapter looks like (`LoraSpec`), for the trainer.
        training: Optimizer and schedule (`TrainConfig`), for the trainer.
        config: How it learns.
        anchors: Text on which it stays close to the base model, if its training has a pull;
            not of the trusted sets.
    """

    name: AdapterName
    trusted: Mapping[str, Sequence[Sample]]
    uniform_loss: float
    spec: Any = None
    training: Any = None
    config: LearnerConfig = field(default_factory=LearnerConfig)
    anchors: Sequence[Sample] = ()


@runtime_checkable
class Stepwise(Protocol):
    """Work in pieces: `StepwisePass`."""

    def result(self) -> Any:
        """Return what came of it."""
        ...

    def advance(self) -> bool:
        """Do one piece; tell whether all is done."""
        ...


@runtime_checkable
class Training(Protocol):
    """What the loop asks of a trainer, each pass a piece at a time: `Trainer`."""

    @property
    def names(self) -> list[AdapterName]:
        """Names of the adapters under training."""
        ...

    def open(self, name: AdapterName, start: Any, *, spec: Any, config: Any) -> None:
        """Begin to train an adapter."""
        ...

    def close(self, name: AdapterName) -> None:
        """End it, without a trace."""
        ...

    def begin(
        self,
        name: AdapterName,
        samples: Sequence[Sample],
        *,
        anchors: Sequence[Sample] | None = None,
    ) -> Stepwise:
        """Return a pass that adds samples to the coming step."""
        ...

    def begin_apply(self, name: AdapterName) -> Stepwise:
        """Return what takes the step; its result has `loss`, `grad_norm` and `num_tokens`."""
        ...

    def begin_snapshot(self, name: AdapterName) -> Stepwise:
        """Return what makes weights of an adapter."""
        ...

    def begin_evaluation(
        self, weights: Any, samples: Sequence[Sample], *, batch_tokens: int = 2048
    ) -> Stepwise:
        """Return what measures the loss of each sample; None is the base model alone."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A version that came out of the loop.

    Attributes:
        version: Its id.
        canary: What it is for a while; None if the name points at it already.
    """

    version: VersionId
    canary: Canary | None = None


@runtime_checkable
class Versions(Protocol, Generic[Weights]):
    """What the loop asks of stored and installed versions; called on a thread that may wait."""

    def current(self, name: AdapterName) -> tuple[VersionId, Weights]:
        """Return the version that a name points at, and its weights."""
        ...

    def load(self, version: VersionId) -> Weights:
        """Return the weights of a version."""
        ...

    def publish(
        self,
        name: AdapterName,
        weights: Weights,
        *,
        parent: VersionId,
        numbers: Mapping[str, float],
        committed: Callable[[VersionId, float], None],
    ) -> Published:
        """Commit, tell, install, promote, in this order; or let it be a canary, by the policy.

        `committed` is told the version, and the share of requests that it answers at first.

        Raises:
            StaleParentError: The name does not point at the parent any more.
        """
        ...

    def canary(self, name: AdapterName) -> Canary | None:
        """Return the canary of a name, if one is out."""
        ...

    def promote_canary(self, name: AdapterName, canary: Canary, why: str) -> None:
        """Let a canary answer everybody.

        Raises:
            StaleParentError: It is not out any more.
        """
        ...

    def withdraw_canary(self, name: AdapterName, canary: Canary) -> None:
        """Take a canary back; errors as in `promote_canary`."""
        ...

    def has_served(self, name: AdapterName, canary: Canary) -> bool:
        """Tell whether a name was moved to what had been its canary."""
        ...

    def roll_back(self, name: AdapterName, *, expected: VersionId, why: str) -> VersionId:
        """Undo the promotion of a version; return the one that is back.

        Raises:
            StaleParentError: The name does not point at it any more.
        """
        ...


@runtime_checkable
class DecisionLog(Protocol):
    """Where decisions outlive the process: `Journal`."""

    def decide(self, decision: Decision, fate: Fate | None = None) -> int:
        """Keep a decision and what became of its samples; return its number."""
        ...

    def resolve(self, number: int, action: Action, fate: Fate | None = None) -> None:
        """Say how a publication ended, and what became of its samples."""
        ...


Phase = Literal["screening", "learning", "judging"]
"""What is being done for a version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LessonProgress:
    """How far the making of a version is.

    Attributes:
        adapter: Whose version.
        parent: The version that it began with.
        phase: What is being done.
        step: Optimizer steps that were taken.
        num_steps: All that will be; 0 before that is known.
        loss: Of the samples of the last step, before it, in nats a token.
        num_tokens: Tokens that were computed for steps.
    """

    adapter: AdapterName
    parent: VersionId
    phase: Phase
    step: int
    num_steps: int
    loss: float | None
    num_tokens: int


def _nobody(progress: LessonProgress) -> None:
    del progress


def _new(name: AdapterName, canary: Canary) -> Trial:
    del name
    return Trial(canary=canary)


def _nothing(name: AdapterName, since: float) -> Sequence[Sample]:
    del name, since
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopParts(Generic[Weights]):
    """What an adaptation loop joins.

    Attributes:
        trainer: Trains, on the engine thread.
        buffer: The samples.
        gate: Decides.
        versions: Stores and installs.
        journal: Remembers.
        io: Threads that may wait for disks.
        norm_of: The norm of all parameters of weights.
        clock: Seconds since 1970.
        tell: Told on the loop's thread how far a version is.
        arrived: Samples that are held out, came since a moment, and are no version's own words;
            called on a thread that may wait, as the next.
        trial: What is known of a canary and its parent.
    """

    trainer: Training
    buffer: SampleBuffer
    gate: Gate
    versions: Versions[Weights]
    journal: DecisionLog
    io: Executor
    norm_of: Callable[[Weights], float]
    clock: Callable[[], float]
    tell: Callable[[LessonProgress], None] = _nobody
    arrived: Callable[[AdapterName, float], Sequence[Sample]] = _nothing
    trial: Callable[[AdapterName, Canary], Trial] = _new


@dataclass(slots=True)
class Spent:
    """What the learning of one adapter took on a day."""

    day: int = 0
    steps: int = 0
    seconds: float = 0.0
    tokens: int = 0

    def today(self, now: float) -> "Spent":
        """Begin anew if another day has come."""
        day = int(now // _DAY_S)
        if day != self.day:
            self.day, self.steps, self.seconds, self.tokens = day, 0, 0.0, 0
        return self

    def is_within(self, budget: Budget) -> bool:
        """Tell whether more may be spent."""
        return (
            self.steps < budget.steps
            and self.seconds < budget.seconds
            and self.tokens < budget.tokens
        )


def day_start(now: float) -> float:
    """Return when the day (UTC) of a moment began, in seconds since 1970."""
    return now // _DAY_S * _DAY_S


def spent_on(decisions: Iterable[Decision], now: float) -> dict[AdapterName, Spent]:
    """Sum up what the decisions of a day say that learning took, for each adapter."""
    found: dict[AdapterName, Spent] = {}
    for decision in decisions:
        if decision.at >= day_start(now):
            spent = found.setdefault(decision.adapter, Spent(day=int(now // _DAY_S)))
            spent.steps += int(decision.numbers.get("steps", 0))
            spent.seconds += decision.numbers.get("seconds", 0.0)
            spent.tokens += int(decision.numbers.get("tokens", 0))
    return found
