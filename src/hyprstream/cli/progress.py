"""Shows how long work goes: bytes, rate and time left on a terminal, one line each in a log."""

import time
from collections.abc import Callable
from dataclasses import dataclass
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
    from hyprstream.runtime import LessonProgress, TrainingProgress
else:
    LessonProgress = TrainingProgress = object  # the second one brings torch


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


class CountProgress:
    """Follows what is counted on stderr: a bar, or a line when it begins.

    It appears with the first count, so that what is there already is not told.
    """

    def __init__(self, console: Console, label: str, *, quiet: bool) -> None:
        self._console = console
        self._label = label
        self._quiet = quiet
        self._is_begun = False
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(label, total=None)

    def show(self, done: int, total: int) -> None:
        """Show how many are done."""
        if not self._is_begun:
            self._is_begun = True
            if not self._bar.disable:
                self._bar.start()
            elif not self._quiet:
                self._console.print(f"{self._label} ({total})", markup=False, soft_wrap=True)
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> "CountProgress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()


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


class LessonSteps:
    """Follows the making of versions on stderr: a line that changes, or one now and then."""

    _EVERY = 5  # steps between lines in a log

    def __init__(
        self, console: Console, *, quiet: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._console = console
        self._quiet = quiet
        self._clock = clock
        self._shown: LessonProgress | None = None
        self._began = 0.0
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[told]}", markup=False),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task("", total=None, told="")

    def show(self, progress: LessonProgress) -> None:
        """Show how far it is, if that is news."""
        if progress == self._shown:
            return
        is_new_phase = self._shown is None or self._shown.phase != progress.phase
        self._shown = progress
        if is_new_phase:
            self._began = self._clock()
        told = self._told(progress)
        if not self._bar.disable:
            total = progress.num_steps or None
            self._bar.update(
                self._task,
                description=progress.phase,
                total=total,
                completed=progress.step,
                told=told,
            )
        elif not self._quiet and (is_new_phase or self._is_told(progress)):
            self._console.print(f"{progress.phase}{told}", markup=False, soft_wrap=True)

    def _told(self, progress: LessonProgress) -> str:
        if progress.phase != "learning" or progress.loss is None:
            return ""
        passed = max(1e-9, self._clock() - self._began)
        left = passed / progress.step * (progress.num_steps - progress.step)
        return (
            f": step {progress.step} of {progress.num_steps}, loss {progress.loss:.4f}, "
            f"{progress.num_tokens / passed:,.0f} tokens/s, {in_time(left)} left"
        )

    def _is_told(self, progress: LessonProgress) -> bool:
        step = progress.step
        return step in (1, progress.num_steps) or step % self._EVERY == 0

    def __enter__(self) -> "LessonSteps":
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()
