"""Statements that run: bound at once, computed while their rows are read.

A query is computed as its rows are taken, so that neither the rows nor the message to a
client are ever in memory as a whole; anything else runs when it is started, once.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyarrow as pa

from hyprstream.runtime.warehouse.failures import translated
from hyprstream.runtime.warehouse.parameters import Row
from hyprstream.runtime.warehouse.statements import Parsed

MESSAGE_BYTES = 2 << 20
"""Most bytes of a batch of rows: clients in Go refuse 16 MiB, such in JavaScript 4 MiB."""
EMPTY = pa.schema([])


class Transaction:
    """A connection between BEGIN and COMMIT or ROLLBACK, of one caller."""

    def __init__(self, cursor: Any, owner: str, *, read_only: bool) -> None:
        self.cursor = cursor
        self.owner = owner
        self.turn = threading.RLock()
        self.used_at = time.monotonic()
        self._streaming: Execution | None = None
        with translated():
            cursor.execute("BEGIN TRANSACTION READ ONLY" if read_only else "BEGIN TRANSACTION")

    @property
    def is_streaming(self) -> bool:
        """Tell whether somebody is reading rows of it."""
        return self._streaming is not None

    def claim(self, execution: "Execution | None") -> None:
        """Make room for another statement: a connection has one result at a time.

        What is left of the one before is read into memory.
        """
        self.used_at = time.monotonic()
        if self._streaming is not None and self._streaming is not execution:
            self._streaming.spill()
        self._streaming = execution

    def release(self, execution: "Execution") -> None:
        """Take note that an execution is over."""
        if self._streaming is execution:
            self._streaming = None

    def end(self, *, commit: bool) -> None:
        """Commit or roll back, and close the connection.

        Raises:
            HyprstreamError: It cannot be committed; it is rolled back.
        """
        with self.turn:
            try:
                self.claim(None)
                with translated():
                    if commit:
                        self.cursor.execute("COMMIT")
            finally:
                self.cursor.close()  # rolls back what is open


class Execution:
    """One statement that was started. `close` it, or read it to its end.

    Attributes:
        parsed: The statement.
        schema: Columns of its rows.
        owner: Who started it.
        started_at: When, on the monotonic clock.
    """

    def __init__(
        self,
        cursor: Any,
        parsed: Parsed,
        rows: Sequence[Row | None],
        *,
        transaction: Transaction | None,
        owner: str,
        can_write: bool,
        begun: Callable[["Execution"], None] = lambda _: None,
    ) -> None:
        """Bind a statement, and run it if it is no query.

        Args:
            cursor: Of the transaction, or one that this execution closes.
            parsed: The statement.
            rows: Its parameters, for each time that it is to run.
            transaction: Where it runs; None is one of its own.
            owner: Who asks.
            can_write: Whether it may change anything.
            begun: Given this execution before anything runs, so that it can be cancelled.

        Raises:
            HyprstreamError: It cannot be bound, or failed.
        """
        self.parsed = parsed
        self.owner = owner
        self.started_at = time.monotonic()
        self._cursor = cursor
        self._transaction = transaction
        self._rows = list(rows)
        self._batches: Iterator[pa.RecordBatch] | None = None
        self._spilled: list[pa.RecordBatch] | None = None
        self._is_closed = False
        begun(self)
        try:
            with self._alone(), translated():
                if transaction:
                    transaction.claim(self)
                elif parsed.reads and not can_write:
                    cursor.execute("BEGIN TRANSACTION READ ONLY")
                self._relation = self._bound(self._rows[0])
                self.schema = (
                    EMPTY
                    if self._relation is None
                    else self._relation.limit(0).to_arrow_table().schema
                )
        except BaseException:
            self.close()
            raise

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Compute the rows, a batch of at most 2 MiB at a time; closes itself at the end.

        Raises:
            HyprstreamError: It failed, ran out of time, or was cancelled.
        """
        try:
            while (batch := self._next()) is not None:
                yield batch
        finally:
            self.close()

    def table(self) -> pa.Table:
        """Compute all rows at once."""
        return pa.Table.from_batches(self.batches(), self.schema)

    def count(self) -> int:
        """Run it to its end and tell how many rows it changed; -1 where that is not known."""
        table = self.table()
        is_count = bool(table.column_names == ["Count"] and table.num_rows == 1)
        count: int = table.column(0)[0].as_py() if is_count else table.num_rows
        return count if is_count or self.parsed.kind == "INSERT" else -1

    def cancel(self) -> None:
        """Stop it, from any thread; whoever reads it gets an error."""
        if not self._is_closed:
            self._cursor.interrupt()

    def spill(self) -> None:
        """Read the rest of the rows into memory, for the connection is needed."""
        if self._spilled is None and not self._is_closed:
            with translated():
                self._spilled = list(self._source())

    def close(self) -> None:
        """Let go of what it holds. Harmless if done before."""
        if self._is_closed:
            return
        self._is_closed = True
        self._relation = self._batches = self._spilled = None
        if self._transaction is None:
            self._cursor.close()
        else:
            self._transaction.release(self)

    def _alone(self) -> AbstractContextManager[object]:
        return self._transaction.turn if self._transaction else nullcontext()

    def _bound(self, row: Row | None) -> Any:
        statement = self.parsed.statement
        return self._cursor.sql(statement, params=row) if row else self._cursor.sql(statement)

    def _next(self) -> pa.RecordBatch | None:
        with self._alone(), translated():
            if self._is_closed:
                return None
            if self._spilled is not None:
                return self._spilled.pop(0) if self._spilled else None
            return next(self._source(), None)

    def _source(self) -> Iterator[pa.RecordBatch]:
        if self._batches is None:
            self._batches = self._computed()
        return self._batches

    def _computed(self) -> Iterator[pa.RecordBatch]:
        at_once = min(max(MESSAGE_BYTES // row_bytes(self.schema), 64), 65_536)
        for i, row in enumerate(self._rows):
            relation = self._relation if i == 0 else self._bound(row)
            if relation is None:
                continue
            for batch in relation.to_arrow_reader(at_once):
                if batch.num_rows:
                    yield from pieces(self._fitting(batch))

    def _fitting(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Give rows of a later run the types of the first: other values may bind to others."""
        if batch.schema.equals(self.schema):
            return batch
        table = pa.Table.from_batches([batch]).cast(self.schema)
        return table.combine_chunks().to_batches()[0]


def row_bytes(schema: pa.Schema) -> int:
    """Estimate how much a row takes; texts and lists count as 32 bytes."""
    return max(sum(_width(field.type) for field in schema), 1)


def _width(kind: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size * _width(kind.value_type))
    if pa.types.is_struct(kind):
        return sum(_width(kind.field(i).type) for i in range(kind.num_fields))
    try:
        return max(int(kind.bit_width) // 8, 1)
    except ValueError:
        return 32


def pieces(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Cut a batch into such of at most 2 MiB, or of one row."""
    num_pieces = -(-batch.nbytes // MESSAGE_BYTES)
    step = max(batch.num_rows // max(num_pieces, 1), 1)
    for start in range(0, batch.num_rows, step):
        yield batch.slice(start, step)
