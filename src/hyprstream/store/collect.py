"""Which versions nothing leads to any more."""

import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime

_CHAIN = """
WITH RECURSIVE chain (number, version, below, depth) AS (
    SELECT m.number, m.version, m.below, 0
    FROM names AS n JOIN moves AS m ON m.number = n.move
    UNION ALL
    SELECT m.number, m.version, m.below, chain.depth + 1
    FROM chain JOIN moves AS m ON m.number = chain.below WHERE chain.depth < :keep
)
SELECT version FROM chain
UNION
SELECT version FROM (
    SELECT version, row_number() OVER (PARTITION BY name ORDER BY number DESC) AS age FROM moves
) WHERE age <= :keep
"""


def unreachable(
    db: sqlite3.Connection,
    is_held: Callable[[str], bool],
    *,
    keep_history: int | None,
    recorded_since: datetime,
    given_up: Collection[str] = (),
) -> list[str]:
    """List the versions that may go.

    What stays: what names and tags point at; what the history keeps; what is new; what is
    being read; and every parent without which one of these could not be decoded.

    Args:
        db: An open transaction.
        is_held: Tells whether a payload is being read.
        keep_history: How many rollbacks and how many of the latest moves of each name keep
            their versions; None keeps those of all moves.
        recorded_since: What was committed later stays.
        given_up: These go even so, if nothing else leads to them.
    """
    needs = {}
    payloads = {}
    kept = set(_pointed_at(db, keep_history))
    for version, recorded, payload, needed in db.execute(
        "SELECT id, recorded, payload, needed FROM versions"
    ):
        payloads[version] = payload
        if needed is not None:
            needs[version] = needed
        if datetime.fromisoformat(recorded) > recorded_since and version not in given_up:
            kept.add(version)
    kept |= {v for v in payloads.keys() - kept if is_held(payloads[v])}
    return sorted(payloads.keys() - _with_parents(kept, needs))


def _pointed_at(db: sqlite3.Connection, keep_history: int | None) -> Iterator[str]:
    queries = ["SELECT version FROM names", "SELECT version FROM tags"]
    queries.append("SELECT version FROM moves" if keep_history is None else _CHAIN)
    for query in queries:
        for (version,) in db.execute(query, {"keep": keep_history}):
            yield version


def _with_parents(versions: Iterable[str], needs: dict[str, str]) -> set[str]:
    closed: set[str] = set()
    for start in versions:
        version: str | None = start
        while version is not None and version not in closed:
            closed.add(version)
            version = needs.get(version)
    return closed
