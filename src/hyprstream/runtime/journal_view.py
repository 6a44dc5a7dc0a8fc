"""The journal as others see it while one process has it: nothing is changed. No torch."""

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from hyprstream.errors import CorruptStoreError
from hyprstream.files import is_locked
from hyprstream.refs import AdapterName
from hyprstream.runtime import journal_rows
from hyprstream.runtime.journal_rows import FORMAT, Decision, SampleCounts, translated


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
    if not file.exists():
        return JournalView(samples={}, decisions=[], is_held=is_held)
    with (
        translated(file),
        closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db,
    ):
        db.execute("PRAGMA trusted_schema = OFF")
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:  # it is being made
            return JournalView(samples={}, decisions=[], is_held=is_held)
        if found not in (1, FORMAT):  # what is looked at here was the same in format 1
            raise CorruptStoreError(file, f"it is a journal of format {found}")
        db.execute("BEGIN")
        return JournalView(
            samples=journal_rows.sample_counts(db),
            decisions=journal_rows.decisions(db, adapter),
            is_held=is_held,
        )
