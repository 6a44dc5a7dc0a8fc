"""Kills pulls at random moments; run by its own process, with the server in another one.

Prints how many pulls were killed with a part of the model on the disk, and how many had a whole
one. A process of one thread may fork; the one that runs the tests and the server may not.
"""

import json
import os
import random
import select
import signal
import sys
from pathlib import Path

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from tests.catalog.fakes import contents

_MOST_STEPS = 15
_LONGEST_S = 0.02


class Steps:
    """Follows progress: writes a byte to a pipe for each step."""

    def __init__(self, pipe: int) -> None:
        self._pipe = pipe

    def start(self, name: str, total_bytes: int | None) -> None:  # noqa: ARG002
        os.write(self._pipe, b".")

    def advance(self, num_bytes: int) -> None:  # noqa: ARG002
        os.write(self._pipe, b".")

    def done(self) -> None:
        os.write(self._pipe, b".")


def pull_until_killed(catalog: Catalog, text: str, moments: random.Random) -> None:
    """Let a child pull, and kill it a moment after some step, if it is not done by then."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        catalog.pull(catalog.resolve(text), Steps(theirs))
        os._exit(0)
    os.close(theirs)
    for _ in range(moments.randrange(_MOST_STEPS)):
        if not os.read(ours, 1):
            break
    select.select([], [], [], moments.uniform(0, _LONGEST_S))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ours)


def main(root: Path, custom: str, text: str, num_kills: int) -> None:
    catalog = Catalog(ModelCache(root), environ={}, custom=json.loads(custom))
    ref = catalog.resolve(text)
    moments = random.Random(num_kills)  # noqa: S311
    num_partial, num_whole = 0, 0
    for _ in range(num_kills):
        pull_until_killed(catalog, text, moments)
        num_partial += any(root.glob("partial/*.content"))
        for model in catalog.list():
            assert catalog.verify(model.card.ref) == ()
            catalog.remove(model.card.ref)
            num_whole += 1
    path = catalog.pull(ref)
    assert catalog.verify(ref) == ()
    # Whatever the killed ones left is gone with the next change of the cache.
    catalog.remove(ref)
    assert not path.exists()
    left = {name.partition("/")[0] for name in contents(root)}
    assert left <= {"locks"}, contents(root).keys()
    sys.stdout.write(f"{num_partial} {num_whole}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
