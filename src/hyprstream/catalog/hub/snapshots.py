"""Models that lie in the cache of the Hub's own tools; used there, never written to.

    models--ORG--NAME/refs/main             the commit that a branch was last seen at
    models--ORG--NAME/snapshots/COMMIT/...  files by name, links to blobs
    models--ORG--NAME/trees/COMMIT.json     which files the commit has, if a tool asked for all

Those tools fetch file by file what a program opens, so a snapshot may be a part of a model. It
is used if nothing can be missing that the loader reads.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from hyprstream.catalog.hub.selection import DEFAULT_QUANT, Choice, choose, quant_of
from hyprstream.errors import HyprstreamError
from hyprstream.files import inside

_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_NOTE_BYTES = 64 << 20  # of a list of files, and of an index of shards
_MAX_FILES = 10_000


def find(cache: Path, name: str, revision: str | None, tag: str | None) -> Path | None:
    """Find what a loader opens.

    Args:
        cache: The folder of the cache.
        name: The repository.
        revision: A commit, branch or tag of it; None means `main`.
        tag: A quantisation, as in `selection.choose`.

    Returns:
        A folder or a GGUF file; None if the model is not there as a whole.
    """
    folder = cache / f"models--{name.replace('/', '--')}"
    try:
        commit = _commit(folder, revision or "main")
        if commit is None:
            return None
        snapshot = inside(cache, folder.name, "snapshots", commit)
        sizes = _sizes(cache, snapshot)
        listed = _listed_sizes(folder / "trees" / f"{commit}.json")
        choice = choose(name, list(listed or sizes), tag=tag)
    except (HyprstreamError, OSError, ValueError, RecursionError):
        return None
    if not _complete(choice, sizes, listed, tag, snapshot):
        return None
    return snapshot / choice.entry


def _commit(folder: Path, revision: str) -> str | None:
    if not _COMMIT.fullmatch(revision):
        file = inside(folder, "refs", *revision.split("/"))
        if not file.is_file():
            return None
        revision = file.read_text("ascii")[:64].strip()
    return revision if _COMMIT.fullmatch(revision) else None


def _sizes(cache: Path, snapshot: Path) -> dict[str, int]:
    """Measure the files of a snapshot whose content is there, inside the cache."""
    root, sizes = cache.resolve(), {}
    for file in snapshot.rglob("*"):
        if file.is_file() and file.resolve().is_relative_to(root):
            sizes[file.relative_to(snapshot).as_posix()] = file.stat().st_size
            if len(sizes) > _MAX_FILES:
                return {}
    return sizes


def _listed_sizes(file: Path) -> dict[str, int] | None:
    """Read the list of a commit's files; None if there is none, or it makes no sense."""
    note = _read(file)
    files = note.get("files") if note is not None else None
    if not isinstance(files, dict):
        return None
    sizes = {}
    for name, entry in files.items():
        size = entry.get("lfs_size", entry.get("size")) if isinstance(entry, dict) else None
        if type(size) is not int:
            return None
        sizes[name] = size
    return sizes


def _complete(
    choice: Choice,
    sizes: Mapping[str, int],
    listed: Mapping[str, int] | None,
    tag: str | None,
    snapshot: Path,
) -> bool:
    """Tell whether nothing can be missing; without a list, that follows from what is there."""
    if listed is not None:
        return all(sizes.get(name) == listed[name] for name in choice.names)
    if choice.entry:  # more of them may be on the Hub: only what is named is certain
        return tag is not None or quant_of(choice.entry) == DEFAULT_QUANT
    if "tokenizer.json" not in choice.names:
        return False
    index = next((name for name in choice.names if name.endswith(".index.json")), None)
    if index is None:
        return True
    weight_map = (_read(snapshot / index) or {}).get("weight_map")
    if not isinstance(weight_map, dict):
        return False
    shards = set(map(str, weight_map.values()))
    return bool(shards) and shards <= sizes.keys()


def _read(file: Path) -> dict[str, object] | None:
    try:
        if file.stat().st_size > _MAX_NOTE_BYTES:
            return None
        value = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
