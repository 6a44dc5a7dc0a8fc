"""Calls of tools in an answer, whatever the pieces it comes in."""

import itertools
import json

from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.models.tool_calls import ToolCall, ToolCallReader

_NAMES = st.text("abc_", min_size=1, max_size=5)
_CALLS = st.builds(
    lambda name, arguments: ToolCall(name, json.dumps(arguments, ensure_ascii=False)),
    _NAMES,
    st.dictionaries(_NAMES, st.integers() | st.text(max_size=5), max_size=2),
)
_TEXTS = st.text("ab <tol_c>/", max_size=12).filter(lambda text: "tool_call>" not in text)


def read(text: str, cuts=()) -> list[str | ToolCall]:
    """All that a text holds, with neighbouring pieces of text joined."""
    reader = ToolCallReader()
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    parts: list[str | ToolCall] = []
    for start, end in itertools.pairwise(places):
        parts += reader.push(text[start:end])
    joined: list[str | ToolCall] = []
    for part in parts + reader.finish():
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def written(call: ToolCall) -> str:
    return f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n</tool_call>'


@settings(deadline=None)
@given(before=_TEXTS, calls=st.lists(_CALLS, max_size=3), cuts=st.lists(st.integers(0, 500)))
def test_calls_come_back_as_they_were_written_in_whatever_pieces(before, calls, cuts):
    text = before + "\n".join(map(written, calls))
    expected = [before, *calls] if before else calls
    assert read(text, cuts) == expected


@settings(deadline=None)
@given(st.text("<tol_c>/ {}ab", max_size=40), st.lists(st.integers(0, 100)))
def test_text_without_calls_comes_back_unchanged(text, cuts):
    assert "".join(part for part in read(text, cuts) if isinstance(part, str)) == text


def test_what_looks_like_a_call_and_is_none_stays_text():
    for inner in ("", "{}", "[1]", '{"name": 3}', '{"name": "f", "arguments": "x"}', "[" * 100_000):
        text = f"<tool_call>{inner}</tool_call>"
        assert read(text) == [text]
    assert read('<tool_call>{"name": "f"') == ['<tool_call>{"name": "f"']


def test_a_call_without_arguments_has_empty_ones():
    assert read('<tool_call>{"name": "f"}</tool_call>') == [ToolCall("f", "{}")]


def test_blanks_between_and_after_calls_are_no_text_and_others_are():
    call = written(ToolCall("f", "{}"))
    assert read(f"{call}\n\n{call}\n") == [ToolCall("f", "{}")] * 2
    assert read(f"{call}\nDone.") == [ToolCall("f", "{}"), "\nDone."]
