"""What clients hold between calls: started statements, prepared ones, transactions.

Each belongs to one caller and is forgotten when it is not used for ten minutes. A thread of
its own looks for those, and for clients that went away while their query computes.
"""

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa

from hyprstream.errors import HyprstreamError, NotFoundError, UnavailableError
from hyprstream.flight.auth import Session
from hyprstream.runtime.warehouse.execution import Execution, Transaction
from hyprstream.runtime.warehouse.parameters import Row
from hyprstream.runtime.warehouse.warehouse import Description

IDLE_S = 600.0
MOST_PREPARED = 1_000
_MOST = 10_000
_LOOK_EVERY_S = 0.1

T = TypeVar("T")
Begun = Callable[[Execution], None]


def unwatched(execution: Execution) -> None:
    """Let an execution run whether somebody waits for it or not."""


@dataclass
class Prepared:
    """A statement to be run, perhaps more than once.

    Attributes:
        session: Who prepared it.
        text: What it says.
        transaction: Where it runs.
        description: Its columns and parameters.
        rows: Parameters that are bound; one set for each time that it is to run.
    """

    session: Session
    text: str
    transaction: bytes | None
    description: Description
    rows: list[Row | None] = field(default_factory=lambda: [None])
    used_at: float = field(default_factory=time.monotonic)


class Handles:
    """All of them. `close` ends the thread and everything that is open."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._started: dict[bytes, Execution] = {}
        self._prepared: dict[bytes, Prepared] = {}
        self._transactions: dict[bytes, Transaction] = {}
        self._read: dict[Execution, Any] = {}
        self._is_cancelling = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hyprstream-flight", daemon=True)
        self._thread.start()

    def cancel_all(self) -> None:
        """Cancel what is being read, now and from now on."""
        self._is_cancelling = True

    def close(self) -> None:
        """End everything."""
        self._ending.set()
        self._thread.join()
        for execution in self._started.values():
            execution.close()
        for transaction in self._transactions.values():
            transaction.cursor.close()

    # Statements -----------------------------------------------------------------------

    def keep(self, execution: Execution) -> bytes:
        """Remember a started statement until its rows are asked for."""
        return self._add(self._started, execution)

    def take(self, handle: bytes, session: Session) -> Execution:
        """Hand a started statement over to whoever reads its rows; a ticket is good once."""
        with self._turn:
            execution = self._started.get(handle)
            if execution is None or execution.owner != session.caller.name:
                raise NotFoundError("the ticket was used already, or has expired")
            return self._started.pop(handle)

    def reading(
        self, execution: Execution, handle: bytes, context: Any
    ) -> Iterator[pa.RecordBatch]:
        """Read the rows; the query ends when the client goes away or cancels."""
        with self._turn:
            self._read[execution] = (context, handle)
        try:
            yield from execution.batches()
        finally:
            with self._turn:  # the context is of no use after this
                self._read.pop(execution, None)

    @contextmanager
    def watching(self, context: Any) -> Iterator[Begun]:
        """Cancel what begins meanwhile, and tells so, when the client goes away or cancels."""
        known: list[Execution] = []

        def begun(execution: Execution) -> None:
            known.append(execution)
            with self._turn:
                self._read[execution] = (context, b"")

        try:
            yield begun
        finally:
            with self._turn:  # the context is of no use after this
                for execution in known:
                    self._read.pop(execution, None)

    def cancel(self, handle: bytes, session: Session) -> bool:
        """Cancel a statement, whether its rows are being read or not; tell whether it was there."""
        with self._turn:
            waiting = self._started.get(handle)
            running = next((e for e, (_, known) in self._read.items() if known == handle), None)
            execution = waiting or running
            if execution is None or execution.owner != session.caller.name:
                return False
            self._started.pop(handle, None)
            execution.cancel()
        if waiting:
            waiting.close()
        return True

    # Prepared statements --------------------------------------------------------------

    def prepare(self, prepared: Prepared) -> bytes:
        """Remember a prepared statement; of a caller with a thousand, forget the one idle longest.

        Some clients never close what they prepare.
        """
        with self._turn:
            if len(self._prepared) >= MOST_PREPARED:
                caller = prepared.session.caller
                own = [h for h, p in self._prepared.items() if p.session.caller == caller]
                if len(own) >= MOST_PREPARED:
                    del self._prepared[min(own, key=lambda h: self._prepared[h].used_at)]
        return self._add(self._prepared, prepared)

    def prepared(self, handle: bytes, session: Session) -> Prepared:
        """Return a prepared statement."""
        found = self._prepared.get(handle)
        if found is None or found.session.caller != session.caller:
            raise NotFoundError("there is no such prepared statement")
        found.used_at = time.monotonic()
        return found

    def forget(self, handle: bytes, session: Session) -> None:
        """Forget a prepared statement, if it is there."""
        with self._turn:
            found = self._prepared.get(handle)
            if found and found.session.caller == session.caller:
                del self._prepared[handle]

    # Transactions ---------------------------------------------------------------------

    def begun(self, transaction: Transaction) -> bytes:
        """Remember a transaction."""
        return self._add(self._transactions, transaction)

    def transaction(self, handle: bytes | None, session: Session) -> Transaction | None:
        """Return a transaction; None for no handle."""
        if not handle:
            return None
        found = self._transactions.get(handle)
        if found is None or found.owner != session.caller.name:
            raise NotFoundError("there is no such transaction, or it has expired")
        found.used_at = time.monotonic()
        return found

    def of_prepared(self, prepared: Prepared, session: Session) -> bytes | None:
        """Return the transaction that a prepared statement runs in.

        Clients keep a statement beyond the transaction in which it was prepared: it takes part
        in the next one of the session then.
        """
        handle = prepared.transaction
        return handle if handle in self._transactions else session.transaction

    def of_session(self, session: Session) -> Transaction | None:
        """Return the transaction that calls without one take part in."""
        return self._transactions.get(session.transaction) if session.transaction else None

    def end(self, handle: bytes, session: Session, *, commit: bool) -> None:
        """Commit or roll back."""
        transaction = self.transaction(handle, session)
        assert transaction is not None, "a handle was given"
        with self._turn:
            self._transactions.pop(handle, None)
        if session.transaction == handle:
            session.transaction = None
        transaction.end(commit=commit)

    def end_session(self, session: Session) -> None:
        """Roll back what a session left open, and forget what it prepared."""
        with self._turn:
            handle = session.transaction
            left = self._transactions.pop(handle, None) if handle else None
            for known, prepared in list(self._prepared.items()):
                if prepared.session is session:
                    del self._prepared[known]
        if left:
            left.end(commit=False)

    # Inside ---------------------------------------------------------------------------

    def _add(self, known: dict[bytes, T], value: T) -> bytes:
        handle = secrets.token_bytes(16)
        with self._turn:
            if len(known) >= _MOST:
                raise UnavailableError(f"{_MOST} of these are open", hint="Close some.")
            known[handle] = value
        return handle

    def _watch(self) -> None:
        while not self._ending.wait(_LOOK_EVERY_S):
            with self._turn:
                for execution, (context, _) in self._read.items():
                    if self._is_cancelling or context.is_cancelled():
                        execution.cancel()
            self._expire(time.monotonic() - IDLE_S)

    def _expire(self, before: float) -> None:
        with self._turn:
            old = [h for h, e in self._started.items() if e.started_at < before]
            executions = [self._started.pop(handle) for handle in old]
            for handle, prepared in list(self._prepared.items()):
                if prepared.used_at < before:
                    del self._prepared[handle]
            stale = [
                h
                for h, t in self._transactions.items()
                if t.used_at < before and not t.is_streaming
            ]
            transactions = [self._transactions.pop(handle) for handle in stale]
        for execution in executions:
            execution.close()
        for transaction in transactions:
            try:
                transaction.end(commit=False)
            except HyprstreamError:
                continue  # it had failed: nothing of it was kept
