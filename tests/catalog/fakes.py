"""A fake that follows progress, how to commit a model, and how to see a folder whole."""

from collections.abc import Mapping
from pathlib import Path

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.card import ModelCard, SilentProgress
from hyprstream.catalog.records import CachedModel
from hyprstream.refs import ModelRef


class Recorder:
    """Remembers each phase: its name, its announced length, its bytes, and whether it ended."""

    def __init__(self) -> None:
        self.phases: list[tuple[str, int | None]] = []
        self.num_bytes: list[int] = []
        self.num_done = 0

    def start(self, name: str, total_bytes: int | None) -> None:
        self.phases.append((name, total_bytes))
        self.num_bytes.append(0)

    def advance(self, num_bytes: int) -> None:
        self.num_bytes[-1] += num_bytes

    def done(self) -> None:
        self.num_done += 1


def put(
    cache: ModelCache,
    files: Mapping[str, bytes],
    *,
    name: str = "tiny",
    revision: str = "1",
    pinned: bool = False,
    entry: str = "",
) -> CachedModel:
    """Commit a model as a registry would."""
    ref = ModelRef(scheme="pypi", name=name, revision=revision if pinned else None)
    with cache.stage(ref, SilentProgress()) as staging:
        for file, content in files.items():
            staging.write(file, [content], size_bytes=len(content), sha256=None)
        card = ModelCard(
            ref=ModelRef(scheme="pypi", name=name, revision=revision),
            files=staging.files,
            entry=entry,
            source="a test",
        )
        return cache.commit(staging, card)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }
