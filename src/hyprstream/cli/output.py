r"""The only place that prints: data to stdout, everything else to stderr.

Text that models and files supply is not trusted with the terminal: when a person looks on,
control characters other than newline and tab are shown as `\x1b` instead of being obeyed.
Piped output is passed on unchanged. Colour and progress appear on a terminal only, and
NO_COLOR is honoured (by rich).
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Literal

from hyprstream.cli.columns import columns
from hyprstream.cli.text import one_line, plain, to_json, visible
from hyprstream.errors import HyprstreamError, InvalidRequestError

if TYPE_CHECKING:
    from rich.console import Console

    from hyprstream.cli.progress import CountProgress, LessonSteps, StepProgress, TransferProgress
else:
    Console = CountProgress = LessonSteps = StepProgress = TransferProgress = (
        object  # rich is imported when something is printed with it
    )

_WIDE = 10_000  # a pipe has no width to wrap at


class Format(StrEnum):
    """How data is written to stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


class Output:
    """Prints results to stdout and everything about them to stderr.

    Attributes:
        quiet: Print data only, of tables the identifiers only.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._stdout = sys.stdout
        self._stderr = sys.stderr
        self.quiet = quiet

    def text(self, text: str) -> None:
        """Write a piece of data at once, as it is for a pipe and harmless for a terminal."""
        self._stdout.write(visible(text) if self._stdout.isatty() else text)
        self._stdout.flush()

    def table(
        self,
        rows: Iterable[Mapping[str, object]],
        format: Format,  # noqa: A002
        *,
        identifier: str,
        shown: Iterable[Mapping[str, str]],
    ) -> None:
        """Print several records; only one of `rows` and `shown` is walked through.

        Args:
            rows: The data, for json and yaml.
            format: How to print.
            identifier: Key of `rows` whose values are all that `quiet` prints.
            shown: The same rows as a person reads them: heading -> cell.
        """
        if self.quiet:
            self.text("".join(f"{row[identifier]}\n" for row in rows))
        elif format is not Format.TABLE:
            self._structured(list(rows), format)
        elif lines := list(shown):
            self._grid(list(lines[0]), [list(line.values()) for line in lines])

    def record(
        self,
        record: Mapping[str, object],
        format: Format,  # noqa: A002
        *,
        shown: Mapping[str, str] | None = None,
    ) -> None:
        """Print one record: `record` as json or yaml, `shown` as lines of name and value."""
        if format is not Format.TABLE:
            self._structured(record, format)
        else:
            cells = shown or {name: str(value) for name, value in record.items()}
            self._grid(None, [[name, value] for name, value in cells.items()])

    def done(self, message: str) -> None:
        """Say on stderr that something was achieved."""
        if not self.quiet:
            self._say("", "", message)

    def warn(self, message: str) -> None:
        """Say on stderr what may surprise."""
        self._say("warning: ", "bold yellow", message)

    def hint(self, message: str) -> None:
        """Say on stderr what to do next."""
        if message and not self.quiet:
            self._say("hint: ", "bold cyan", message)

    def error(self, message: str, *, hint: str = "") -> None:
        """Say on stderr what failed, on one line, and on another what to do about it."""
        self._say("error: ", "bold red", message)
        if hint:
            self._say("hint: ", "bold cyan", hint)

    def failure(self, error: HyprstreamError) -> None:
        """Print an error of ours: its message and its hint."""
        self.error(str(error), hint=error.hint)

    def progress(self) -> TransferProgress:
        """Follow a download inside a `with` block."""
        from hyprstream.cli.progress import TransferProgress

        return TransferProgress(self._console("stderr"), quiet=self.quiet)

    def counted(self, label: str) -> CountProgress:
        """Follow what is counted inside a `with` block."""
        from hyprstream.cli.progress import CountProgress

        return CountProgress(self._console("stderr"), label, quiet=self.quiet)

    def steps(self, num_steps: int) -> StepProgress:
        """Follow a training inside a `with` block."""
        from hyprstream.cli.progress import StepProgress

        return StepProgress(self._console("stderr"), num_steps, quiet=self.quiet)

    def lessons(self) -> LessonSteps:
        """Follow the making of versions inside a `with` block."""
        from hyprstream.cli.progress import LessonSteps

        return LessonSteps(self._console("stderr"), quiet=self.quiet)

    def clear(self) -> None:
        """Begin at the top of the terminal again; data that goes elsewhere just goes on."""
        if self._stdout.isatty():
            self._stdout.write("\x1b[H\x1b[2J")

    def confirm(self, question: str, *, yes: bool) -> bool:
        """Ask before something is destroyed.

        Raises:
            InvalidRequestError: Nobody is there to answer, and `yes` was not given.
        """
        if yes:
            return True
        if not (sys.stdin.isatty() and self._stderr.isatty()):
            raise InvalidRequestError(
                f"nobody is at the terminal to answer: {question}",
                hint="Add --yes to do it without asking.",
            )
        self._stderr.write(f"{one_line(question)} [y/N] ")
        self._stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}

    def ask_secret(self, question: str) -> str:
        """Ask for something that does not show while it is typed.

        Raises:
            InvalidRequestError: Nobody is there to answer.
        """
        if not (sys.stdin.isatty() and self._stderr.isatty()):
            raise InvalidRequestError(
                f"nobody is at the terminal to answer: {question.rstrip(': ')}",
                hint="Give it on stdin, with --stdin.",
            )
        from getpass import getpass

        return getpass(one_line(question), stream=self._stderr)

    def _structured(self, data: object, format: Format) -> None:  # noqa: A002
        if format is Format.JSON:
            self.text(to_json(data) + "\n")
        else:
            import yaml

            # libyaml, where PyYAML was built with it: a third of the time.
            dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
            self.text(yaml.dump(plain(data), Dumper=dumper, sort_keys=False, allow_unicode=True))

    def _grid(self, heading: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
        """Print cells in columns; the heading, or else the first column, stands out."""
        titles = [] if heading is None else [[name.upper() for name in heading]]
        cells = [*titles, *([one_line(cell) for cell in row] for row in rows)]
        if not self._stdout.isatty():
            self.text("".join(f"{line}\n" for line in columns(cells, None)))
            return
        console = self._console("stdout")
        lines = list(columns(cells, console.width))
        if heading is not None:
            self._styled(console, lines[0], len(lines[0]))
            self.text("".join(f"{line}\n" for line in lines[1:]))
            return
        names = max((len(row[0]) for row in cells), default=0)
        for line in lines:
            self._styled(console, line, names)

    def _styled(self, console: Console, line: str, num_bold: int) -> None:
        from rich.text import Text

        text = Text.assemble((line[:num_bold], "bold"), line[num_bold:])
        console.print(text, soft_wrap=True)

    def _say(self, label: str, style: str, message: str) -> None:
        from rich.text import Text

        line = Text.assemble((label, style), one_line(message))
        self._console("stderr").print(line, soft_wrap=True)

    def _console(self, name: Literal["stdout", "stderr"]) -> Console:
        from rich.console import Console

        stream = self._stdout if name == "stdout" else self._stderr
        terminal = stream.isatty()
        return Console(
            file=stream, force_terminal=terminal, width=None if terminal else _WIDE, highlight=False
        )
