"""Shows how long work goes: bytes, rate and time left on a terminal, one line each in a log."""

from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from hyprstream.cli.text import in_bytes, one_line


@dataclass(slots=True)
class _Phase:
    task: TaskID
    total_bytes: int | None
    num_bytes: int = 0


class TransferProgress:
    """Follows phases on stderr, and the phases within them: a model and its file, two bars.

    The display appears with the first phase and is gone after `with`, so that a model that
    is cached already loads without a flicker. Of what is over, only outermost phases that
    moved bytes stay in sight.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._open: list[_Phase] = []
        self._bars = Progress(
            TextColumn("{task.fields[indent]}{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )

    def start(self, name: str, total_bytes: int | None) -> None:
        """Begin a phase within those that have begun."""
        label = one_line(name)
        if self._bars.disable:
            if not self._quiet:
                length = f" ({in_bytes(total_bytes)})" if total_bytes is not None else ""
                self._console.print(f"{label}{length}", markup=False, soft_wrap=True)
            return
        self._bars.start()
        task = self._bars.add_task(label, total=total_bytes, indent="  " * len(self._open))
        self._open.append(_Phase(task, total_bytes))

    def advance(self, num_bytes: int) -> None:
        """Count bytes, of every phase that has begun."""
        for phase in self._open:
            phase.num_bytes += num_bytes
            self._bars.update(phase.task, completed=phase.num_bytes)

    def done(self) -> None:
        """End the phase that began last."""
        if not self._open:
            return
        phase = self._open.pop()
        if phase.num_bytes < (phase.total_bytes or 0):  # given up; it begins anew
            self.advance(-phase.num_bytes)
        if self._open or not phase.num_bytes:
            self._bars.remove_task(phase.task)
        else:  # full, also where the length was not known
            self._bars.update(phase.task, total=phase.num_bytes)

    def __enter__(self) -> "TransferProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()
