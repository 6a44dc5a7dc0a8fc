"""Kills a change of a cache before each of its file operations; run by its own process.

Prints how often it was killed, and how often then the old model, none, or the new one was
found. A process of one thread may fork; the one that runs the tests may not.
"""

import os
import signal
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.card import ModelCard, Progress, SilentProgress
from hyprstream.catalog.repair import repair
from hyprstream.catalog.staging import Staging
from hyprstream.refs import ModelRef
from tests.catalog.fakes import contents, put

TINY = ModelRef.parse("pypi://tiny")
TINY_1 = ModelRef.parse("pypi://tiny@1")
OTHER = ModelRef.parse("pypi://other")
OLD = {"config.json": b"shared", "a.safetensors": b"old"}
NEW = {"config.json": b"shared", "b/c.safetensors": b"new", "d.txt": b"more"}
CHANGES = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}


def change(cache: ModelCache, action: str) -> None:
    if action == "replace":
        put(cache, NEW)
    elif action == "remove":
        cache.remove(TINY)
    elif action == "remove weights":
        cache.remove_weights(TINY, lambda _: b"a description")
    elif action == "clean":
        cache.clean(cache.leftovers(old_revisions=True))
    else:
        repair(cache, send, TINY_1, SilentProgress())


def send(ref: ModelRef, staging: Staging, _: Progress, __: Sequence[str]) -> ModelCard:
    for name, content in OLD.items():
        staging.write(name, [content], size_bytes=len(content), sha256=None)
    return ModelCard(ref=ref, files=staging.files, entry="", source="a test")


def prepare(cache: ModelCache, action: str) -> None:
    """Bring the cache where the change begins: damage to repair, leftovers to clean."""
    put(cache, {"config.json": b"shared"}, name="other")
    put(cache, OLD)
    root, view = cache.shelf.root, cache.shelf.view(TINY_1)
    if action == "clean":
        put(cache, {"config.json": b"older"}, revision="0", pinned=True)
        for place in ("temp/pypi+gone/a/0.part", "models/pypi/gone/1/a", "quarantine/a/1/b"):
            (root / place).parent.mkdir(parents=True)
            (root / place).write_bytes(b"left")
        (root / "blobs/sha256" / ("0" * 64)).write_bytes(b"left")
    if action == "repair":
        (view / "foreign").write_bytes(b"foreign")
        (view / "a.safetensors").chmod(0o644)
        (view / "a.safetensors").write_bytes(b"bad")


def change_until_killed(cache: ModelCache, action: str, num_operations: int) -> bool:
    """Let a child change the cache; it is killed before the operation of that number."""
    child = os.fork()
    if child == 0:
        numbers = count()

        def kill(event: str, _: Any) -> None:
            if event in CHANGES and next(numbers) == num_operations:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill)
        change(cache, action)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def look(cache: ModelCache) -> str:
    """Say which model is found; it is whole, unless its damage was there before."""
    model = cache.find(TINY)
    if model is None:
        return "none"
    files = contents(model.path)
    if b"bad" in files.values():
        assert {damage.file for damage in cache.verify(TINY)} >= {"a.safetensors"}
        return "old"
    assert files in (OLD, NEW)
    assert cache.verify(TINY) == []
    return "old" if files == OLD else "new"


def main(folder: Path, action: str) -> None:
    found = {"old": 0, "none": 0, "new": 0}
    for number in count():
        root = folder / str(number)
        cache = ModelCache(root)
        prepare(cache, action)
        if not change_until_killed(cache, action, number):
            break
        assert cache.verify(OTHER) == []
        found[look(cache)] += 1
        if action == "repair" and cache.find(TINY):
            repair(cache, send, TINY_1, SilentProgress())
            assert cache.verify(TINY) == []
            assert contents(cache.shelf.view(TINY_1)) == OLD
        # The next fetch succeeds, and clears away what the killed one left.
        assert contents(put(cache, NEW).path) == NEW
        cache.clean(cache.leftovers(old_revisions=True))
        assert cache.leftovers(old_revisions=True) == []
        kept = {file.read_bytes() for file in root.glob("blobs/sha256/*")}
        assert kept == set(NEW.values())
        assert list(root.glob("temp/*")) == []
        assert len(contents(root / "models")) == len(NEW) + 1
    sys.stdout.write(f"{number} {found['old']} {found['none']} {found['new']}\n")


if __name__ == "__main__":
    # A kill of the process, unlike a loss of power, loses nothing that the kernel has been given.
    os.fsync = lambda fd: None  # noqa: ARG005 - its name is part of the signature
    main(Path(sys.argv[1]), sys.argv[2])
