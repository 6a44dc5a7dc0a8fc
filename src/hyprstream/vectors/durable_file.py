"""A file that is on the disk when it is closed, written there while more of it comes."""

import fcntl
import io
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import pyarrow as pa
from typing_extensions import Buffer, override

_CHUNK_BYTES = 8 << 20
_DIRECT: int = getattr(os, "O_DIRECT", 0)


class DurableFile(io.RawIOBase):
    """A new file; all that was written is on the disk when its context is left without an error.

    What is larger than a chunk goes around the page cache where the file system lets it
    (`O_DIRECT`): the kernel then neither copies the bytes nor looks for memory to keep them in.
    Measured for 1.5 GB: 0.06 s of the processor instead of 0.4, and instead of 4 on a virtual
    machine whose host had to find that memory first. Whoever reads the file first reads the disk.

    Args:
        path: Of the file, which may not exist yet.
        chunk_bytes: So many are written at once, a whole number of pages.

    Raises:
        OSError: It cannot be made. `write` and leaving the context raise it as well, `write` also
            for what was written before.
    """

    def __init__(self, path: Path, chunk_bytes: int = _CHUNK_BYTES) -> None:
        super().__init__()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        self._is_direct: bool | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hyprstream-disk")
        self._doing: Future[None] | None = None
        self._chunk = self._other = mmap.mmap(-1, chunk_bytes)  # aligned, as O_DIRECT wants it
        self._num_held = 0

    @override
    def writable(self) -> bool:
        return True

    @override
    def write(self, data: Buffer | pa.Buffer) -> int:
        """Take bytes, and write full chunks on another thread."""
        with memoryview(data).cast("B") as given:
            done = 0
            while done < len(given):
                size = min(len(given) - done, len(self._chunk) - self._num_held)
                self._chunk[self._num_held : self._num_held + size] = given[done : done + size]
                self._num_held += size
                done += size
                if self._num_held == len(self._chunk):
                    self._hand_over()
            return done

    @override
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._settle()
                self._go_direct(is_wanted=False)  # what is left is no whole number of blocks
                self._write_all(self._chunk, self._num_held)
                os.fsync(self._descriptor)
        finally:
            self.close()

    @override
    def close(self) -> None:
        """Give up the file; without having left the context, what it holds is anyone's guess."""
        if not self.closed:
            self._thread.shutdown(wait=True)
            os.close(self._descriptor)
        super().close()

    def _hand_over(self) -> None:
        """Let the thread write the chunk, and go on with the one that it has written."""
        self._settle()
        if self._is_direct is None:
            self._is_direct = self._go_direct(is_wanted=True)
            self._other = mmap.mmap(-1, len(self._chunk))
        self._doing = self._thread.submit(self._write_chunk, self._chunk)
        self._chunk, self._other = self._other, self._chunk
        self._num_held = 0

    def _settle(self) -> None:
        if self._doing is not None:
            doing, self._doing = self._doing, None
            doing.result()  # an error of the disk is told once, to whoever asked

    def _write_chunk(self, chunk: mmap.mmap) -> None:
        self._write_all(chunk, len(chunk))
        if not self._is_direct:
            os.fdatasync(self._descriptor)  # so that little is left at the end

    def _write_all(self, chunk: mmap.mmap, num_bytes: int) -> None:
        with memoryview(chunk) as view:
            done = 0
            while done < num_bytes:
                done += os.write(self._descriptor, view[done:num_bytes])

    def _go_direct(self, *, is_wanted: bool) -> bool:
        """Write around the page cache from now on, or no longer; tell whether it does."""
        if not _DIRECT:
            return False
        flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
        flags = flags | _DIRECT if is_wanted else flags & ~_DIRECT
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags)
        except OSError:  # a file system that cannot
            return False
        return is_wanted
