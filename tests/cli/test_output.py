import io
import json
import sys

import pytest
import yaml
from typing_extensions import override

from hyprstream.cli.output import Format, Output
from hyprstream.errors import InvalidRequestError

ROWS = [
    {"ref": "pypi://a", "size_bytes": 1, "note": "x\x1b[2Jy"},
    {"ref": "pypi://bb", "size_bytes": 2, "note": ""},
]
SHOWN = [{"ref": "pypi://a", "size": "1 B \x1b[2J"}, {"ref": "pypi://bb", "size": "2 B"}]


class Stream(io.TextIOWrapper):
    """A pipe, or a terminal, that remembers."""

    def __init__(self, typed: str = "", *, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(typed.encode()), encoding="utf-8", write_through=True)
        self._terminal = terminal

    @override
    def isatty(self) -> bool:
        return self._terminal

    def take(self) -> str:
        """Return what was written since the last time."""
        data = self.buffer
        assert isinstance(data, io.BytesIO)
        text = data.getvalue().decode()
        data.seek(0)
        data.truncate()
        return text


@pytest.fixture
def streams(monkeypatch):
    streams = Stream(), Stream()
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    return streams


@pytest.fixture
def terminal(monkeypatch):
    """A terminal behind stdout and stderr."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Stream(terminal=True)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    return terminal


@pytest.fixture
def output(streams):  # noqa: ARG001  # takes them as it is made
    return Output()


@pytest.fixture
def shown(terminal):  # noqa: ARG001  # takes it as it is made
    """An output that a person looks at."""
    return Output()


def test_text_reaches_a_pipe_unchanged(output, streams):
    output.text("a\x1b[31mb\n")
    assert streams[0].take() == "a\x1b[31mb\n"


def test_text_cannot_drive_a_terminal(shown, terminal):
    shown.text("a\x1b[31mb\n\tc\rd")
    assert terminal.take() == "a\\x1b[31mb\n\tc\\x0dd"


def test_table_shows_aligned_cells_and_no_escape_sequences(output, streams):
    output.table(ROWS, Format.TABLE, identifier="ref", shown=SHOWN)
    lines = [line.rstrip() for line in streams[0].take().splitlines()]
    assert lines == ["REF        SIZE", "pypi://a   1 B \\x1b[2J", "pypi://bb  2 B"]


def test_table_cannot_drive_a_terminal_either(shown, terminal):
    shown.table(ROWS, Format.TABLE, identifier="ref", shown=SHOWN)
    assert "\x1b[2J" not in terminal.take()


def test_long_cells_are_not_wrapped_in_a_pipe(output, streams):
    output.record({}, Format.TABLE, shown={"path": "/x" * 300})
    assert "/x" * 300 in streams[0].take()


def test_empty_table_prints_nothing(output, streams):
    output.table([], Format.TABLE, identifier="ref", shown=[])
    assert streams[0].take() == ""


def test_quiet_table_prints_identifiers(output, streams):
    output.quiet = True
    output.table(ROWS, Format.TABLE, identifier="ref", shown=SHOWN)
    assert streams[0].take() == "pypi://a\npypi://bb\n"


def test_json_and_yaml_hold_the_same_rows(output, streams):
    output.table(ROWS, Format.JSON, identifier="ref", shown=SHOWN)
    text = streams[0].take()
    output.table(ROWS, Format.YAML, identifier="ref", shown=SHOWN)
    assert json.loads(text) == yaml.safe_load(streams[0].take()) == ROWS


def test_record_without_cells_shows_its_values(output, streams):
    output.record({"name": "a", "layers": 3}, Format.TABLE)
    assert streams[0].take().split() == ["name", "a", "layers", "3"]


def test_messages_go_to_stderr_on_one_line_each(output, streams):
    output.warn("two\nlines")
    output.error("a\x1b[2J", hint="do b")
    assert streams[0].take() == ""
    assert streams[1].take() == "warning: two lines\nerror: a\\x1b[2J\nhint: do b\n"


def test_quiet_keeps_warnings_and_errors_only(output, streams):
    output.quiet = True
    output.done("done")
    output.hint("hint")
    output.warn("careful")
    output.error("broken")
    assert streams[1].take() == "warning: careful\nerror: broken\n"


def test_brackets_in_messages_are_not_markup(output, streams):
    output.error("[red]x[/red] :smile:")
    assert streams[1].take() == "error: [red]x[/red] :smile:\n"


def test_a_terminal_gets_colour(shown, terminal):
    shown.error("x")
    assert "\x1b[1;31merror: " in terminal.take()


def test_no_color_is_honoured(shown, terminal, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    shown.error("x")
    assert "31m" not in terminal.take()


def test_confirm_refuses_without_a_terminal_and_names_the_option(output, monkeypatch):
    monkeypatch.setattr(sys, "stdin", Stream("y\n"))
    with pytest.raises(InvalidRequestError) as caught:
        output.confirm("Remove it?", yes=False)
    assert "--yes" in caught.value.hint


def test_confirm_with_yes_does_not_ask(output, streams):
    assert output.confirm("Remove it?", yes=True)
    assert streams[1].take() == ""


@pytest.mark.parametrize(
    ("typed", "answer"), [("y\n", True), ("Yes\n", True), ("\n", False), ("", False)]
)
def test_confirm_takes_only_yes_for_an_answer(shown, terminal, monkeypatch, typed, answer):
    monkeypatch.setattr(sys, "stdin", Stream(typed, terminal=True))
    assert shown.confirm("Remove it?", yes=False) is answer
    assert terminal.take() == "Remove it? [y/N] "


def test_progress_in_a_log_is_one_line_per_phase(output, streams):
    with output.progress() as progress:
        progress.start("fetching [x]", 98_000_000)
        progress.advance(98_000_000)
        progress.done()
        progress.start("unpacking", None)
        progress.done()
    assert streams[1].take() == "fetching [x] (98.0 MB)\nunpacking\n"


def test_quiet_progress_prints_nothing(output, streams):
    output.quiet = True
    with output.progress() as progress:
        progress.start("fetching", 10)
        progress.advance(10)
        progress.done()
    assert streams[1].take() == ""


def test_progress_on_a_terminal_shows_bytes_and_the_next_phase_replaces_waiting(
    shown, terminal, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    with shown.progress() as progress:
        progress.start("waiting for another process", None)
        progress.done()
        progress.start("fetching\x1b[2J", 98_000_000)
        progress.advance(98_000_000)
        progress.done()
    text = terminal.take()
    assert "98.0/98.0 MB" in text
    assert "\x1b[2J" not in text
    assert "waiting" not in text[text.index("fetching") :]


def test_a_phase_within_a_phase_counts_for_both(shown, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with shown.progress() as progress:
        progress.start("the model", 3_000_000)
        for name in ("one file", "another file"):
            progress.start(name, 1_500_000)
            progress.advance(1_500_000)
            progress.done()
        progress.done()
        progress.done()  # of nothing
    text = terminal.take()
    inner = text.index("  another file")
    assert text.index("1.5/3.0 MB") < inner < text.index("3.0/3.0 MB")
    assert "one file" not in text[text.rindex("the model") :]


def test_what_is_given_up_and_begun_anew_counts_once(shown, terminal, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with shown.progress() as progress:
        progress.start("the model", 3_000_000)
        progress.start("a file", 3_000_000)
        progress.advance(2_000_000)
        progress.done()
        progress.start("a file", 3_000_000)
        progress.advance(3_000_000)
        progress.done()
        progress.done()
    text = terminal.take()
    assert "3.0/3.0 MB" in text
    assert "5.0" not in text
