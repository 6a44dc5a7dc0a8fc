"""Lets the disk write what was written, while more of it comes: at the end little is left."""

import os
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

_EVERY_BYTES = 64 << 20


class Syncing:
    """Makes a file durable bit by bit; all of it is when the context is left without an error.

    Args:
        descriptor: Of the file, which stays open meanwhile.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hyprstream-sync")
        self._doing: Future[None] | None = None
        self._num_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self._settle()
            os.fsync(self._descriptor)

    def wrote(self, num_bytes: int) -> None:
        """Take note that so much was written.

        Raises:
            OSError: What was written before could not be kept.
        """
        self._num_bytes += num_bytes
        if self._num_bytes < _EVERY_BYTES or (self._doing and not self._doing.done()):
            return
        self._settle()
        self._num_bytes = 0
        self._doing = self._thread.submit(os.fdatasync, self._descriptor)

    def _settle(self) -> None:
        if self._doing is not None:
            self._doing.result()  # an error of the disk is told once, to whoever asked
            self._doing = None
