"""Bodies about adapters, their learning, and feedback."""

from typing import Annotated, Literal

from pydantic import Field

from hyprstream.runtime import LearningPolicy, LoraSpec, Recipe
from hyprstream.server.schemas.sampling import Strict

Name = Annotated[str, Field(min_length=1, max_length=200)]
Why = Annotated[str, Field(max_length=2000)]


class CreateAdapter(Strict):
    """An adapter to make: it adds nothing yet."""

    name: Name
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """Without it twice the rank."""
    target_modules: Annotated[tuple[str, ...], Field(min_length=1, max_length=512)] = (
        "q_proj",
        "v_proj",
    )
    """Names of linear layers; `all` is every one but the output head."""
    kind: Literal["low_rank", "sparse", "tiny"] = "low_rank"
    sparsity: Annotated[float, Field(ge=0, le=0.999)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    why: Why = ""

    @property
    def recipe(self) -> Recipe:
        """What it is made from.

        Raises:
            InvalidSettingsError: A value is out of range.
        """
        spec = LoraSpec(
            rank=self.rank,
            alpha=2.0 * self.rank if self.alpha is None else self.alpha,
            targets=self.target_modules,
            kind=self.kind,
            sparsity=self.sparsity,
        )
        return Recipe(spec=spec, seed=self.seed)


class Promote(Strict):
    """The version that a name is to point at."""

    version: Annotated[str, Field(min_length=4, max_length=64)] | None = None
    """Its id, or the first four digits or more of it."""
    tag: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    """A tag that stands for it."""
    why: Why = ""


class Rollback(Strict):
    """Why the last promotion is undone."""

    why: Why = ""


class Feedback(Strict):
    """What a user says of an answer: one of the three."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    """Of the completion."""
    index: Annotated[int, Field(ge=0, lt=64)] = 0
    """Which of its choices."""
    thumbs: Literal["up", "down"] | None = None
    score: Annotated[float, Field(ge=0, le=1)] | None = None
    """From 0.5 on it counts as thumbs up, below as thumbs down."""
    correction: Annotated[str, Field(min_length=1, max_length=65_536)] | None = None
    """What the answer should have been."""


class StartLearning(Strict):
    """What an adapter learns from the traffic, and what that may take on a day (UTC)."""

    learn: Literal["feedback", "all"] = "feedback"
    steps_per_day: Annotated[int, Field(ge=0)] | None = None
    seconds_per_day: Annotated[float, Field(ge=0)] | None = None
    tokens_per_day: Annotated[int, Field(ge=0)] | None = None
    keep_days: Annotated[float, Field(ge=0)] | None = None
    """Days after which samples are deleted; 0: never."""
    keep_samples: Annotated[int, Field(ge=0)] | None = None
    """Most samples that are kept."""
    canary: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of requests that a new version answers until it has proved itself; 0: all, at once."""

    @property
    def policy(self) -> LearningPolicy:
        """The same as a plain value."""
        return LearningPolicy(**self.model_dump())
