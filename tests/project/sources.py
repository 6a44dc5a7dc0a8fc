"""Where the project's files are, and its source as syntax trees."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "hyprstream"


def modules() -> Iterator[tuple[str, ast.Module]]:
    """Yield the dotted name and the syntax tree of every module under src."""
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE.parent).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        yield name, ast.parse(file.read_text("utf-8"))
