"""What documents point to exists: links, files of the source, quoted code."""

import re
from pathlib import Path

import pytest

from tests.project.pages import DOCS, PAGES, blocks
from tests.project.sources import ROOT, SOURCE

_LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PATH = re.compile(r"`([a-z_]+(?:/[a-z_]+)+\.(?:py|md|json))\b")
_FILES = [
    f"/{file.relative_to(ROOT)}"
    for folder in (SOURCE, DOCS, ROOT / "tests", ROOT / "scripts")
    for file in folder.rglob("*.*")
]


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def _anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page):
    for link in _LINK.findall(page.read_text("utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_that_a_page_names_exist(page):
    """A path in backticks, as `models/load.py`, is the end of the path of a file."""
    for path in _PATH.findall(page.read_text("utf-8")):
        assert any(file.endswith(f"/{path}") for file in _FILES), path


# Run as programs instead, by tests/lora/formats/test_how_to.py and tests/server/test_how_to.py.
_PROGRAMS = (
    "import-and-export-adapters.md",
    "query-with-sql.md",
    "use-with-openai-clients.md",
)


@pytest.mark.parametrize(
    "page",
    [page for page in sorted((DOCS / "how-to").glob("*.md")) if page.name not in _PROGRAMS],
    ids=_name,
)
def test_python_in_how_to_pages_is_quoted_from_the_source(page):
    sources = [file.read_text("utf-8") for file in SOURCE.rglob("*.py")]
    for block in blocks(page, "python"):
        for excerpt in block.strip().split("\n\n\n"):
            assert any(excerpt in source for source in sources), excerpt
