"""Columns of cells, beside those of rich."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hyprstream.cli.columns import columns

# Of characters that only change the one before them (marks, skin tones) rich keeps nothing.
_CELLS = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z", "M", "Sk"]), max_size=12
)
_ROWS = st.integers(1, 4).flatmap(
    lambda n: st.lists(st.lists(_CELLS, min_size=n, max_size=n), min_size=1, max_size=5)
)


def by_rich(rows: list[list[str]]) -> list[str]:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for _ in rows[0]:
        table.add_column()
    for row in rows:
        table.add_row(*map(Text, row))
    out = io.StringIO()
    Console(file=out, width=10_000).print(table)
    return [line.rstrip() for line in out.getvalue().split("\n")[: len(rows)]]


@given(_ROWS)
def test_where_there_is_room_rich_says_the_same(rows):
    assert list(columns(rows, None)) == by_rich(rows)


@given(_ROWS, st.integers(22, 60))
def test_lines_fit_and_nothing_is_lost(rows, width):
    lines = list(columns(rows, width))
    assert all(cell_len(line) <= width for line in lines)
    wanted = sorted("".join(cell for row in rows for cell in row))
    assert sorted("".join(lines).replace(" ", "")) == wanted


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (30, ["a  one two three four", "b  x"]),
        (16, ["a  one two three", "   four", "b  x"]),
        (10, ["a  one two", "   three", "   four", "b  x"]),
        (7, ["a  one", "   two", "   thre", "   e", "   four", "b  x"]),
        (1, ["a  one", "   two", "   thre", "   e", "   four", "b  x"]),
    ],
)
def test_wide_cells_are_folded_at_blanks(width, lines):
    assert list(columns([["a", "one two three four"], ["b", "x"]], width)) == lines


def test_a_name_in_wide_letters_takes_the_room_that_it_takes():
    assert list(columns([["語", "x"], ["abc", "y"]], None)) == ["語   x", "abc  y"]
