"""What README, tutorial and the pages on adapters tell to type works, on the default models."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hyprstream.runtime import load_settings
from tests.project.pages import blocks
from tests.project.sources import ROOT

README, TUTORIAL = ROOT / "README.md", ROOT / "docs" / "tutorial.md"
ADAPTERS = ROOT / "docs" / "adapters.md"
LEARNING = ROOT / "docs" / "learning.md"


def _commands(block: str) -> list[str]:
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def _home(folder: Path) -> Path:
    """Make a home that shares the user's models and what was made of them, and nothing else."""
    home = folder / "home"
    if not home.exists():
        home.mkdir()
        settings = load_settings()
        settings.anchors_folder.mkdir(parents=True, exist_ok=True)
        (home / "cache").symlink_to(settings.cache_folder)
        (home / "anchors").symlink_to(settings.anchors_folder)
    return home


def _run(program: list[str], folder: Path) -> None:
    """Run a program as a reader would: .venv/bin on the PATH, here with nothing to read from."""
    bin_folder = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "HYPRSTREAM_HOME": str(_home(folder)),
    }
    done = subprocess.run(
        program,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # of a page that trains a real model, on a machine that does other things
    )
    assert done.returncode == 0, f"{program[-1]}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", [README, TUTORIAL, ADAPTERS, LEARNING], ids=lambda page: page.name)
def test_every_make_target_that_a_page_names_exists(page):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for block in blocks(page, "console"):
        for command in _commands(block):
            assert not command.startswith("make ") or command.removeprefix("make ") in targets


@pytest.mark.parametrize(
    ("page", "tried_with"),
    [
        pytest.param(README, None, id="README"),
        pytest.param(TUTORIAL, README, id="tutorial", marks=pytest.mark.slow),
        pytest.param(ADAPTERS, None, id="adapters", marks=pytest.mark.slow),
        pytest.param(LEARNING, None, id="learning", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("default_model", "embedding_model")
def test_every_command_and_program_of_a_page_runs(page, tried_with, tmp_path):
    """In order, in one folder: blocks may use what earlier ones left there.

    A command that stands in the README as well is tried with it.
    """
    known = blocks(tried_with, "console") if tried_with else []
    tried = {command for block in known for command in _commands(block)}
    for block in blocks(page, "console"):
        commands = _commands(block)
        assert commands, block
        runs = [c for c in commands if c not in tried and not c.startswith("make ")]
        if runs:
            _run(["bash", "-c", "\n".join(["set -euo pipefail", *runs])], tmp_path)
    session = "\n".join(blocks(page, "python"))
    _run([sys.executable, "-c", session], tmp_path)
