"""Commits, moves and collects until it is killed; run by its own process.

Prints a line for each version that was acknowledged. The process that started it kills it
without warning at a time of its choosing.
"""

import sys
from datetime import timedelta
from itertools import count
from pathlib import Path

from hyprstream.refs import AdapterName
from hyprstream.store.store import AdapterStore
from tests.store.fakes import draft

NAME = AdapterName("support")


def main(root: Path) -> None:
    store = AdapterStore(root)
    for number in count():
        version = store.commit(b"%d" % number * 1000, draft(note=str(number)))
        names = {adapter.name for adapter in store.list()}
        if NAME in names:
            store.promote(NAME, version, expected=store.current(NAME))
        else:
            store.create(NAME, version)
        if number % 5 == 4:
            store.collect(keep_history=3, grace=timedelta(0))
        sys.stdout.write(f"{version}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
