"""What a training run is asked to do, and what came of it. Plain data, also as JSON."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from hyprstream.errors import CorruptError, InvalidSettingsError
from hyprstream.refs import VersionId
from hyprstream.train.augment import AugmentConfig
from hyprstream.train.config import TrainConfig
from hyprstream.train.curriculum import CurriculumConfig
from hyprstream.train.dataset import DataConfig
from hyprstream.train.evaluate import Evaluation
from hyprstream.train.run import RunConfig

Method = Literal["answers", "pairs", "thumbs"]
"""What is learnt of the data: answers as they stand, which of two is better, what was liked."""

USUAL_TRAINING: Mapping[str, Any] = MappingProxyType(
    {
        "learning_rate": 5e-4,
        "schedule": "cosine",
        "final_share": 0.1,
        "base_pull": 1.0,
    }
)
"""Fields of `TrainConfig` as they are where nobody says otherwise, in the foreground:
what learns facts and forgets little (`python -m benchmarks forgetting`)."""

USUAL_STEPS = 240
"""Fewest steps of a run of which nobody says how long it is; it stops when it gets no better."""

_USUAL_EPOCHS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """What a run is asked to do.

    Attributes:
        data: Files of records.
        held_out: Files of records that are judged by; none: a share of the prompts of `data`.
        method: What to learn of them; None takes what they have, which may be of one sort only.
        data_config: How files become a data set.
        augment: Changed copies of what is trained on.
        curriculum: In which order samples come.
        replay: Files of earlier records that are mixed in.
        train: Fields of `TrainConfig`, as far as they differ from what is usual.
        run: Fields of `RunConfig`, likewise; without `num_steps`, `epochs` decides.
        epochs: Passes over the data; None takes three, or as many as `USUAL_STEPS` are.
        max_tokens: Longest sample; None takes what a batch and the model hold.
    """

    data: tuple[Path, ...]
    held_out: tuple[Path, ...] = ()
    method: Method | None = None
    data_config: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    replay: tuple[Path, ...] = ()
    train: Mapping[str, Any] = field(default_factory=dict)
    run: Mapping[str, Any] = field(default_factory=dict)
    epochs: float | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Reject what contradicts itself, before a model is loaded.

        Raises:
            InvalidSettingsError: It does.
        """
        if not self.data:
            raise InvalidSettingsError("there is no data to train on", hint="Name a file.")
        if self.epochs is not None and not 0 < self.epochs <= 1000:
            raise InvalidSettingsError(
                f"epochs is {self.epochs}", hint="Make it above 0, and at most 1000."
            )
        if self.max_tokens is not None and self.max_tokens < 2:
            raise InvalidSettingsError(
                f"max_tokens is {self.max_tokens}", hint="Make it 2 or more."
            )
        if bool(self.replay) != bool(self.curriculum.replay_share):
            raise InvalidSettingsError(
                "earlier data and the share that comes of it go together",
                hint="Give both, or neither.",
            )
        self.completed(num_steps=max(1, int(self.run.get("num_steps", 2))))

    def completed(self, num_steps: int) -> tuple[TrainConfig, RunConfig]:
        """Return all settings of a run of so many steps.

        Raises:
            InvalidSettingsError: One is unknown or out of range.
        """
        usual = {**USUAL_TRAINING, "warmup_steps": min(10, num_steps // 10)}
        for given, config in ((self.train, TrainConfig), (self.run, RunConfig)):
            unknown = given.keys() - {f.name for f in fields(config)}
            if unknown:
                raise InvalidSettingsError(
                    f"{min(unknown)!r} is no setting of training", hint="See the reference page."
                )
        train = TrainConfig(**{**usual, **self.train, "total_steps": num_steps})
        return train, RunConfig(**{**self.run, "num_steps": num_steps})

    def num_steps(self, steps_of: Callable[[float], int]) -> int:
        """Return how many steps are asked for.

        Args:
            steps_of: Steps that so many passes take.
        """
        if "num_steps" in self.run:
            return int(self.run["num_steps"])
        if self.epochs is not None:
            return steps_of(self.epochs)
        return max(USUAL_STEPS, steps_of(_USUAL_EPOCHS))

    def plain(self) -> dict[str, Any]:
        """Return the plan as what JSON can say."""
        return {
            **asdict(self),
            **{
                name: [str(file.absolute()) for file in getattr(self, name)]
                for name in ("data", "held_out", "replay")
            },
            "train": dict(self.train),
            "run": dict(self.run),
        }

    @classmethod
    def of_plain(cls, stored: Mapping[str, Any]) -> "TrainingPlan":
        """Return the plan that `plain` gave.

        Raises:
            CorruptError: It is none.
        """
        try:
            given = dict(stored)
            return cls(
                data=tuple(map(Path, given.pop("data"))),
                held_out=tuple(map(Path, given.pop("held_out"))),
                replay=tuple(map(Path, given.pop("replay"))),
                data_config=DataConfig(**given.pop("data_config")),
                augment=AugmentConfig(**given.pop("augment")),
                curriculum=CurriculumConfig(**given.pop("curriculum")),
                # JSON has no tuples, of which settings are.
                train={
                    name: tuple(value) if isinstance(value, list) else value
                    for name, value in given.pop("train").items()
                },
                **given,
            )
        except (KeyError, TypeError) as error:
            raise CorruptError(
                f"the plan of the saved training cannot be read: {error}",
                hint="Begin the training again.",
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What training costs on text of the base model's own.

    Attributes:
        loss: Of that text with the adapter, in nats a token.
        base_loss: Without it.
    """

    loss: float
    base_loss: float

    @property
    def share(self) -> float:
        """By what share the loss has risen."""
        return self.loss / self.base_loss - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What came of a run.

    Attributes:
        version: The version that was made; None if nothing became better than its parent.
        parent: What the run began with.
        step: After how many steps it was best.
        is_promoted: The name points at it now.
        why: Why it does or does not.
        metrics: What was measured of it, as its manifest says.
        drift: What it costs on other text; None where nothing held it.
    """

    version: VersionId | None
    parent: VersionId
    step: int
    is_promoted: bool
    why: str
    metrics: Mapping[str, float]
    drift: Drift | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """How an adapter and its base model do on samples.

    Attributes:
        version: Of the adapter.
        adapter: With it.
        base: Without.
        num_better: Samples of which the adapter's loss is lower.
    """

    version: VersionId
    adapter: Evaluation
    base: Evaluation
    num_better: int
