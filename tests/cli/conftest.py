"""The command line in this process, with a runtime of a few lines behind it."""

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from hyprstream.cli.main import run
from tests.cli.fakes import FakeRuntime

_GOLDEN = Path(__file__).parent.parent / "golden" / "cli"


@dataclass(frozen=True, slots=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def runtime(monkeypatch):
    runtime = FakeRuntime()
    monkeypatch.setitem(sys.modules, "hyprstream.runtime", runtime)
    return runtime


@pytest.fixture
def command_line(runtime, real_command_line):  # noqa: ARG001  # stands in
    """Run a command, with text (or bytes) piped into it, on the runtime of a few lines."""
    return real_command_line


@pytest.fixture
def real_command_line(monkeypatch, capsys):
    """Run a command, with text (or bytes) piped into it, on the real runtime."""
    monkeypatch.setenv("COLUMNS", "80")

    def run_command(*arguments: str, stdin: str | bytes = "") -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        code = run(arguments)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run_command


@pytest.fixture
def hyprstream(real_command_line, monkeypatch, tmp_path):
    """Run a command on the real runtime, with a home of its own."""
    monkeypatch.setenv("HYPRSTREAM_HOME", str(tmp_path))
    monkeypatch.setenv("HYPRSTREAM_CONFIG", str(tmp_path / "none.toml"))
    return real_command_line


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A tiny model that no test changes."""
    from hyprstream.runtime.model import Model
    from hyprstream.runtime.settings import Settings
    from tests.runtime.adapted_models import make_folder

    home = tmp_path_factory.mktemp("tiny")
    return Model.load(make_folder(home / "model"), settings=Settings(home=home))


@pytest.fixture
def poet(hyprstream, tiny):
    """The reference of an adapter for the tiny model, in the home of the test."""
    made = hyprstream("lora", "create", "--name", "poet", "--base-model", tiny.ref, "--rank", "4")
    assert made.code == 0
    return made.out.strip()


@pytest.fixture
def golden():
    """Compare with a recorded transcript; HYPRSTREAM_WRITE_GOLDEN=1 records it instead."""

    def compare(name: str, text: str) -> None:
        file = _GOLDEN / f"{name}.txt"
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
        if os.environ.get("HYPRSTREAM_WRITE_GOLDEN"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text, encoding="utf-8")
        assert text == file.read_text(encoding="utf-8")

    return compare
