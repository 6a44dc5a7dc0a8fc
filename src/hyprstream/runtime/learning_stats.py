"""What learning comes to, in numbers, for whoever watches a server. No torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hyprstream.refs import AdapterName
from hyprstream.runtime.journal_rows import Action
from hyprstream.runtime.learners import LessonProgress


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningStats:
    """What learning has come to since the process began.

    Attributes:
        decided: Decisions by what was decided.
        samples: Of each adapter what is kept, as `SampleBuffer.counts` has it.
        losses: Of each adapter the loss of its last step, in nats a token.
        num_steps: Optimizer steps.
        num_tokens: Tokens that were computed for them.
        has_failed: Learning was switched off by an error.
    """

    decided: Mapping[Action, int] = field(default_factory=dict)
    samples: Mapping[AdapterName, Mapping[str, int]] = field(default_factory=dict)
    losses: Mapping[AdapterName, float] = field(default_factory=dict)
    num_steps: int = 0
    num_tokens: int = 0
    has_failed: bool = False


class Progress:
    """Adds up what lessons tell of themselves: written by one thread, read by any."""

    def __init__(self) -> None:
        self._losses: dict[AdapterName, float] = {}
        self._num_steps = 0
        self._num_tokens = 0
        self._last: LessonProgress | None = None

    def follow(self, progress: LessonProgress) -> None:
        """Take note of how far a lesson is."""
        last = self._last
        goes_on = (
            last is not None
            and (last.adapter, last.parent) == (progress.adapter, progress.parent)
            and last.step <= progress.step
        )
        before = (last.step, last.num_tokens) if goes_on and last is not None else (0, 0)
        self._num_steps += progress.step - before[0]
        self._num_tokens += progress.num_tokens - before[1]
        if progress.loss is not None:
            self._losses = {**self._losses, progress.adapter: progress.loss}
        self._last = progress

    def stats(
        self,
        *,
        decided: Mapping[Action, int],
        samples: Mapping[AdapterName, Mapping[str, int]],
        has_failed: bool,
    ) -> LearningStats:
        """Put all numbers together."""
        return LearningStats(
            decided=decided,
            samples=samples,
            losses=self._losses,
            num_steps=self._num_steps,
            num_tokens=self._num_tokens,
            has_failed=has_failed,
        )
