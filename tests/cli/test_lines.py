import io
import sys

import pytest

from hyprstream.cli.lines import PipeLines, is_open, unquoted


@pytest.fixture
def read_all(monkeypatch):
    def read_all(text):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        lines = PipeLines()
        return list(iter(lines.read, None))

    return read_all


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", []),
        ("a\nb\n", ["a", "b"]),
        ("a\r\nb", ["a", "b"]),
        ("\na\n", ["", "a"]),
        ('"""one\ntwo"""\nthree\n', ["one\ntwo", "three"]),
        ('"""\none\n\n  two\n"""\nthree\n', ["one\n\n  two", "three"]),
        ('"""one line"""\n', ["one line"]),
        ('""""""\n', [""]),
        ('"""never\nclosed\n', ["never\nclosed"]),
        ('say """this"""\n', ['say """this"""']),
    ],
)
def test_a_message_is_a_line_or_a_block(read_all, text, messages):
    assert read_all(text) == messages


@pytest.mark.parametrize(
    ("text", "open_"),
    [
        ("", False),
        ("a", False),
        ('"""', True),
        ('"""a', True),
        ('"""a\n"""', False),
        ('""""', True),
    ],
)
def test_a_block_is_open_until_its_second_quotes(text, open_):
    assert is_open(text) is open_


def test_text_outside_a_block_keeps_its_blanks():
    assert unquoted("  /usr is full  \n") == "  /usr is full  "
