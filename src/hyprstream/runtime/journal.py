"""What happened, on the disk: samples, what became of them, decisions, and how requests ended.

SQLite in write-ahead mode with `synchronous=FULL`, as in the store: what was acknowledged
survives a kill and a loss of power. One process at a time has a journal. No torch.
"""

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from hyprstream.errors import CorruptStoreError
from hyprstream.files import lock, storage
from hyprstream.refs import AdapterName
from hyprstream.runtime import journal_rows
from hyprstream.runtime.journal_rows import FORMAT, Action, Decision, RequestRow, translated
from hyprstream.train.buffer import Fate, Kept
from hyprstream.train.sample import Sample

_MAX_ROWS = {"requests": 100_000, "decisions": 10_000, "samples": 50_000}
_PRUNE_EVERY = 512  # rows added between looks at whether there are too many

_SCHEMA = """
CREATE TABLE samples (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    adapter TEXT NOT NULL, source TEXT NOT NULL, at REAL NOT NULL,
    tokens TEXT NOT NULL, counts TEXT NOT NULL, weight REAL NOT NULL,
    held_out INTEGER NOT NULL,
    fate TEXT
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


class Journal:
    """The journal in one file. Safe to use from any thread; calls wait for the disk.

    Invariant, checked by `test_journal_kills.py`: whatever was acknowledged is there after a
    kill at any moment.
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

    def append(self, adapter: AdapterName, sample: Sample, source: str, *, held_out: bool) -> int:
        """Keep a sample; it is on the disk when this returns its number.

        Raises:
            StorageFullError: The disk is full.
        """
        tokens = json.dumps(sample.token_ids)
        counts = "".join("01"[mark] for mark in sample.counts)
        with self._change() as db:
            done = db.execute(
                "INSERT INTO samples (adapter, source, at, tokens, counts, weight, held_out) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                (adapter, source, self._clock(), tokens, counts, sample.weight, held_out),
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
        assert done.lastrowid is not None
        return done.lastrowid

    def resolve(self, number: int, action: Action, fate: Fate | None = None) -> None:
        """Say how a publication ended, and in the same moment what became of its samples."""
        with self._change() as db:
            db.execute("UPDATE decisions SET action = ? WHERE id = ?", (action, number))
            if fate is not None:
                query = "SELECT samples FROM decisions WHERE id = ?"
                _end(db, json.loads(db.execute(query, (number,)).fetchone()[0]), fate)

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

    # Inside ---------------------------------------------------------------------------

    def _samples(self, condition: str) -> Iterator[Kept]:
        with self._turn, self._translated():
            yield from journal_rows.samples(self._db, condition)

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA trusted_schema = OFF")
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found == 0:
            db.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {FORMAT}")
            db.execute("COMMIT")
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
