"""Where the training of one adapter lies on the disk, who is at work there, and how to stop it.

    lock          held by the process that trains, for as long as it does
    working.json  how far it is, for people who ask; not synced, gone when it ends
    stop          somebody wants it to stop after its current step

A stop is a file that the process looks for between two steps: it needs no number of a process,
which could belong to another one by then. No torch.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from hyprstream import files
from hyprstream.refs import AdapterName, adapter_name

_LOCK = "lock"
_STOP = "stop"
_RUN = "run.json"  # of `train/resume.py`, which needs torch
_WORKING = "working.json"
_MAX_BYTES = 4 << 20  # of what is read of it
_MAX_CURVE = 2000  # points of it

Source = Literal["data", "samples"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Working:
    """How far a training is.

    Attributes:
        pid: The process.
        source: It learns from files, or from samples that were sent.
        began: When, in seconds since 1970.
        phase: What is being done.
        step: Steps that were taken.
        num_steps: All of them; 0 before that is known.
        loss: Of the last step.
        held_out_loss: As it was measured last.
        curve: Steps with their losses.
    """

    pid: int
    source: Source
    began: float
    phase: str
    step: int
    num_steps: int
    loss: float | None = None
    held_out_loss: float | None = None
    curve: tuple[tuple[int, float | None, float | None], ...] = ()


class TrainingPlace:
    """The place of one adapter.

    Args:
        folder: Of the places of all adapters.
        name: The adapter.

    Attributes:
        name: The adapter.
        folder: Its place.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name: AdapterName = adapter_name(name)
        self.folder = files.inside(folder, *self.name.split("/"))

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes out; whatever was asked of an earlier one is forgotten.

        Raises:
            CacheBusyError: Another process trains the adapter.
        """
        with files.lock(self.folder / _LOCK, f"the training of {self.name}", None):
            self._clear()
            try:
                yield
            finally:
                self._clear()

    def is_held(self) -> bool:
        """Tell whether a process trains the adapter."""
        return files.is_locked(self.folder / _LOCK)

    def has_saved(self) -> bool:
        """Tell whether a training on files was interrupted here."""
        return (self.folder / _RUN).exists()

    @property
    def is_stop_wanted(self) -> bool:
        """Tell the process that trains whether it shall stop."""
        return (self.folder / _STOP).exists()

    def tell(self, working: Working) -> None:
        """Let others see how far the training is, if the disk has room for that."""
        data = TypeAdapter(Working).dump_json(replace(working, curve=working.curve[-_MAX_CURVE:]))
        temporary = self.folder / f"{_WORKING}.new"
        with suppress(OSError):
            temporary.write_bytes(data)
            temporary.replace(self.folder / _WORKING)

    def working(self) -> Working | None:
        """Tell how far the training is; None if there is none, or it has said nothing yet."""
        if not self.is_held():
            return None
        try:
            with (self.folder / _WORKING).open("rb") as stream:
                return TypeAdapter(Working).validate_json(stream.read(_MAX_BYTES))
        except (OSError, ValidationError):  # not there yet, or of another version of this program
            return None

    def stop(
        self,
        timeout_s: float,
        *,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> bool:
        """Ask the process that trains to stop, and wait until it has.

        Returns:
            Whether it has; False if it did not within the time, or if none was there.

        Raises:
            InvalidSettingsError: The folder may not be written.
        """
        if not self.is_held():
            return False
        until = clock() + timeout_s
        with files.storage(self.folder):
            while self.is_held():
                # Again and again: a process that has just begun forgets what was asked before.
                (self.folder / _STOP).touch()
                if clock() >= until:
                    return False
                sleep(0.05)
            (self.folder / _STOP).unlink(missing_ok=True)
        return True

    def _clear(self) -> None:
        with files.storage(self.folder):
            for name in (_STOP, _WORKING, f"{_WORKING}.new"):
                (self.folder / name).unlink(missing_ok=True)
