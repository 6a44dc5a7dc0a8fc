"""Tries to move one name from one version to another, many times; run by its own process.

Reads lines `EXPECTED TO` and answers each with `won` or `stale`.
"""

import sys
from pathlib import Path

from hyprstream.errors import StaleParentError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.store.store import AdapterStore

NAME = AdapterName("support")


def main(root: Path) -> None:
    store = AdapterStore(root)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        expected, to = map(VersionId, line.split())
        try:
            store.promote(NAME, to, expected=expected)
            answer = "won"
        except StaleParentError:
            answer = "stale"
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
