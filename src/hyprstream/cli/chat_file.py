"""Chats on disk: one JSON message per line.

A turn is added in one write, so that a killed process leaves whole turns behind, at worst
followed by a piece of a line. Reading skips that piece and writing removes it.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from hyprstream.cli.conversation import Message
from hyprstream.cli.text import to_json
from hyprstream.errors import InvalidRequestError

_ROLES = ("system", "user", "assistant")
_START = b'{"role": "'  # of every line that we write


def load_messages(file: Path) -> list[Message]:
    """Read a chat.

    Raises:
        InvalidRequestError: The file cannot be read, or a line is not a message.
    """
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise _unusable(file, error) from error
    messages = []
    for number, line in enumerate(lines, start=1):
        message = _parse(line)
        if message is not None:
            messages.append(message)
        elif line.strip() and not (number == len(lines) and _is_piece(line)):
            raise InvalidRequestError(
                f"line {number} of {file} is not a chat message",
                hint='Each line has to be like {"role": "user", "content": "Hello"}.',
            )
    return messages


def save_messages(file: Path, messages: Sequence[Message]) -> None:
    """Write a chat to a file that must not exist yet.

    Raises:
        InvalidRequestError: It exists, or cannot be written.
    """
    _append(file, _encode(messages), os.O_EXCL)


class ChatLog:
    """Adds the turns of a chat to a file as they end.

    The system message is written again whenever it has changed, so that reading the file
    gives the chat as it was.
    """

    def __init__(self, file: Path, messages: Sequence[Message]) -> None:
        """Open the file; one that is new begins with `messages`.

        Raises:
            InvalidRequestError: The file cannot be written, or holds something else.
        """
        self._file = file
        known = load_messages(file) if file.exists() else []
        if file.exists():
            _mend(file)
        if not known:
            _append(file, _encode(messages))
        self._system = _last_system(known or messages)

    def append(self, turn: Sequence[Message]) -> None:
        """Add one turn: the system message, if there is one, the question and the answer.

        Raises:
            InvalidRequestError: The file cannot be written.
        """
        system = _last_system(turn)
        if system is None or system == self._system:
            turn = [message for message in turn if message["role"] != "system"]
        self._system = system
        _append(self._file, _encode(turn))


def _last_system(messages: Sequence[Message]) -> str | None:
    told = [message["content"] for message in messages if message["role"] == "system"]
    return told[-1] if told else None


def _encode(messages: Sequence[Message]) -> bytes:
    return "".join(f"{to_json(message, indent=None)}\n" for message in messages).encode()


def _append(file: Path, data: bytes, flags: int = 0) -> None:
    try:
        # Chats are private: nobody else on the machine may read the file.
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | flags, 0o600)
        with os.fdopen(descriptor, "ab", buffering=0) as stream:
            stream.write(data)
            os.fsync(stream.fileno())
    except OSError as error:
        raise _unusable(file, error) from error


def _mend(file: Path) -> None:
    """End the last line: complete it if it is a message, remove it if it is a piece of one."""
    try:
        with file.open("r+b") as stream:
            tail = stream.read().rpartition(b"\n")[2]
            if _parse(tail) is not None:
                stream.write(b"\n")
            elif _is_piece(tail):
                stream.truncate(stream.tell() - len(tail))
    except OSError as error:
        raise _unusable(file, error) from error


def _is_piece(line: bytes) -> bool:
    """Tell whether a line that is no message may be the beginning of one of ours."""
    return line.startswith(_START) or _START.startswith(line)


def _parse(line: bytes) -> Message | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    role, content = value.get("role"), value.get("content")
    if role not in _ROLES or not isinstance(content, str):
        return None
    return {"role": role, "content": content}


def _unusable(file: Path, error: OSError) -> InvalidRequestError:
    return InvalidRequestError(
        f"{file} cannot be used for the chat: {error.strerror}", hint="Name another file."
    )
