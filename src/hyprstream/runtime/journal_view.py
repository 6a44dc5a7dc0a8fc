"""The journal as others see it while one process has it: nothing is changed. No torch."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from hyprstream.errors import CorruptStoreError
from hyprstream.files import is_locked
from hyprstream.refs import AdapterName
from hyprstream.runtime import journal_rows
from hyprstream.runtime.canary import Trial
from hyprstream.runtime.journal_rows import FORMAT, Decision, SampleCounts, translated
from hyprstream.store.records import Canary
from hyprstream.train.buffer import Kept
from hyprstream.train.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalView:
    """What a journal held at one moment.

    Attributes:
        samples: By adapter.
        decisions: The first one first.
        is_held: A process has the journal.
    """

    samples: dict[AdapterName, SampleCounts]
    decisions: list[Decision]
    is_held: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRow:
    """A sample as it is kept.

    Attributes:
        id: Its number.
        at: When it came, in seconds since 1970.
        state: `waiting`, `held_out`, or what became of it.
        user: Who was named with it.
        key: Id of the key that it came with.
        kept: The sample.
    """

    id: int
    at: float
    state: str
    user: str
    key: str
    kept: Kept


def view_samples(
    file: Path, adapter: AdapterName, *, after: int = 0, most: int = 100
) -> list[KeptRow]:
    """List samples of an adapter by their numbers, whoever has the journal; see `view_journal`.

    Args:
        file: The journal.
        adapter: Whose.
        after: Those of higher numbers only.
        most: So many of them, the first ones.
    """
    with _looking(file) as found:
        if found is None:
            return []
        db, format_ = found
        names = "user, key" if format_ == FORMAT else "'', ''"
        condition = "adapter = ? AND id > ? ORDER BY id LIMIT ?"
        values = (adapter, after, most)
        samples = journal_rows.samples(db, condition, values)
        query = f"SELECT at, coalesce(fate, ''), {names} FROM samples WHERE {condition}"  # noqa: S608
        return [
            KeptRow(
                id=kept.id,
                at=at,
                state=fate or ("held_out" if kept.is_held_out else "waiting"),
                user=user,
                key=key,
                kept=kept,
            )
            for kept, (at, fate, user, key) in zip(samples, db.execute(query, values), strict=True)
        ]


def view_held_out(file: Path, adapter: AdapterName, most: int) -> list[Sample]:
    """List the latest samples that versions of an adapter are judged by; see `view_journal`."""
    with _looking(file) as found:
        if found is None:
            return []
        condition = "adapter = ? AND held_out AND fate IS NULL ORDER BY id DESC LIMIT ?"
        kept = journal_rows.samples(found[0], condition, (adapter, most))
        return [one.sample for one in kept]


def view_journal(file: Path, adapter: AdapterName | None = None) -> JournalView:
    """Look at a journal, whoever has it; one that is not there yet is empty.

    Args:
        file: The journal.
        adapter: Whose decisions to list; None lists all.

    Raises:
        UnavailableError: It cannot be read.
        CorruptStoreError: It is damaged, or of another format.
    """
    is_held = is_locked(file.with_suffix(".lock"))
    with _looking(file) as found:
        if found is None:
            return JournalView(samples={}, decisions=[], is_held=is_held)
        db, _ = found
        return JournalView(
            samples=journal_rows.sample_counts(db),
            decisions=journal_rows.decisions(db, adapter),
            is_held=is_held,
        )


def view_trial(file: Path, adapter: AdapterName, canary: Canary) -> Trial:
    """Tell how a canary stands, whoever has the journal; see `view_journal`."""
    with _looking(file) as found:
        if found is None:
            return Trial(canary=canary)
        return journal_rows.trial(found[0], adapter, canary)


@contextmanager
def _looking(file: Path) -> Iterator[tuple[sqlite3.Connection, int] | None]:
    """Give the journal at one moment, and its format; None while there is none."""
    if not file.exists():
        yield None
        return
    with (
        translated(file),
        closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db,
    ):
        db.execute("PRAGMA trusted_schema = OFF")
        found: int = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, 1, FORMAT):
            raise CorruptStoreError(file, f"it is a journal of format {found}")
        db.execute("BEGIN")
        yield (db, found) if found else None  # 0: it is being made
