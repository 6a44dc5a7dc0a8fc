"""Background work beside serving: what it looks like, and how much time it may take.

Plain Python; runs on the engine thread.
"""

import math
from typing import Protocol, runtime_checkable

_WINDOW_S = 1.0  # unused share is kept for so long: it bounds how much may be caught up at once
_FADING = 0.98  # of the longest slice, by which the next is expected: half of it in 34 slices


@runtime_checkable
class BackgroundWork(Protocol):
    """Work that the engine does between steps: training in production, a counter in tests."""

    def ready(self) -> bool:
        """Tell whether there is a slice to run. Asked after every step: it must be cheap."""
        ...

    def run_slice(self) -> None:
        """Do one bounded piece of work, tens of milliseconds; no request waits longer."""
        ...


class TimeShare:
    """Keeps background slices within a share of the time while requests wait.

    Every busy second earns `share` seconds for slices and every slice spends what it took.
    A slice may begin while something is left, so slices exceed their share by one slice at
    most, however long the engine runs. What is earned and not used lapses after a second's
    worth, so that no burst of slices follows a long time without any.

    Slices come in bursts: one after so many steps, of bounded length. Of the gaps between two
    tokens few are then longer at all, and those by no more than a burst; evenly spread, the
    same time would make every gap longer (docs/decisions/0007-slices.md).

    Invariants, checked by `test_background.py`: after any history of steps and slices, the
    time of the slices is at most `share` of the whole plus one slice; between two steps it is
    at most `burst_s`, if no slice is longer than one before it and none alone is longer.
    """

    def __init__(self, share: float, *, burst_s: float = math.inf, burst_every: int = 1) -> None:
        self._share = share
        self._burst_s = burst_s
        self._burst_every = burst_every
        self._left_s = 0.0
        self._num_steps = 0  # since the last burst
        self._spent_s = 0.0  # since the last step
        self._expected_s = 0.0  # what a slice may take

    @property
    def allows_slice(self) -> bool:
        """Tell whether a slice may begin although requests wait."""
        if self._left_s <= 0:
            return False
        if self._spent_s:
            return self._spent_s + self._expected_s <= self._burst_s
        return self._num_steps >= self._burst_every

    def add_step(self, seconds: float) -> None:
        """Count the time of one serving step."""
        if self._spent_s:
            self._num_steps, self._spent_s = 0, 0.0
        self._num_steps += 1
        self._left_s = min(self._left_s + self._share * seconds, self._share * _WINDOW_S)

    def add_slice(self, seconds: float) -> None:
        """Count the time of one slice that ran while requests waited."""
        self._left_s += (self._share - 1) * seconds
        self._spent_s += seconds
        self._expected_s = max(seconds, _FADING * self._expected_s)
