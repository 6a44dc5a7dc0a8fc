"""Ctrl-C while something goes on that should end well."""

import signal
from types import FrameType, TracebackType
from typing import Any


class Stopping:
    """Turns the first Ctrl-C of a `with` block into a wish; the second one is obeyed at once."""

    def __init__(self) -> None:
        self.is_wanted = False
        self._before: Any = None

    def __enter__(self) -> "Stopping":
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.is_wanted:
            raise KeyboardInterrupt
        self.is_wanted = True
