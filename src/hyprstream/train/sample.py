"""Examples to learn from. Plain data, no torch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from hyprstream.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens, and which of them are to be predicted from those before.

    Attributes:
        token_ids: The tokens.
        counts: For each token whether its prediction counts; that of the first cannot.
        weight: How much each of them counts, beside other samples.

    Example:
        >>> Sample.answer([1, 2], [3, 4]).counts
        (False, False, True, True)
    """

    token_ids: tuple[int, ...]
    counts: tuple[bool, ...]
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Reject what nothing can be learnt from.

        Raises:
            InvalidRequestError: Lengths differ, no token counts, an id is below 0, or the
                weight is no finite number above 0.
        """
        if len(self.token_ids) != len(self.counts):
            raise _invalid(f"{len(self.token_ids)} tokens and {len(self.counts)} marks")
        if not any(self.counts[1:]):
            raise _invalid("no token after the first counts")
        if min(self.token_ids) < 0:
            raise _invalid(f"a token id is {min(self.token_ids)}")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise _invalid(f"its weight is {self.weight}")

    @classmethod
    def text(cls, token_ids: Sequence[int]) -> Self:
        """Make a sample of which all tokens count."""
        return cls(tuple(token_ids), (True,) * len(token_ids))

    @classmethod
    def answer(cls, prompt: Sequence[int], answer: Sequence[int]) -> Self:
        """Make a sample of which the tokens of the answer count."""
        marks = (False,) * len(prompt) + (True,) * len(answer)
        return cls((*prompt, *answer), marks)

    @property
    def num_computed(self) -> int:
        """Tokens that have to be computed: those before the last that counts."""
        return len(self.counts) - 1 - self.counts[::-1].index(True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two answers to one prompt, of which one is better.

    Attributes:
        chosen: That one.
        rejected: The other.
        reference: By how much more likely the first one was before, as the difference of
            the logarithms of both, in nats.
    """

    chosen: Sample
    rejected: Sample
    reference: float = 0.0

    @property
    def samples(self) -> tuple[Sample, Sample]:
        """Both, the better one first."""
        return self.chosen, self.rejected

    def against(self, chosen: float, rejected: float) -> Self:
        """Return the pair with the log probabilities that a reference gives both."""
        return replace(self, reference=chosen - rejected)

    @property
    def num_computed(self) -> int:
        """Tokens of both that have to be computed."""
        return self.chosen.num_computed + self.rejected.num_computed

    @property
    def weight(self) -> float:
        """How much it counts, beside other pairs."""
        return self.chosen.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """An answer that somebody liked, or did not.

    Attributes:
        sample: The answer.
        liked: Whether.
        reference: Logarithm of how likely it was before, in nats.
    """

    sample: Sample
    liked: bool
    reference: float = 0.0

    @property
    def samples(self) -> tuple[Sample]:
        """The answer."""
        return (self.sample,)

    def against(self, log_probability: float) -> Self:
        """Return the same with the log probability that a reference gives it."""
        return replace(self, reference=log_probability)

    @property
    def num_computed(self) -> int:
        """Tokens that have to be computed."""
        return self.sample.num_computed

    @property
    def weight(self) -> float:
        """How much it counts, beside other answers."""
        return self.sample.weight


def _invalid(problem: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"a sample cannot be learnt from: {problem}",
        hint="Give token ids, a mark for each, and mark at least one after the first.",
    )
