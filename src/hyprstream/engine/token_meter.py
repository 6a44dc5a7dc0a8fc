"""How fast an engine answers: written down by its thread, read by any."""

import time
from collections.abc import Callable

_WINDOW_S = 10


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
