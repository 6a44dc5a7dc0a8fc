"""Everything is documented, links lead somewhere, and what documents tell to type works."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer

from hyprstream import errors, lookup
from hyprstream.cli import main as command_line
from hyprstream.engine.request import SamplingParams
from hyprstream.models import arch
from hyprstream.models.checkpoint import BLOCK_TYPES
from hyprstream.runtime.settings import ModelSettings, Settings
from tests.project.sources import ROOT, SOURCE

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def _blocks(page: Path, language: str) -> list[str]:
    found: list[tuple[str, str]] = _BLOCK.findall(page.read_text("utf-8"))
    return [text for kind, text in found if kind == language]


# --- Everything is documented -----------------------------------------------------------------


def _subclasses(error: type[Exception]) -> Iterator[type[Exception]]:
    for child in error.__subclasses__():
        yield child
        yield from _subclasses(child)


def test_every_error_is_documented_with_its_exit_code():
    page = _page("reference/errors.md")
    for error in _subclasses(errors.HyprstreamError):
        if error.__module__ == errors.__name__:
            row = next(line for line in page.splitlines() if f"`{error.__name__}`" in line)
            assert f"| {error.exit_code} |" in row  # type: ignore[attr-defined]  # of our family


def _commands(command: Any, path: str = "hyprstream") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _commands(child, f"{path} {name}")


def test_every_command_and_option_is_documented():
    sections = re.split(r"^## ", _page("reference/cli.md"), flags=re.MULTILINE)
    documented = {section.partition("\n")[0]: section for section in sections}
    for path, command in _commands(typer.main.get_command(command_line._build())):
        assert path in documented
        for parameter in command.params:
            for option in [*parameter.opts, *parameter.secondary_opts]:
                assert option.startswith("-") is False or option in documented[path]


def test_every_setting_is_documented():
    page = _page("reference/settings.md")
    keys = {*Settings.model_fields, *(f"model.{field.name}" for field in fields(ModelSettings))}
    for key in keys - {"model"}:
        assert f"| `{key}` | `HYPRSTREAM_{key.replace('.', '__').upper()}` |" in page


def test_every_sampling_parameter_is_documented():
    page = _page("reference/sampling.md")
    for field in fields(SamplingParams):
        assert f"| `{field.name}` |" in page


def test_every_architecture_registry_and_quantised_format_is_documented():
    page = _page("reference/formats.md")
    families = lookup.names("hyprstream.models.arch")
    schemes = [f"{name}://" for name in lookup.names("hyprstream.catalog.registries")]
    for name in [*families, *arch.ALIASES, *schemes, *BLOCK_TYPES]:
        assert f"`{name}`" in page


def test_every_folder_of_the_source_is_in_the_tree_and_all_in_the_tree_exists():
    tree = _page("design/layers.md").partition("src/hyprstream/\n")[2].partition("```")[0]
    folders = {
        f"{folder.name}/" for folder in SOURCE.rglob("*/") if (folder / "__init__.py").exists()
    }
    assert folders - {"hyprstream/"} == set(re.findall(r"\b\w+/", tree))
    known = {file.name for file in SOURCE.rglob("*.py")}
    assert set(re.findall(r"\w+\.py\b", tree)) <= known


# --- Links and excerpts -----------------------------------------------------------------------


def _anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in _LINK.findall(page.read_text("utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_source_that_a_page_names_exist(page):
    """Paths in backticks, as `models/load.py`, are below src/hyprstream or the root."""
    for path in re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.(?:py|md|toml|json))\b", page.read_text()):
        assert (SOURCE / path).exists() or (ROOT / path).exists(), path


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=lambda page: page.stem)
def test_python_in_how_to_pages_is_quoted_from_the_source(page):
    sources = [file.read_text("utf-8") for file in SOURCE.rglob("*.py")]
    for block in _blocks(page, "python"):
        for excerpt in block.strip().split("\n\n\n"):
            assert any(excerpt in source for source in sources), excerpt


# --- What documents tell to type works --------------------------------------------------------


def _commands_of(block: str) -> list[str]:
    return [line.removeprefix("$ ") for line in block.splitlines() if line.startswith("$ ")]


def _run(program: list[str], folder: Path) -> None:
    """Run a program as a reader would, nothing to read from and .venv/bin on the PATH."""
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        program,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, f"{program[-1]}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md"])
@pytest.mark.timeout(400)
def test_every_command_and_program_of_a_page_runs(page, tmp_path, request):
    """In order, in one folder: blocks may use what earlier ones left there."""
    for model in ("default_model", "embedding_model"):
        request.getfixturevalue(model)  # skips, saying so, where models cannot be fetched
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for block in _blocks(ROOT / page, "console"):
        commands = _commands_of(block)
        assert commands, block
        runs = [command for command in commands if not command.startswith("make ")]
        for command in set(commands) - set(runs):
            assert command.removeprefix("make ") in targets
        if runs:
            script = "\n".join(["set -euo pipefail", *runs])
            _run(["bash", "-c", script], tmp_path)
    session = "\n".join(_blocks(ROOT / page, "python"))
    _run([sys.executable, "-c", session], tmp_path)
