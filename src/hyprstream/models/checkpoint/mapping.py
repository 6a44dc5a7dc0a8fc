"""One file mapped into memory, whose bytes come out as tensors without being copied.

Nothing is parsed here: a reader has checked every range against `size_bytes` before it asks
for a tensor, so a wrong range is our own fault and is asserted.

A mapped file must not shrink while it is in use: the kernel answers a read beyond its new end
with SIGBUS, which no program survives. Replace model files by renaming, never by rewriting.
"""

import math
import mmap
import os
import platform
import stat
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Shaped, UInt8
from torch import Tensor

from hyprstream.errors import CorruptWeightsError, ModelNotFoundError, UnavailableError

# Linux counts a private, writable mapping as memory that may be needed, and refuses one that is
# larger than the machine's memory unless told that it need not be kept in reserve. The mmap
# module of Python 3.11 does not name the flag; its value is the same on these machines.
_NO_RESERVE = (
    0x4000 if sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64"} else 0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """Which file a path leads to, and when it was last written: equal states, equal content.

    Except that a file may be written twice within one tick of the clock.
    """

    device: int
    inode: int
    size_bytes: int
    modified_ns: int

    @classmethod
    def of(cls, file: Path | int) -> "FileState":
        """Ask the system about a path or an open file."""
        found = os.stat(file)  # noqa: PTH116 - a descriptor has no path
        return cls(
            device=found.st_dev,
            inode=found.st_ino,
            size_bytes=found.st_size,
            modified_ns=found.st_mtime_ns,
        )


class MappedFile:
    """A read-only view of one file.

    The mapping is private and writable: torch asks for memory that it may write, and what
    somebody writes by mistake stays in this process. The file never changes.

    Every tensor made here keeps the mapping alive; it goes with the last of them and this
    object. `tests/models/checkpoint/test_mapping.py` checks both statements.

    Attributes:
        file: Path of the file.
        data: The mapping. It is never closed by hand: tensors point into it.
        size_bytes: Length of the file when it was mapped.
        state: What the system said of it then; `FileState.of` tells whether it still does.
    """

    def __init__(self, file: Path, data: mmap.mmap, state: "FileState") -> None:
        self.file = file
        self.data = data
        self.size_bytes = len(data)
        self.state = state

    @classmethod
    def open(cls, file: Path) -> "MappedFile":
        """Map `file`.

        Raises:
            ModelNotFoundError: There is no such file, or it may not be read.
            CorruptWeightsError: The file is empty.
            UnavailableError: The system has no room for the mapping.
        """
        try:
            if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait for its writer
                raise ModelNotFoundError(f"{file} is not a regular file")
            stream = file.open("rb")
        except (OSError, ValueError) as error:  # ValueError: the name holds a NUL
            reason = getattr(error, "strerror", None) or error
            raise ModelNotFoundError(
                f"{file} cannot be opened: {reason}",
                hint="Check the path and that this user may read it.",
            ) from error
        with stream:
            try:
                state = FileState.of(stream.fileno())
                data = mmap.mmap(
                    stream.fileno(),
                    0,
                    flags=mmap.MAP_PRIVATE | _NO_RESERVE,
                    prot=mmap.PROT_READ | mmap.PROT_WRITE,
                )
            except ValueError as error:  # what mmap says of no bytes
                raise CorruptWeightsError(file, "it is empty") from error
            except OSError as error:
                raise UnavailableError(
                    f"{file} cannot be mapped into memory: {error.strerror}",
                    hint="Free memory or raise the process's limits, and try again.",
                ) from error
        return cls(file, data, state)

    def rows(self, offset: int, shape: Sequence[int]) -> UInt8[Tensor, "..."]:
        """Give the bytes from `offset` on, shaped; no copy."""
        size_bytes = math.prod(shape)
        if size_bytes == 0:  # torch.frombuffer refuses an empty range
            return torch.empty(tuple(shape), dtype=torch.uint8)
        assert 0 <= offset <= self.size_bytes - size_bytes, "range was not checked by the reader"
        flat = torch.frombuffer(self.data, dtype=torch.uint8, count=size_bytes, offset=offset)
        return flat.view(tuple(shape))

    def tensor(
        self, offset: int, shape: Sequence[int], dtype: torch.dtype
    ) -> Shaped[Tensor, "..."]:
        """Give the numbers from `offset` on; no copy, unless they are out of step with memory.

        Neither format forces numbers onto a multiple of their size. Reading those in place is
        undefined in C++, so they are copied.
        """
        if math.prod(shape) == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        flat = self.rows(offset, [math.prod(shape) * dtype.itemsize])
        if offset % dtype.itemsize:
            flat = flat.clone()
        return flat.view(dtype).view(tuple(shape))

    def release(self, offset: int, size_bytes: int) -> None:
        """Let go of the memory that holds whole pages of a range; reading them brings it back.

        Pages that the range shares with its neighbours stay. Anything written into a tensor
        of the range is lost.
        """
        start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (offset + size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < stop:
            self.data.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def release_all(self) -> None:
        """Let go of all memory that holds pages of the file."""
        self.data.madvise(mmap.MADV_DONTNEED)


def is_folder(path: Path) -> bool:
    """Tell whether `path` is a folder; what cannot be looked at is none, and fails on opening."""
    try:
        return path.is_dir()
    except OSError:
        return False
