"""Shows how long work goes: on a terminal a line that changes, in a log one line a phase."""

from types import TracebackType
from typing import TYPE_CHECKING

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

from hyprstream.cli.text import in_bytes, in_time, one_line

if TYPE_CHECKING:
    from hyprstream.runtime import TrainingProgress
else:
    TrainingProgress = object  # it brings torch


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


class StepProgress:
    """Follows the steps of a training on stderr: a line that changes, or one for each look."""

    def __init__(self, console: Console, num_steps: int, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._held_out = ""
        self._bar = Progress(
            TextColumn("step {task.completed:.0f} of {task.total:.0f}", markup=False),
            BarColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=num_steps)

    def step(self, progress: TrainingProgress) -> None:
        """Show a step."""
        point = progress.point
        if point.held_out_loss is not None:
            self._held_out = f", held-out loss {point.held_out_loss:.4f}"
            self._held_out += " (best)" if progress.is_best else ""
        told = (
            f"loss {point.loss:.4f}{self._held_out}, {progress.tokens_per_s:,.0f} tokens/s, "
            f"{in_time(progress.remaining_s)} left"
        )
        if not self._bar.disable:
            self._bar.update(self._task, completed=point.step, description=told)
        elif not self._quiet and self._is_told(progress):
            line = f"step {point.step} of {progress.num_steps}: {told}"
            self._console.print(line, markup=False, soft_wrap=True)

    @staticmethod
    def _is_told(progress: TrainingProgress) -> bool:
        """Whether a step has a line in a log: looks, the first step and the last."""
        point = progress.point
        return point.held_out_loss is not None or point.step in (1, progress.num_steps)

    def __enter__(self) -> "StepProgress":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
