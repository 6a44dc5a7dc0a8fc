import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyprstream import __version__, errors
from hyprstream.errors import HyprstreamError

_COMMANDS = ["", "infer", "chat", "model", "model pull", "model list", "model info"]
_COMMANDS += ["model remove", "doctor", "quickstart", "lora", "lora create", "lora info"]
_COMMANDS += ["model search", "model registries", "cache", "cache status", "cache cleanup"]
_COMMANDS += ["cache verify", "lora compress", "lora infer", "lora import", "lora export"]
_COMMANDS += ["auth", "auth login", "auth status"]
_ROOT = Path(__file__).parent.parent.parent


def _process(*arguments, **options):
    path = os.pathsep.join([str(_ROOT), *sys.path])  # the program that is tested, and the tests
    environment = {**os.environ, "PYTHONPATH": path, **options.pop("env", {})}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment,
        **options,
    )


@pytest.mark.parametrize("command", _COMMANDS)
def test_help_is_as_recorded(command_line, golden, command):
    result = command_line(*command.split(), "--help")
    assert (result.code, result.err) == (0, "")
    golden("-".join(["help", *command.split()]), result.out)


def test_help_imports_no_torch():
    program = (
        "import sys\n"
        "from hyprstream.cli.main import run\n"
        "assert run(['infer', '--help']) == 0\n"
        "slow = {'torch', 'numpy', 'prompt_toolkit', 'tokenizers'} & sys.modules.keys()\n"
        "assert not slow, slow"
    )
    process = _process("-c", program)
    assert (process.returncode, process.stderr) == (0, "")


def test_version_is_data(command_line):
    assert command_line("--version").out == f"hyprstream {__version__}\n"


def test_the_program_runs_as_a_module():
    process = _process("-m", "hyprstream", "--version")
    assert process.stdout == f"hyprstream {__version__}\n"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("unknown-command", ["mdoel"]),
        ("unknown-option", ["infer", "--promt", "x"]),
        ("not-a-number", ["infer", "--top-k", "many"]),
        ("not-a-choice", ["infer", "--dtype", "float8"]),
        ("missing-argument", ["model", "info"]),
    ],
)
def test_a_usage_error_is_two_lines_and_exit_code_2(command_line, golden, name, arguments):
    result = command_line(*arguments)
    assert (result.code, result.out) == (2, "")
    assert [line.partition(":")[0] for line in result.err.splitlines()] == ["error", "hint"]
    golden(f"error-{name}", result.err)


def test_a_group_alone_prints_its_help(command_line):
    result = command_line("model")
    assert (result.code, result.err) == (2, "")
    assert "Usage: hyprstream model" in result.out


def _leaves(family):
    children = family.__subclasses__()
    return [leaf for child in children for leaf in _leaves(child)] if children else [family]


_SPECIAL = {
    errors.ContextTooLongError: lambda: errors.ContextTooLongError(num_tokens=9, max_tokens=5)
}


@pytest.mark.parametrize("family", _leaves(HyprstreamError))
def test_every_error_of_ours_ends_with_its_exit_code(command_line, runtime, monkeypatch, family):
    def fail(*_, **__):
        error = HyprstreamError.__new__(family)
        HyprstreamError.__init__(error, "the thing\nis wrong", hint="Do this.")
        raise error

    monkeypatch.setattr(runtime, "describe", fail)
    result = command_line("model", "info", "x")
    assert (result.code, result.out) == (family.exit_code, "")
    assert result.err == "error: the thing is wrong\nhint: Do this.\n"


def _break(*_, **__):
    raise RuntimeError("boom")


def test_a_bug_asks_for_a_report_without_a_traceback(command_line, runtime, monkeypatch):
    monkeypatch.setattr(runtime, "describe", _break)
    result = command_line("model", "info", "x")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: RuntimeError: boom\nhint: This is a bug.")
    assert "Traceback" not in result.err


@pytest.mark.parametrize("arguments", [("model", "info", "x"), ("model", "info", "missing")])
def test_debug_shows_the_traceback(command_line, runtime, monkeypatch, arguments):
    monkeypatch.setattr(runtime, "describe", _break)
    assert "Traceback (most recent call last)" in command_line("--debug", *arguments).err


def test_ctrl_c_is_130_without_a_word(command_line, runtime, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "describe", interrupt)
    result = command_line("model", "info", "x")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_a_reader_that_goes_away_ends_the_program_quietly():
    with subprocess.Popen(
        [sys.executable, "-m", "tests.cli.program", "chat", "fake"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=_ROOT,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"echo: one \n"
        process.stdout.close()  # as `| head -1` does
        process.stdin.write(b"two\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(30) == 1


def test_a_terminal_that_is_not_utf8_gets_escapes_and_no_crash():
    process = _process(
        *["-m", "tests.cli.program", "infer", "fake", "--prompt", "caf\u00e9"],
        env={"PYTHONIOENCODING": "ascii"},
        cwd=_ROOT,
    )
    assert (process.returncode, process.stdout) == (0, "echo: caf\\xe9 \n")
