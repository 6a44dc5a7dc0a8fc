"""What a person types into a chat, message by message, from a terminal or from a pipe.

A message is one line. A block between two triple quotes is one message of many lines, as in
Ollama. On a terminal Alt-Enter adds a line too, and pasted text stays together.
"""

import sys
from pathlib import Path
from typing import Protocol, runtime_checkable

from typing_extensions import override

from hyprstream.errors import InvalidRequestError
from hyprstream.files import storage

_QUOTES = '"""'


@runtime_checkable
class Lines(Protocol):
    """Where the messages of a chat come from."""

    def read(self) -> str | None:
        """Return the next message; None after the last.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed instead.
            InvalidRequestError: It is not text.
        """
        ...


class PipeLines(Lines):
    """Messages from a pipe on stdin: no prompt, no editing."""

    def __init__(self) -> None:
        self._number = 0

    @override
    def read(self) -> str | None:
        text = self._line()
        while is_open(text) and (line := self._line()):
            text += line
        return unquoted(text) if text else None

    def _line(self) -> str:
        self._number += 1
        try:
            return sys.stdin.buffer.readline().decode()
        except UnicodeDecodeError as error:
            raise InvalidRequestError(
                f"line {self._number} of stdin is not UTF-8 text",
                hint="Convert it, for instance with iconv.",
            ) from error


class TerminalLines(Lines):
    """Messages from a terminal, with editing and recall; the prompt is on stderr.

    Args:
        prompt: What stands before a message.
        history: File of what was typed before, for its owner alone; None recalls what is typed
            from now on.
    """

    def __init__(self, prompt: str = ">>> ", history: Path | None = None) -> None:
        # 0.1 s to import, and only a terminal needs it.
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
        from prompt_toolkit.output import create_output

        keys = KeyBindings()

        @keys.add("enter")
        def _(event: KeyPressEvent) -> None:
            if is_open(event.current_buffer.text):
                event.current_buffer.newline()
            else:
                event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")  # what terminals send for Alt-Enter
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.newline()

        self._session: PromptSession[str] = PromptSession(
            prompt,
            multiline=True,
            prompt_continuation="... ",
            history=InMemoryHistory() if history is None else FileHistory(_own_file(history)),
            key_bindings=keys,
            output=create_output(stdout=sys.stderr),
        )

    @override
    def read(self) -> str | None:
        try:
            return unquoted(self._session.prompt())
        except EOFError:
            return None


def _own_file(file: Path) -> str:
    """Make sure of a file that its owner alone may read, and name it."""
    with storage(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(0o600)
        file.chmod(0o600)
    return str(file)


def is_open(text: str) -> bool:
    """Tell whether a block of triple quotes was begun and not ended."""
    text = text.strip()
    return text.startswith(_QUOTES) and not text[len(_QUOTES) :].endswith(_QUOTES)


def unquoted(text: str) -> str:
    """Take the triple quotes off a block; other text loses its line end only."""
    stripped = text.strip()
    if not stripped.startswith(_QUOTES):
        return text.rstrip("\r\n")
    return stripped.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\r\n")
