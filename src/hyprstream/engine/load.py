"""How busy an engine is: numbers that the engine thread writes down and any thread may read."""

import time
from collections.abc import Callable
from dataclasses import dataclass

_WINDOW_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What an engine holds between two steps.

    Attributes:
        num_waiting: Sequences that wait, preempted ones included.
        num_running: Sequences that hold blocks and a slot.
        num_blocks: Blocks of KV memory.
        num_free_blocks: Those that no sequence holds.
    """

    num_waiting: int = 0
    num_running: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0


class TokenMeter:
    """Counts tokens of answers, in all and by second. One thread adds, any thread reads.

    Args:
        clock: Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._num_tokens = 0
        # One more than are looked at: the second that is not over yet.
        self._seconds = [(-1, 0)] * (_WINDOW_S + 1)

    @property
    def num_tokens(self) -> int:
        """Tokens since the beginning."""
        return self._num_tokens

    @property
    def per_second(self) -> float:
        """Tokens a second, over the last ten seconds that are over."""
        now = int(self._clock())
        window = range(now - _WINDOW_S, now)
        return sum(number for second, number in list(self._seconds) if second in window) / _WINDOW_S

    def add(self, number: int) -> None:
        """Count tokens that were just chosen."""
        self._num_tokens += number
        now = int(self._clock())
        place = now % len(self._seconds)
        second, before = self._seconds[place]
        self._seconds[place] = (now, number + (before if second == now else 0))
