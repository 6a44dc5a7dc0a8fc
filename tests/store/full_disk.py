"""Fills a small disk with adapters; run by its own process, in a file system of its own.

Prints how many commits were acknowledged before the disk was full.
"""

import sys
from datetime import timedelta
from pathlib import Path

from hyprstream.errors import StorageFullError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.store.store import AdapterStore
from tests.store.fakes import draft

NAME = AdapterName("support")


def fill(store: AdapterStore, size_bytes: int) -> list[VersionId]:
    """Commit and promote until the disk is full; return what was acknowledged."""
    versions: list[VersionId] = []
    while True:
        content = len(versions).to_bytes(4, "little") * (size_bytes // 4)
        try:
            version = store.commit(content, draft())
            if versions:
                store.promote(NAME, version, expected=store.current(NAME))
            elif NAME not in {adapter.name for adapter in store.list()}:
                store.create(NAME, version)
        except StorageFullError:
            return versions
        versions.append(version)


def main(folder: Path) -> None:
    ballast = folder / "ballast"
    ballast.write_bytes(bytes(300_000))
    store = AdapterStore(folder / "store")
    versions = fill(store, 50_000)
    versions += fill(store, 40)  # into the last corner
    assert store.verify() == ()
    for version in versions:
        with store.open(version) as file:
            assert file.stat().st_size > 0
    assert list((folder / "store" / "temp").iterdir()) == []
    store.close()

    store = AdapterStore(folder / "store")
    assert store.current(NAME) in versions
    assert store.verify() == ()
    ballast.unlink()
    version = store.commit(b"there is room again", draft())
    store.promote(NAME, version, expected=store.current(NAME))
    store.collect(keep_history=0, grace=timedelta(0))
    assert store.verify() == ()
    assert fill(store, 50_000)
    sys.stdout.write(f"{len(versions)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
