"""Calls of tools in what a model writes: text to calls, as it streams.

One notation, that of Hermes and Qwen: `<tool_call>`, a JSON object with `name` and `arguments`,
`</tool_call>`. Text only; what a call means is for the caller to find out.
"""

import json
from dataclasses import dataclass

CALL_BEGIN = "<tool_call>"
CALL_END = "</tool_call>"

MAX_CALL_CHARS = 1 << 20


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call that a model wrote.

    Attributes:
        name: Of the tool; nobody has checked that there is one.
        arguments: A JSON object, as text.
    """

    name: str
    arguments: str


class ToolCallReader:
    """Takes an answer apart while it streams: push pieces, use what comes back.

    What might yet become the beginning of a call is held back. What looks like a call and is
    none stays text, as it was written.

    Invariants, checked by `test_tool_calls.py`: the pieces do not matter; text without calls
    comes back unchanged.

    Example:
        >>> reader = ToolCallReader()
        >>> reader.push('Wait. <tool_call>{"name": "now", "arguments": {}}</tool')
        ['Wait. ']
        >>> reader.push("_call>")
        [ToolCall(name='now', arguments='{}')]
    """

    def __init__(self) -> None:
        self._held = ""
        self._is_inside = False
        self._follows_call = False

    def push(self, piece: str) -> list[str | ToolCall]:
        """Take the next piece and return what is certain now."""
        self._held += piece
        found: list[str | ToolCall] = []
        while self._advance(found):
            pass
        return found

    def finish(self) -> list[str | ToolCall]:
        """Return what was held back: a call that was not completed is text."""
        found: list[str | ToolCall] = []
        rest = (CALL_BEGIN if self._is_inside else "") + self._held
        self._held, self._is_inside = "", False
        self._text(found, rest)
        return found

    def _advance(self, found: list[str | ToolCall]) -> bool:
        """Take one text or call off what is held; tell whether there may be another."""
        mark = CALL_END if self._is_inside else CALL_BEGIN
        before, separator, after = self._held.partition(mark)
        if not separator:
            if self._is_inside:
                if len(self._held) > MAX_CALL_CHARS:
                    found += self.finish()
                return False
            length = _begins(self._held, mark)
            certain = self._held[: len(self._held) - length]
            if certain.isspace() and self._follows_call:
                return False  # blanks between two calls are no text; after the last one neither
            self._held = self._held[len(certain) :]
            self._text(found, certain)
            return False
        self._held = after
        if self._is_inside:
            call = _parse(before)
            if call is None:
                self._text(found, f"{CALL_BEGIN}{before}{CALL_END}")
            else:
                found.append(call)
                self._follows_call = True
        else:
            self._text(found, before)
        self._is_inside = not self._is_inside
        return True

    def _text(self, found: list[str | ToolCall], text: str) -> None:
        if text and not (self._follows_call and text.isspace()):
            found.append(text)
            self._follows_call = False


def _begins(text: str, mark: str) -> int:
    """Return the length of the longest end of a text that begins the mark."""
    for length in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


def _parse(text: str) -> ToolCall | None:
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if not isinstance(arguments, dict):
        return None
    return ToolCall(call["name"], json.dumps(arguments, ensure_ascii=False))
