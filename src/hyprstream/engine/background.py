"""Background work beside serving: what it looks like, and how much time it may take.

Plain Python; runs on the engine thread.
"""

from typing import Protocol, runtime_checkable

_WINDOW_S = 1.0  # unused share is kept for so long: it bounds how much may be caught up at once


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

    Invariant, checked by `test_background.py`: after any history of steps and slices, the
    time of the slices is at most `share` of the whole plus one slice.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self._left_s = 0.0

    @property
    def allows_slice(self) -> bool:
        """Tell whether a slice may begin although requests wait."""
        return self._left_s > 0

    def add_step(self, seconds: float) -> None:
        """Count the time of one serving step."""
        self._left_s = min(self._left_s + self._share * seconds, self._share * _WINDOW_S)

    def add_slice(self, seconds: float) -> None:
        """Count the time of one slice that ran while requests waited."""
        self._left_s += (self._share - 1) * seconds
