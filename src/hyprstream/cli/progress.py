"""Shows how a download goes: bytes, rate and time left on a terminal, one line in a log."""

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


class TransferProgress:
    """Follows the phases of a download on stderr; the catalog calls it.

    The display appears with the first phase and is gone after `with`, so that a model that
    is cached already loads without a flicker.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._task: TaskID | None = None
        self._phase_bytes = 0
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=quiet or not console.is_terminal,
        )

    def start(self, name: str, total_bytes: int | None) -> None:
        """Begin a phase."""
        label = one_line(name)
        if self._bars.disable:
            if not self._quiet:
                length = f" ({in_bytes(total_bytes)})" if total_bytes is not None else ""
                self._console.print(f"{label}{length}", markup=False, soft_wrap=True)
            return
        if self._task is not None:  # a phase that was not ended: waiting for another process
            self._bars.remove_task(self._task)
        self._bars.start()
        self._task = self._bars.add_task(label, total=total_bytes)
        self._phase_bytes = 0

    def advance(self, num_bytes: int) -> None:
        """Count bytes of the phase."""
        if self._task is not None:
            self._phase_bytes += num_bytes
            self._bars.update(self._task, completed=self._phase_bytes)

    def done(self) -> None:
        """End the phase with a full bar, also where its length was not known."""
        if self._task is not None:
            self._bars.update(self._task, total=self._phase_bytes)
            self._task = None

    def __enter__(self) -> "TransferProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()
