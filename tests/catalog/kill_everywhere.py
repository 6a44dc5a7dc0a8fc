"""Kills a change of a cache before each of its file operations; run by its own process.

Prints how often it was killed, and how often then the old model, none, or the new one was
found. A process of one thread may fork; the one that runs the tests may not.
"""

import os
import signal
import sys
from itertools import count
from pathlib import Path
from typing import Any

from hyprstream.catalog.cache import ModelCache
from hyprstream.refs import ModelRef
from tests.catalog.fakes import contents, put

TINY = ModelRef.parse("pypi://tiny")
OTHER = ModelRef.parse("pypi://other")
OLD = {"config.json": b"shared", "a.safetensors": b"old"}
NEW = {"config.json": b"shared", "b/c.safetensors": b"new", "d.txt": b"more"}
CHANGES = {"open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod"}


def change(cache: ModelCache, action: str) -> None:
    if action == "replace":
        put(cache, NEW)
    else:
        cache.remove(TINY)


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


def main(folder: Path, action: str) -> None:
    found = {"old": 0, "none": 0, "new": 0}
    for number in count():
        root = folder / str(number)
        cache = ModelCache(root)
        put(cache, {"config.json": b"shared"}, name="other")
        put(cache, OLD)
        if not change_until_killed(cache, action, number):
            break
        assert cache.verify(OTHER) == []
        model = cache.find(TINY)
        if model is None:
            found["none"] += 1
        else:
            found["old" if contents(model.path) == OLD else "new"] += 1
            assert contents(model.path) in (OLD, NEW)
            assert cache.verify(TINY) == []
        # The next fetch succeeds, and clears away what the killed one left.
        assert contents(put(cache, NEW).path) == NEW
        kept = {file.read_bytes() for file in root.glob("blobs/sha256/*")}
        assert kept == set(NEW.values())
        assert list(root.glob("temp/*")) == []
        assert len(contents(root / "models")) == len(NEW) + 1
    sys.stdout.write(f"{number} {found['old']} {found['none']} {found['new']}\n")


if __name__ == "__main__":
    # A kill of the process, unlike a loss of power, loses nothing that the kernel has been given.
    os.fsync = lambda fd: None  # noqa: ARG005 - its name is part of the signature
    main(Path(sys.argv[1]), sys.argv[2])
