"""Runs a program of this package on a stranger's data, where it can do no harm.

The program gets a process of its own with bounded processor time, memory and file sizes. It
is a single file that is run by its path and imports nothing of this package.
"""

import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_WALL_PER_CPU = 4  # a busy machine gives a process a quarter of a core


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a guarded process may take.

    Attributes:
        seconds: Processor time.
        memory_bytes: Addresses, besides those of the libraries that it imports.
        output_bytes: Length of any file that it writes.
    """

    seconds: int
    memory_bytes: int
    output_bytes: int


def _environment(folder: str) -> dict[str, str]:
    """Return what the program finds its libraries with, and none of this process's secrets."""
    return {
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HOME": folder,
        "OMP_NUM_THREADS": "1",
    }


def run(program: Path, argument: str, data: bytes, limits: Limits) -> bytes | None:
    """Run a program and return what it wrote; None if it failed or took more than it may.

    Args:
        program: Its file. It is called with the three limits, the argument and the path of
            the file to write; it sets the limits itself, first of all.
        argument: What to work on.
        data: Its standard input.
        limits: What it may take.
    """
    numbers = (limits.seconds, limits.memory_bytes, limits.output_bytes)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        command = [sys.executable, "-P", str(program), *map(str, numbers), argument, str(output)]
        try:
            done = subprocess.run(  # noqa: S603 - this interpreter, a file of this package
                command,
                input=data,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=limits.seconds * _WALL_PER_CPU,
                env=_environment(folder),
                cwd=folder,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return None
        if done.returncode != 0 or not output.is_file():
            return None
        return output.read_bytes()
