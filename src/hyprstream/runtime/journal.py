"""What happened, on the disk: samples, what became of them, decisions, and how requests ended.

SQLite in write-ahead mode with `synchronous=FULL`, as in the store: what was acknowledged
survives a kill and a loss of power. One process at a time has a journal. No torch.
"""

import json
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

from hyprstream.errors import CorruptStoreError, UnavailableError
from hyprstream.files import lock, storage
from hyprstream.refs import AdapterName
from hyprstream.runtime import journal_rows
from hyprstream.runtime.canary import Trial
from hyprstream.runtime.journal_rows import FORMAT, Action, Decision, RequestRow, translated
from hyprstream.store.records import Canary
from hyprstream.train.buffer import NOBODY, Fate, Kept, Owner
from hyprstream.train.sample import Sample

_MAX_ROWS = {"requests": 100_000, "decisions": 10_000, "samples": 50_000}
_PRUNE_EVERY = 512  # rows added between looks at whether there are too many

_SCHEMA = """
CREATE TABLE samples (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    adapter TEXT NOT NULL, source TEXT NOT NULL, at REAL NOT NULL,
    tokens TEXT NOT NULL, counts TEXT NOT NULL, weight REAL NOT NULL,
    held_out INTEGER NOT NULL,
    fate TEXT,
    user TEXT NOT NULL DEFAULT '', key TEXT NOT NULL DEFAULT ''
);
CREATE INDEX samples_fate ON samples (fate, id);
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    adapter TEXT NOT NULL, at REAL NOT NULL, action TEXT NOT NULL,
    parent TEXT, version TEXT,
    reasons TEXT NOT NULL, numbers TEXT NOT NULL, samples TEXT NOT NULL
);
CREATE TABLE requests (
    id TEXT PRIMARY KEY,
    adapter TEXT, version TEXT, at REAL NOT NULL, outcome TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
    feedback TEXT
)
"""
_WITH_OWNERS = (
    "ALTER TABLE samples ADD COLUMN user TEXT NOT NULL DEFAULT ''",
    "ALTER TABLE samples ADD COLUMN key TEXT NOT NULL DEFAULT ''",
)


class Journal:
    """The journal in one file. Safe to use from any thread; calls wait for the disk.

    Invariant, checked by `test_journal_kills.py`: whatever was acknowledged is there after a
    kill at any moment.

    Attributes:
        decided: Counts what was decided since it was opened, unfinished publications apart.
    """

    def __init__(self, file: Path, *, clock: Callable[[], float] = time.time) -> None:
        """Open a journal, or make one.

        Raises:
            CacheBusyError: Another process has it.
            UnavailableError: It cannot be used.
            CorruptStoreError: It is damaged, or of another format.
        """
        self._file = file
        self._clock = clock
        self._turn = threading.Lock()
        self._num_added = 0
        self.decided: Counter[Action] = Counter()
        self._held = ExitStack()
        with storage(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        self._held.enter_context(lock(file.with_suffix(".lock"), f"the journal {file}", None))
        try:
            with self._translated():
                self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
                self._prepare()
        except BaseException:
            self._held.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        with self._turn, self._translated():
            self._db.close()
        self._held.close()

    # Samples: what `SampleLog` asks for -----------------------------------------------

    def append(
        self,
        adapter: AdapterName,
        sample: Sample,
        source: str,
        *,
        held_out: bool,
        owner: Owner = NOBODY,
    ) -> int:
        """Keep a sample; it is on the disk when this returns its number.

        Raises:
            StorageFullError: The disk is full.
        """
        tokens = json.dumps(sample.token_ids)
        counts = "".join("01"[mark] for mark in sample.counts)
        with self._change() as db:
            done = db.execute(
                "INSERT INTO samples "
                "(adapter, source, at, tokens, counts, weight, held_out, user, key) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(adapter, source, self._clock(), tokens, counts, sample.weight, held_out),
                    *(owner.user, owner.key),
                ),
            )
        assert done.lastrowid is not None
        return done.lastrowid

    def end(self, ids: Sequence[int], fate: Fate) -> None:
        """Keep what became of samples."""
        with self._change() as db:
            _end(db, ids, fate)

    def waiting(self) -> Iterator[Kept]:
        """Return the samples that nothing became of yet, oldest first."""
        yield from self._samples("fate IS NULL ORDER BY id")

    def used(self) -> Iterator[Kept]:
        """Return the samples that were learnt from, oldest first."""
        yield from self._samples("fate = 'used' ORDER BY id")

    def others_words(self, adapter: AdapterName, since: float, most: int) -> list[Sample]:
        """List samples to judge by; see `journal_rows.others_words`."""
        with self._turn, self._translated():
            kept = journal_rows.others_words(self._db, adapter, since, most)
            return [one.sample for one in kept]

    def adapters(self) -> list[AdapterName]:
        """List whose samples are kept."""
        with self._turn, self._translated():
            rows = self._db.execute("SELECT DISTINCT adapter FROM samples ORDER BY adapter")
            return [AdapterName(name) for (name,) in rows]

    def forget(self, adapter: AdapterName, *, before: float) -> None:
        """Withdraw all samples of an adapter that came before a moment, used ones too."""
        with self._change() as db:
            db.execute(
                "UPDATE samples SET fate = 'withdrawn' "
                "WHERE adapter = ? AND at < ? AND fate IS NOT 'withdrawn'",
                (adapter, before),
            )

    def revive(self, ids: Sequence[int]) -> int:
        """Let samples that were dropped wait again; return how many."""
        query = "UPDATE samples SET fate = NULL WHERE id = ? AND fate = 'dropped'"
        with self._change() as db:
            return sum(db.execute(query, (number,)).rowcount for number in ids)

    def remove_of(
        self,
        owner: Owner,
        may_remove: Callable[[AdapterName], bool] = lambda _: True,
    ) -> list[Kept]:
        """Remove the samples of a user, of a key, or of a user with a key, whatever their fate.

        Nothing of them is left in the files then, nor are the rows of the requests that they
        came from.

        Args:
            owner: What is empty is not looked at; something has to be named.
            may_remove: Of which adapters.

        Returns:
            What they were.

        Raises:
            UnavailableError: A reader holds on to the files. The rows are gone; call it again.
        """
        named = {name: value for name, value in asdict(owner).items() if value}
        assert named, "nobody is named"
        condition = " AND ".join(f"{name} = ?" for name in named)
        found = self._remove(condition, tuple(named.values()), may_remove)
        if not self._clean():
            raise UnavailableError(
                "the samples are deleted, and a reader keeps their bytes from being overwritten",
                hint="Ask again in a moment.",
            )
        return found

    def remove_old(self, adapter: AdapterName, *, before: float, most: int) -> list[Kept]:
        """Remove the samples of an adapter that came before a moment, or are too many.

        Those go first of which something became, then those that came first.

        Returns:
            What they were.
        """
        found = self._remove("adapter = ? AND at < ?", (adapter, before))
        found += self._remove(
            "adapter = ? AND id NOT IN (SELECT id FROM samples WHERE adapter = ? "
            "ORDER BY fate IS NULL DESC, id DESC LIMIT ?)",
            (adapter, adapter, most),
        )
        if found:
            self._clean()  # what a reader holds now is overwritten with the next ones
        return found

    # Decisions ------------------------------------------------------------------------

    def decide(self, decision: Decision, fate: Fate | None = None) -> int:
        """Keep a decision, and in the same moment what became of its samples.

        Args:
            decision: The decision.
            fate: Of its samples; None lets them wait on.

        Returns:
            Its number.
        """
        with self._change() as db:
            done = db.execute(
                "INSERT INTO decisions "
                "(adapter, at, action, parent, version, reasons, numbers, samples) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(decision.adapter, self._clock(), decision.action),
                    *(decision.parent, decision.version),
                    *(json.dumps(decision.reasons), json.dumps(dict(decision.numbers))),
                    json.dumps(decision.samples),
                ),
            )
            if fate is not None:
                _end(db, decision.samples, fate)
        self._count(decision.action)
        assert done.lastrowid is not None
        return done.lastrowid

    def resolve(self, number: int, action: Action, fate: Fate | None = None) -> None:
        """Say how a publication ended, and in the same moment what became of its samples."""
        with self._change() as db:
            db.execute("UPDATE decisions SET action = ? WHERE id = ?", (action, number))
            if fate is not None:
                query = "SELECT samples FROM decisions WHERE id = ?"
                _end(db, json.loads(db.execute(query, (number,)).fetchone()[0]), fate)
        self._count(action)

    def decisions(
        self, adapter: AdapterName | None = None, *, since: float = 0.0
    ) -> list[Decision]:
        """List decisions, of one adapter or of all, the first one first."""
        with self._turn, self._translated():
            return journal_rows.decisions(self._db, adapter, since)

    # Requests -------------------------------------------------------------------------

    def request(self, row: RequestRow) -> None:
        """Keep how a request ended."""
        with self._change() as db:
            db.execute(
                "INSERT OR REPLACE INTO requests VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(row.id, row.adapter, row.version, self._clock(), row.outcome),
                    *(row.prompt_tokens, row.completion_tokens, row.feedback),
                ),
            )

    def feedback(self, request_id: str, feedback: str) -> None:
        """Keep what a user said of an answer, if it is known."""
        with self._change() as db:
            query = "UPDATE requests SET feedback = ? WHERE id = ?"
            db.execute(query, (feedback, request_id))

    def find(self, request_id: str) -> RequestRow | None:
        """Return a request; None if it is unknown."""
        with self._turn, self._translated():
            row = self._db.execute(
                "SELECT id, adapter, version, outcome, prompt_tokens, completion_tokens, feedback "
                "FROM requests WHERE id = ?",
                (request_id,),
            ).fetchone()
        names = ("id", "adapter", "version", "outcome", "prompt_tokens", "completion_tokens",
                 "feedback")  # fmt: skip
        return None if row is None else RequestRow(**dict(zip(names, row, strict=True)))

    def trial(self, adapter: AdapterName, canary: Canary) -> Trial:
        """Tell how a canary stands; see `journal_rows.trial`."""
        with self._turn, self._translated():
            return journal_rows.trial(self._db, adapter, canary)

    # Inside ---------------------------------------------------------------------------

    def _count(self, action: Action) -> None:
        if action != "publishing":
            self.decided[action] += 1

    def _samples(self, condition: str) -> Iterator[Kept]:
        with self._turn, self._translated():
            yield from journal_rows.samples(self._db, condition)

    def _remove(
        self,
        condition: str,
        values: tuple[object, ...],
        may_remove: Callable[[AdapterName], bool] = lambda _: True,
    ) -> list[Kept]:
        with self._change() as db:
            found = [
                kept
                for kept in journal_rows.samples(db, condition, values)
                if may_remove(kept.adapter)
            ]
            db.executemany("DELETE FROM samples WHERE id = ?", [(kept.id,) for kept in found])
            db.executemany("DELETE FROM requests WHERE id = ?", [(kept.source,) for kept in found])
        return found

    def _clean(self) -> bool:
        """Leave nothing in the files of what was deleted; False while a reader needs it.

        Deleted rows were overwritten with zeros in the pages of the log (`secure_delete`); here
        these become those of the database, and the log is emptied.
        """
        with self._turn, self._translated():
            is_busy: int = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        return not is_busy

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA secure_delete = ON")
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {FORMAT}")
            db.execute("COMMIT")
        elif found == 1:
            db.execute("BEGIN IMMEDIATE")
            for statement in (*_WITH_OWNERS, f"PRAGMA user_version = {FORMAT}"):
                db.execute(statement)
            db.execute("COMMIT")
            db.execute("VACUUM")  # rows that were deleted before may be there still, as bytes
        elif found != FORMAT:
            raise CorruptStoreError(self._file, f"it is a journal of format {found}")

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """Make everything in the block happen at its end, on the disk, or nothing of it."""
        with self._turn, self._translated():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._num_added += 1
                if self._num_added % _PRUNE_EVERY == 0:
                    self._prune()
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _prune(self) -> None:
        """Forget the oldest rows beyond the bounds; samples that wait are never among them."""
        for table, most in _MAX_ROWS.items():
            settled = "fate IS NOT NULL" if table == "samples" else "action != 'publishing'"
            condition = "1" if table == "requests" else settled
            self._db.execute(
                f"DELETE FROM {table} WHERE {condition} AND rowid NOT IN "  # noqa: S608
                f"(SELECT rowid FROM {table} WHERE {condition} ORDER BY rowid DESC LIMIT ?)",
                (most,),
            )

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self._file)


def _end(db: sqlite3.Connection, ids: Sequence[int], fate: Fate) -> None:
    """Keep a fate; what was withdrawn stays so."""
    query = "UPDATE samples SET fate = ? WHERE id = ? AND (fate IS NULL OR fate != 'withdrawn')"
    db.executemany(query, [(fate, number) for number in ids])
