"""The project's documents."""

import re
from pathlib import Path

from tests.project.sources import ROOT

DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    """List the fenced blocks of a page that are marked with a language."""
    found: list[tuple[str, str]] = _BLOCK.findall(page.read_text("utf-8"))
    return [text for kind, text in found if kind == language]
