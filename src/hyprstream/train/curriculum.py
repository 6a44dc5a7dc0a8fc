"""In which order samples come: easy ones first, or mixed with what was learnt earlier.

An order is a pure function of samples and a seed (`fit.Order`): a run that is resumed gets the
same one. Whether any of this helps depends on the data; docs/reference/training.md says what
was measured.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch

from hyprstream.errors import InvalidSettingsError
from hyprstream.train.fit import Order, shuffled
from hyprstream.train.sample import Sample

Difficulty = Literal["none", "length", "loss"]
Pacing = Literal["sorted", "competence"]

_DRAWN_AT_A_TIME = 32  # samples between two looks at the competence

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class CurriculumConfig:
    """What is easy, and how fast the rest follows."""

    difficulty: Difficulty = "none"
    """What makes a sample hard: its length, or its loss under the base model; none shuffles."""
    pacing: Pacing = "competence"
    """competence: draws from a growing share of the easiest (arXiv:1903.09848); sorted: every
    pass goes from easy to hard."""
    start_share: float = 0.1
    """Share of the samples, the easiest, that competence begins with."""
    passes: float = 1.0
    """After so many draws, in passes over the samples, all of them take part."""
    replay_share: float = 0.0
    """Share of samples that come from earlier data instead, 0 to 0.9."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        for name, least, most in (
            ("start_share", 1e-6, 1.0),
            ("passes", 1e-6, 1e6),
            ("replay_share", 0.0, 0.9),
        ):
            if not least <= getattr(self, name) <= most:
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint=f"Make it {least:g} to {most:g}."
                )


def order_of(config: CurriculumConfig, difficulties: Sequence[float]) -> Order:
    """Return the order that a config asks for, replay left out.

    Args:
        config: Which.
        difficulties: How hard each sample is; not read where nothing makes one hard.
    """
    if config.difficulty == "none":
        return shuffled
    if config.pacing == "sorted":
        return easy_first(difficulties)
    return by_competence(difficulties, config)


def competence(num_drawn: int, num_rising: float, start_share: float) -> float:
    """Return the share of samples that take part after some draws.

    The square root of a line, so that new samples come in at an even pace
    (arXiv:1903.09848, equation 7).

    Args:
        num_drawn: Draws so far.
        num_rising: Draws after which all take part.
        start_share: Share that takes part at first.

    Example:
        >>> [round(competence(n, 100, 0.1), 2) for n in (0, 25, 100, 500)]
        [0.1, 0.51, 1.0, 1.0]
    """
    risen = num_drawn * (1 - start_share**2) / num_rising + start_share**2
    return min(1.0, math.sqrt(risen))


def easy_first(difficulties: Sequence[float]) -> Order:
    """Go from easy to hard in every pass; chance decides between equals."""

    def order(samples: Sequence[Sample], seed: int) -> Iterator[list[Sample]]:
        _check(samples, difficulties)
        generator = torch.Generator().manual_seed(seed)
        while True:
            ties = torch.rand(len(samples), generator=generator).tolist()
            ranks = sorted(range(len(samples)), key=lambda i: (difficulties[i], ties[i]))
            yield [samples[i] for i in ranks]

    return order


def by_competence(difficulties: Sequence[float], config: CurriculumConfig) -> Order:
    """Draw from the easiest, of which there are more and more; with replacement."""

    def order(samples: Sequence[Sample], seed: int) -> Iterator[list[Sample]]:
        _check(samples, difficulties)
        generator = torch.Generator().manual_seed(seed)
        ranks = sorted(range(len(samples)), key=lambda i: difficulties[i])
        num_rising = config.passes * len(samples)
        num_drawn = 0
        while True:
            share = competence(num_drawn, num_rising, config.start_share)
            num_open = max(1, math.floor(share * len(samples)))
            drawn = torch.randint(num_open, (_DRAWN_AT_A_TIME,), generator=generator).tolist()
            yield [samples[ranks[i]] for i in drawn]
            num_drawn += _DRAWN_AT_A_TIME

    return order


def with_replay(order: Order, earlier: Sequence[Sample], share: float) -> Order:
    """Mix earlier samples in, so that they make up a share of all."""
    if not earlier or not share:
        return order

    def mixed(samples: Sequence[Sample], seed: int) -> Iterator[list[Sample]]:
        generator = torch.Generator().manual_seed(seed + 1)
        replayed = _endless(shuffled(earlier, seed + 2))
        owed = 0.0
        for run in order(samples, seed):
            owed += len(run) * share / (1 - share)
            both = [*run, *(next(replayed) for _ in range(int(owed)))]
            owed -= int(owed)
            places = torch.randperm(len(both), generator=generator).tolist()
            # The new ones keep their order among themselves, as a curriculum wants it.
            new = iter(run)
            old = iter(both[len(run) :])
            yield [next(new) if place < len(run) else next(old) for place in places]

    return mixed


def changed(order: Order, change: Callable[[Sample, torch.Generator], Sample]) -> Order:
    """Let every sample come in another shape each time, as `augment.without_tokens` makes it."""

    def other(samples: Sequence[Sample], seed: int) -> Iterator[list[Sample]]:
        generator = torch.Generator().manual_seed(seed + 3)
        for run in order(samples, seed):
            yield [change(sample, generator) for sample in run]

    return other


def _endless(runs: Iterator[list[_Item]]) -> Iterator[_Item]:
    for run in runs:
        yield from run


def _check(samples: Sequence[Sample], difficulties: Sequence[float]) -> None:
    assert len(samples) == len(difficulties), "there is one difficulty for each sample"
