"""The chat on a pseudo-terminal, as a person at a keyboard has it."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hyprstream.cli.chat_file import load_messages

_ROOT = Path(__file__).parent.parent.parent
_CONTROLS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]")
_DEADLINE_S = 20
CTRL_C, CTRL_D, ENTER, ALT_ENTER = "\x03", "\x04", "\r", "\x1b\r"


class Person:
    """Types into a program and reads what it shows."""

    def __init__(self, *arguments: str) -> None:
        self._keyboard, terminal = pty.openpty()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.cli.program", *arguments],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=_ROOT,
            start_new_session=True,
            env={
                **os.environ,
                "HYPRSTREAM_TEST_TERMINAL": "1",
                "PROMPT_TOOLKIT_NO_CPR": "1",  # nobody answers "where is the cursor?" here
                "TERM": "xterm",
                "NO_COLOR": "1",
            },
        )
        os.close(terminal)
        self._seen = ""

    def types(self, text: str) -> None:
        os.write(self._keyboard, text.encode())

    def sees(self, text: str) -> str:
        """Read up to `text`, which must come; return what came before it."""
        deadline = time.monotonic() + _DEADLINE_S
        while text not in self._seen:
            ready, _, _ = select.select([self._keyboard], [], [], deadline - time.monotonic())
            assert ready, f"{text!r} did not come, only {self._seen!r}"
            self._seen = _CONTROLS.sub("", self._seen + self._read())
        before, _, self._seen = self._seen.partition(text)
        return before

    def ends(self) -> int:
        """Wait for the program and return its exit code."""
        code = self._process.wait(_DEADLINE_S)
        os.close(self._keyboard)
        return code

    def leaves(self) -> None:
        """End the program whatever it does."""
        self._process.kill()
        self._process.wait(_DEADLINE_S)

    def _read(self) -> str:
        try:
            return os.read(self._keyboard, 4096).decode()
        except OSError:  # what Linux says when the program has closed the terminal
            raise AssertionError(f"the program ended after {self._seen!r}") from None


@pytest.fixture
def sit_down():
    people = []

    def sit_down(*arguments: str) -> Person:
        people.append(Person(*arguments))
        people[-1].sees(">>>")
        return people[-1]

    yield sit_down
    for person in people:
        person.leaves()


def test_ctrl_c_stops_the_answer_and_not_the_chat(sit_down, tmp_path):
    file = tmp_path / "chat.jsonl"
    person = sit_down("chat", "fake", "--save-history", str(file))
    person.types("please wait for me" + ENTER)
    person.sees("echo: please wait ")
    person.types(CTRL_C)
    person.sees(">>>")
    person.types("hello" + ENTER)
    person.sees("echo: hello ")
    person.sees(">>>")
    person.types(CTRL_D)
    assert person.ends() == 0
    assert [message["content"] for message in load_messages(file)] == [
        "please wait for me",
        "echo: please wait ",
        "hello",
        "echo: hello ",
    ]


def test_ctrl_c_at_the_prompt_says_how_to_leave(sit_down):
    person = sit_down("chat", "fake")
    person.types(CTRL_C)
    person.sees("/bye leaves.")
    person.sees(">>>")
    person.types("/bye" + ENTER)
    assert person.ends() == 0


def test_an_error_does_not_end_the_chat(sit_down):
    person = sit_down("chat", "fake")
    person.types("/dance" + ENTER)
    person.sees("error: /dance is not a command")
    person.sees(">>>")
    person.types("hello" + ENTER)
    person.sees("echo: hello ")


def test_alt_enter_and_triple_quotes_make_messages_of_many_lines(sit_down, tmp_path):
    file = tmp_path / "chat.jsonl"
    person = sit_down("chat", "fake", "--save-history", str(file))
    person.types("one" + ALT_ENTER + "two" + ENTER)
    person.sees("echo: one")
    person.sees(">>>")
    person.types('"""three' + ENTER)
    person.sees("...")
    person.types('four"""' + ENTER)
    person.sees("echo: three")
    person.sees(">>>")
    person.types(CTRL_D)
    assert person.ends() == 0
    asked = [message["content"] for message in load_messages(file)][::2]
    assert asked == ["one\ntwo", "three\nfour"]


def test_what_the_model_says_cannot_drive_the_terminal(sit_down):
    person = sit_down("chat", "fake")
    person.types("wipe" + ENTER)
    person.sees("echo: \\x1b[2J")
