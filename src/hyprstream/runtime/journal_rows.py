"""What the journal holds, and how rows of its tables are read. Plain data, no torch."""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hyprstream.errors import CorruptStoreError, StorageFullError, UnavailableError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.canary import COMPLETE, Side, Trial
from hyprstream.store.records import Canary
from hyprstream.train.buffer import Kept
from hyprstream.train.sample import Sample

FORMAT = 2
"""Of the tables. In format 1 samples had no owners."""

Action = Literal[
    "publishing", "published", "canary", "rejected", "stale", "abandoned", "failed", "disabled",
    "rolled_back", "promoted", "withdrawn",
]  # fmt: skip
"""What was decided; `publishing` becomes one of the next, if not by this process then by its
successor. What is a `canary` is `promoted` or `withdrawn` later, in a decision of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """One decision of the loop.

    Attributes:
        adapter: About which adapter.
        action: What was decided.
        parent: The version that it began with.
        version: The version that it made, if it was committed.
        reasons: Why.
        numbers: What was looked at.
        samples: Numbers of the samples that it is about.
        at: When, in seconds since 1970; set by the journal.
        id: Set by the journal.
    """

    adapter: AdapterName
    action: Action
    parent: VersionId | None = None
    version: VersionId | None = None
    reasons: tuple[str, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[int, ...] = ()
    at: float = 0.0
    id: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestRow:
    """How a request ended.

    Attributes:
        id: Its id.
        adapter: The adapter that it named; None for the base model.
        version: The version that answered.
        outcome: Its finish reason, or the code of its error.
        prompt_tokens: Tokens of the prompt.
        completion_tokens: Tokens of the answer.
        feedback: What the user said of it; None if nothing.
    """

    id: str
    adapter: AdapterName | None
    version: VersionId | None
    outcome: str
    prompt_tokens: int
    completion_tokens: int
    feedback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCounts:
    """Samples of one adapter by what became of them."""

    waiting: int = 0
    held_out: int = 0
    used: int = 0
    dropped: int = 0
    withdrawn: int = 0


def decisions(
    db: sqlite3.Connection, adapter: AdapterName | None, since: float = 0.0
) -> list[Decision]:
    """List decisions about an adapter, or about all, the first one first."""
    rows = db.execute(
        "SELECT id, adapter, at, action, parent, version, reasons, numbers, samples "
        "FROM decisions WHERE (? IS NULL OR adapter = ?) AND at >= ? ORDER BY id",
        (adapter, adapter, since),
    ).fetchall()
    return [
        Decision(
            id=number,
            adapter=AdapterName(name),
            at=at,
            action=action,
            parent=parent,
            version=version,
            reasons=tuple(json.loads(reasons)),
            numbers=json.loads(numbers),
            samples=tuple(json.loads(samples)),
        )
        for number, name, at, action, parent, version, reasons, numbers, samples in rows
    ]


def samples(db: sqlite3.Connection, condition: str, values: tuple[object, ...] = ()) -> list[Kept]:
    """List the samples of which a condition of SQL holds; `?` in it stands for the values."""
    query = "SELECT id, adapter, source, tokens, counts, weight, held_out FROM samples WHERE "
    return [
        Kept(
            id=number,
            adapter=AdapterName(adapter),
            source=source,
            sample=Sample(tuple(json.loads(tokens)), tuple(mark == "1" for mark in counts), weight),
            is_held_out=bool(held_out),
        )
        for number, adapter, source, tokens, counts, weight, held_out in db.execute(
            query + condition, values
        ).fetchall()
    ]


def trial(db: sqlite3.Connection, adapter: AdapterName, canary: Canary) -> Trial:
    """Tell how a canary stands by the requests that are known."""
    complete = ", ".join("?" * len(COMPLETE))
    query = (
        f"SELECT count(*) FILTER (WHERE at >= ? AND outcome IN ({complete})), "  # noqa: S608
        "count(*) FILTER (WHERE feedback = 'good'), "
        "count(*) FILTER (WHERE feedback IN ('bad', 'correction')) "
        "FROM requests WHERE adapter = ? AND version = ?"
    )
    since = canary.since.timestamp()
    own, others = (
        Side(**dict(zip(("answers", "good", "bad"), row, strict=True)))
        for version in (canary.version, canary.parent)
        for row in db.execute(query, (since, *COMPLETE, adapter, version))
    )
    return Trial(canary=canary, own=own, others=others)


def others_words(
    db: sqlite3.Connection, adapter: AdapterName, since: float, most: int
) -> list[Kept]:
    """List the latest samples since a moment that are held out, and that no version had written.

    What a version says itself is likelier to it than to any other, so that by such samples it
    would seem to be the best. What people sent or corrected is nobody's.
    """
    condition = (
        "adapter = ? AND held_out AND fate IS NULL AND at >= ? AND NOT EXISTS ("
        "SELECT 1 FROM requests WHERE requests.id = samples.source "
        "AND coalesce(feedback, '') != 'correction') ORDER BY id DESC LIMIT ?"
    )
    return samples(db, condition, (adapter, since, most))


def sample_counts(db: sqlite3.Connection) -> dict[AdapterName, SampleCounts]:
    """Count the samples of each adapter."""
    found: dict[AdapterName, dict[str, int]] = {}
    query = "SELECT adapter, fate, held_out, count(*) FROM samples GROUP BY adapter, fate, held_out"
    for adapter, fate, held_out, number in db.execute(query):
        counted = found.setdefault(AdapterName(adapter), {})
        kind = fate or ("held_out" if held_out else "waiting")
        counted[kind] = counted.get(kind, 0) + number
    return {adapter: SampleCounts(**counted) for adapter, counted in found.items()}


@contextmanager
def translated(file: Path) -> Iterator[None]:
    """Turn what SQLite says of a journal into errors that tell a user what to do.

    Raises:
        StorageFullError: The disk is full.
        UnavailableError: It cannot be used for another reason.
        CorruptStoreError: It is damaged.
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        full = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
        kind = StorageFullError if full else UnavailableError
        hint = "Free some space." if full else "Try again."
        raise kind(f"{file} cannot be used: {error}", hint=hint) from error
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:
            raise  # our own mistake, as a use after `close`
        raise CorruptStoreError(file, str(error)) from error
