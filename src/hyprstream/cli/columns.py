"""Cells in columns that fit a terminal. Pure functions.

rich lays out tables too, and takes seven seconds for ten thousand rows: it measures every cell
several times.
"""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

_GAP = "  "
_LEAST = 4  # cells that a column keeps, however narrow the terminal is


def columns(rows: Sequence[Sequence[str]], width: int | None) -> Iterator[str]:
    """Lay out rows of cells, one line or more for each; cells that are too wide are folded.

    Args:
        rows: Cells without control characters, as many in each row.
        width: Most letters of half width in a line; None: any number.

    Example:
        >>> list(columns([["NAME", "SIZE"], ["poet", "3.1 MB"]], None))
        ['NAME  SIZE', 'poet  3.1 MB']
    """
    widths = [max(map(_cells, column)) for column in zip(*rows, strict=True)]
    if width is not None:
        widths = _narrowed(widths, width - len(_GAP) * (len(widths) - 1))
    for row in rows:
        pieces = [_folded(cell, most) for cell, most in zip(row, widths, strict=True)]
        for line in zip_longest(*pieces, fillvalue=""):
            yield _GAP.join(map(_padded, line, widths)).rstrip()


def _narrowed(widths: Sequence[int], room: int) -> list[int]:
    """Take from the widest column until all fit, or none can give any more."""
    narrowed = list(widths)
    while sum(narrowed) > room and max(narrowed) > _LEAST:
        narrowed[narrowed.index(max(narrowed))] -= 1
    return narrowed


def _folded(cell: str, most: int) -> list[str]:
    """Cut a cell into lines, at blanks where there are any."""
    if _cells(cell) <= most:
        return [cell]
    lines: list[str] = []
    line = ""
    for word in cell.split(" "):
        joined = f"{line} {word}" if line else word
        if _cells(joined) <= most:
            line = joined
            continue
        if line:
            lines.append(line)
        *full, line = _chopped(word, most)
        lines += full
    return [*lines, line]


def _chopped(word: str, most: int) -> list[str]:
    from rich.cells import chop_cells

    return chop_cells(word, most) or [""]


def _padded(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))


def _cells(text: str) -> int:
    """Count the half-width letters that a text takes up."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
