"""What one version is made from, and how it is measured: for the adaptation loop. No torch.

What takes long is a generator that yields between pieces of work; each piece is one slice.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from hyprstream.refs import VersionId
from hyprstream.runtime.learners import Learner, Stepwise, Training, Weights
from hyprstream.train.buffer import Kept
from hyprstream.train.gate import Material, Pairs
from hyprstream.train.sample import Sample

Result = TypeVar("Result")
Pieces = Generator[None, None, Result]


@dataclass(slots=True)
class Lesson(Generic[Weights]):
    """What one version is made from, and what was found out on the way.

    Attributes:
        learner: Whose version it is.
        parent: The version that it begins with.
        start: The weights of that.
        kept: The samples that were taken.
        fresh: Numbers of those that are taken for the first time.
        learnt: Those of them that are learnt from.
        losses: Under the parent, of those that no look at them alone ruled out.
        association: Losses with their own prompts, and with those of others.
        numbers: For the journal.
        gradient_norms: One for each optimizer step.
        train_losses: Of the samples of each step, before it.
        num_tokens: Tokens that were computed for steps.
        trusted_losses: Under the parent, of those trusted samples that are looked at on the way.
        looked_at: Held out samples that are looked at on the way.
        best: The weights at the best look at which nothing had drifted too far.
        best_loss: Of the held out samples at that look; of no number before there was one.
        num_worse: Looks since then.
        drift: What had drifted too far when it stopped for that.
        seconds: Time of all slices.
    """

    learner: Learner
    parent: VersionId
    start: Weights
    kept: list[Kept]
    fresh: frozenset[int] = frozenset()
    learnt: list[Kept] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    association: Pairs | None = None
    numbers: dict[str, float] = field(default_factory=dict)
    gradient_norms: list[float] = field(default_factory=list)
    train_losses: list[float] = field(default_factory=list)
    num_tokens: int = 0
    trusted_losses: dict[str, list[float]] = field(default_factory=dict)
    looked_at: list[Sample] = field(default_factory=list)
    best: Weights | None = None
    best_loss: float = math.inf
    num_worse: int = 0
    drift: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the samples that were taken."""
        return tuple(kept.id for kept in self.kept)

    @property
    def material(self) -> Material:
        """What the gate is told of the samples."""
        return Material(
            losses=self.losses,
            association=self.association,
            uniform_loss=self.learner.uniform_loss,
            num_samples=len(self.kept),
            num_suspects=int(self.numbers["suspects"]),
        )


def run(work: Stepwise) -> Pieces[Any]:
    """Do work to its end and return what came of it."""
    while not work.advance():
        yield
    yield
    return work.result()


def spread(number: int, most: int) -> list[int]:
    """Choose so many of a number of places, evenly."""
    if number <= most:
        return list(range(number))
    return [place * number // most for place in range(most)]


def losses(
    trainer: Training, lesson: Lesson[Weights], weights: Weights | None, samples: Sequence[Sample]
) -> Pieces[list[float]]:
    """Measure an adapter on samples; None is the base model."""
    return (yield from measured(trainer, weights, samples, lesson.learner.config.eval_tokens))


def measured(
    trainer: Training, weights: Weights | None, samples: Sequence[Sample], eval_tokens: int
) -> Pieces[list[float]]:
    """Measure an adapter on samples, so many tokens at a time; None is the base model."""
    longest = max((len(sample.token_ids) for sample in samples), default=0)
    batch_tokens = max(eval_tokens, longest)
    found: list[float] = yield from run(
        trainer.begin_evaluation(weights, samples, batch_tokens=batch_tokens)
    )
    return found


def pair(
    trainer: Training, lesson: Lesson[Weights], candidate: Weights, samples: Sequence[Sample]
) -> Pieces[Pairs]:
    """Measure parent and candidate on the same samples."""
    before = yield from losses(trainer, lesson, lesson.start, samples)
    after = yield from losses(trainer, lesson, candidate, samples)
    return Pairs(before=before, after=after)
