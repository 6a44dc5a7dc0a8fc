"""Servers as processes: one open to everybody, one with keys."""

import subprocess
import sys
from contextlib import contextmanager

import pytest


@contextmanager
def serving(folder, *options):
    command = [sys.executable, "-m", "tests.flight.serving", str(folder), *map(str, options)]
    log = (folder / "log").open("w+")
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        port = process.stdout.readline().strip()
        assert port, (folder / "log").read_text()
        yield port
    finally:
        process.stdin.close()
        code = process.wait(30)
        process.stdout.close()
        log.close()
    assert code == 0
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("open")) as found:
        yield found


@pytest.fixture(scope="module")
def guarded_port(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("guarded"), "gate") as found:
        yield found
