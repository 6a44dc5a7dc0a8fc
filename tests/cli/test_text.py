import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.cli.output import Format
from hyprstream.cli.text import in_bytes, in_millions, one_line, plain, to_json, visible

_CONTROLS = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))}


@given(st.text())
def test_visible_text_has_no_controls_but_newline_and_tab(text):
    assert not set(visible(text)) & (_CONTROLS - {"\n", "\t"})


@given(st.text(alphabet=st.characters(exclude_categories=["Cc"])))
def test_visible_leaves_ordinary_text_alone(text):
    assert visible(text) == text


@given(st.text())
def test_one_line_has_no_controls_at_all(text):
    assert not set(one_line(text)) & _CONTROLS


def test_escape_sequences_are_shown():
    assert visible("a\x1b]0;title\x07b\x9b2J") == "a\\x1b]0;title\\x07b\\x9b2J"


@given(st.dictionaries(st.text(), st.text()))
def test_json_holds_the_same_value_without_controls(value):
    text = to_json(value)
    assert json.loads(text) == value
    assert not set(text) & (_CONTROLS - {"\n"})


def test_json_keeps_every_language_readable():
    assert to_json({"a": "gr\u00fc\u00df"}) == '{\n  "a": "gr\u00fc\u00df"\n}'


def test_plain_reaches_into_tuples_and_enums():
    assert plain({1: (Format.JSON, None, 0.5)}) == {"1": ["json", None, 0.5]}


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (98_000_000, "98.0 MB"),
        (5_000_000_000_000_000, "5000.0 TB"),
    ],
)
def test_bytes_are_written_as_people_do(num_bytes, text):
    assert in_bytes(num_bytes) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12"), (134_515_008, "134.5 M"), (7e9, "7.0 B")])
def test_parameters_are_written_as_people_do(count, text):
    assert in_millions(int(count)) == text
