"""What `table.json` says of a table."""

import json
import re
from pathlib import Path
from typing import Any

from hyprstream.errors import CorruptVectorsError
from hyprstream.vectors.index import IndexEntry
from hyprstream.vectors.table import Segment, Stamp, VectorTable

_FORMAT = 1
_FILE = re.compile(r"[0-9a-f]{16}\.arrow")
_INDEX_FILE = re.compile(r"[0-9a-f]{16}\.faiss")


def content_of(table: VectorTable) -> bytes:
    """Describe a table."""
    content = {
        "format": _FORMAT,
        "dim": table.dim,
        "stamp": table.stamp.plain(),
        "segments": [[s.file, s.num_rows, s.size_bytes] for s in table.segments],
        "id": table.id,
        "index": None if table.index is None else table.index.plain(),
    }
    return json.dumps(content).encode()


def described(name: str, file: Path, content: bytes) -> VectorTable:
    """Return the table that a file describes.

    Raises:
        CorruptVectorsError: It describes none.
    """
    try:
        return _described(name, file.parent, json.loads(content))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptVectorsError(file, f"it describes no table: {error}") from error


def same(one: VectorTable, other: VectorTable) -> bool:
    """Tell whether two descriptions of a table say the same."""
    names = ("id", "segments", "stamp", "index")
    return all(getattr(one, name) == getattr(other, name) for name in names)


def _described(name: str, folder: Path, content: dict[str, Any]) -> VectorTable:
    if content["format"] != _FORMAT:
        raise ValueError(f"its format is {content['format']!r}")
    stamp = Stamp(**content["stamp"])
    segments = [Segment(*entry) for entry in content["segments"]]
    dim = content["dim"]
    texts = [*content["stamp"].values(), *(entry[0] for entry in content["segments"])]
    numbers = [dim, *(number for entry in content["segments"] for number in entry[1:])]
    if (
        {type(text) for text in texts} - {str}
        or {type(number) for number in numbers} - {int}
        or not all(_FILE.fullmatch(segment.file) for segment in segments)
    ):
        raise ValueError("an entry is of another type")
    index = content.get("index")
    entry = None if index is None else _indexed(index)
    table_id = str(content.get("id", ""))  # tables of before have none
    return VectorTable(name, folder, dim, stamp, segments, id=table_id, index=entry)


def _indexed(content: dict[str, Any]) -> IndexEntry:
    numbers = [content[name] for name in ("size_bytes", "num_rows", "num_trained", "probes")]
    if (
        {type(number) for number in numbers} != {int}
        or min(numbers) < 1
        or type(content["recall"]) is not float
        or not _INDEX_FILE.fullmatch(content["file"])
    ):
        raise ValueError("its index is of another form")
    return IndexEntry(**content)
