import json
from dataclasses import asdict, dataclass

import pytest


@dataclass(frozen=True)
class Check:
    name: str
    status: str
    detail: str
    hint: str = ""


OK = Check("python", "ok", "3.11.7")
WARN = Check("memory", "warn", "0.5 GiB free", "Close other programs.")
FAIL = Check("pip", "fail", "not importable", "Run ensurepip.")


@pytest.mark.parametrize(
    ("checks", "code"), [([], 0), ([OK], 0), ([OK, WARN], 0), ([OK, FAIL, WARN], 1)]
)
def test_only_a_failed_check_fails_the_command(command_line, runtime, checks, code):
    runtime.checks = checks
    assert command_line("doctor").code == code


def test_checks_are_a_table_and_hints_go_to_stderr(command_line, runtime, golden):
    runtime.checks = [OK, WARN, FAIL]
    result = command_line("doctor")
    golden("doctor", result.out + "--- stderr\n" + result.err)


def test_checks_as_json(command_line, runtime):
    runtime.checks = [OK, FAIL]
    assert json.loads(command_line("doctor", "--format", "json").out) == [asdict(OK), asdict(FAIL)]
