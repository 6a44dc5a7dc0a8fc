"""The warehouse: statements of callers on what this machine has and on tables of their own.

Safe to use from any thread. Closing it closes the database; who opened adapters closes them.
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from hyprstream.errors import HyprstreamError, SqlNotAllowedError
from hyprstream.refs import AdapterName
from hyprstream.runtime.sql_config import SqlConfig
from hyprstream.runtime.warehouse.brain import Brain
from hyprstream.runtime.warehouse.database import Database
from hyprstream.runtime.warehouse.execution import EMPTY, Execution, Transaction
from hyprstream.runtime.warehouse.failures import translated
from hyprstream.runtime.warehouse.functions import functions_of, macros_of
from hyprstream.runtime.warehouse.indexer import Indexer
from hyprstream.runtime.warehouse.ingest import VECTORS, Ingest, ingest_rows, ingest_vectors
from hyprstream.runtime.warehouse.live import Source, vector_rows
from hyprstream.runtime.warehouse.parameters import Row, nulls, parameter_schema
from hyprstream.runtime.warehouse.statements import Parsed, parse
from hyprstream.vectors.store import VectorStore
from hyprstream.vectors.table import VectorTable


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        name: Whose statements, transactions and sessions these are.
        can_write: Whether they may add rows and make tables.
        can_manage: Whether they may change adapters.
        adapters: The only adapters of which they see anything; None is all of them.
    """

    name: str
    can_write: bool = False
    can_manage: bool = False
    adapters: frozenset[AdapterName] | None = None


@dataclass(frozen=True, slots=True)
class Description:
    """What is known of a statement before it runs.

    Attributes:
        parsed: The statement.
        schema: Columns of its rows; without columns if that is known only when it has run.
        parameters: Names and types of its parameters.
    """

    parsed: Parsed
    schema: pa.Schema
    parameters: pa.Schema


class Warehouse:
    """One database with what is shown in it.

    Attributes:
        vectors: The tables of vectors.
        brain: What embeds and generates; None where there is no model.
    """

    def __init__(
        self,
        file: Path | None,
        vectors: VectorStore,
        *,
        config: SqlConfig = SqlConfig(),  # noqa: B008 - frozen
        live: Mapping[str, Source] | None = None,
        brain: Brain | None = None,
        indexer: Indexer | None = None,
    ) -> None:
        """Open it.

        Args:
            file: Tables of users; None keeps them in memory.
            vectors: Tables of vectors.
            config: Bounds.
            live: Name -> how to make the table of what the program has.
            brain: What embeds and generates.
            indexer: Sees to indexes of tables that grow; None builds none unasked.

        Raises:
            UnavailableError: Another process has the file.
        """
        self.vectors = vectors
        self.brain = brain
        self._indexer = indexer
        self._live = dict(live or {})
        self._shown: dict[str, VectorTable] = {}
        self._turn = threading.Lock()
        self._database = Database(file, config, functions_of(brain, vectors))
        try:
            for macro in macros_of(brain):
                self._database.define(macro)
            self.refresh(None)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def start(
        self,
        caller: Caller,
        text: str,
        rows: Sequence[Row | None] = (None,),
        *,
        transaction: Transaction | None = None,
        schema: str = "main",
        begun: Callable[[Execution], None] = lambda _: None,
    ) -> Execution:
        """Start a statement.

        Args:
            caller: Who asks.
            text: The statement.
            rows: Its parameters, for each time that it is to run.
            transaction: Where to run it; None is one of its own.
            schema: Where names without one are looked for first.
            begun: Given the execution before anything runs, so that it can be cancelled.

        Raises:
            HyprstreamError: It may not be run, cannot be bound, or failed.
        """
        cursor = transaction.cursor if transaction else self._database.cursor(schema)
        try:
            parsed = self._parsed(cursor, caller, text, transaction)
            self.refresh(parsed.words)
        except BaseException:
            if transaction is None:
                cursor.close()
            raise
        return Execution(
            cursor,
            parsed,
            rows,
            transaction=transaction,
            owner=caller.name,
            can_write=caller.can_write,
            begun=begun,
        )

    def query(self, caller: Caller, text: str, rows: Sequence[Row | None] = (None,)) -> pa.Table:
        """Run a statement to its end and return its rows."""
        return self.start(caller, text, rows).table()

    def describe(
        self,
        caller: Caller,
        text: str,
        *,
        transaction: Transaction | None = None,
        schema: str = "main",
    ) -> Description:
        """Tell the columns and the parameters of a statement without running it.

        Raises:
            HyprstreamError: It may not be run, or cannot be bound.
        """
        cursor = transaction.cursor if transaction else self._database.cursor(schema)
        try:
            parsed = self._parsed(cursor, caller, text, transaction)
            self.refresh(parsed.words)
            columns = EMPTY
            with translated():
                parameters = parameter_schema(cursor, parsed)
                if parsed.kind == "SELECT":
                    values = nulls(parsed)
                    bound = (
                        cursor.sql(parsed.statement, params=values)
                        if values
                        else cursor.sql(parsed.statement)
                    )
                    columns = bound.limit(0).to_arrow_table().schema
        finally:
            if transaction is None:
                cursor.close()
        return Description(parsed, columns, parameters)

    def begin(self, caller: Caller, schema: str = "main") -> Transaction:
        """Begin a transaction."""
        cursor = self._database.cursor(schema)
        return Transaction(cursor, caller.name, read_only=not caller.can_write)

    def ingest(
        self,
        caller: Caller,
        target: Ingest,
        reader: pa.RecordBatchReader,
        transaction: Transaction | None = None,
    ) -> int:
        """Add rows to a table: all of them, or none.

        Args:
            caller: Who asks.
            target: Where they go.
            reader: The rows.
            transaction: Where it happens; a table of vectors takes part in none.

        Returns:
            How many were added.

        Raises:
            SqlNotAllowedError: The caller may not write.
            HyprstreamError: The rows do not fit.
        """
        if not caller.can_write:
            raise SqlNotAllowedError("rows may not be added without leave to write")
        if target.schema == VECTORS:
            count = ingest_vectors(self.vectors, self.brain, target, reader.schema, reader)
            self.refresh(frozenset({target.table}))
            if self._indexer is not None:
                self._indexer.look(self.vectors, target.table)
            return count
        if transaction:
            with transaction.turn:
                transaction.claim(None)
                return ingest_rows(transaction.cursor, target, reader)
        own = self.begin(caller)
        try:
            count = ingest_rows(own.cursor, target, reader)
        except BaseException:
            own.end(commit=False)
            raise
        own.end(commit=True)
        return count

    def look(
        self, query: str, values: Row | None = None, transaction: Transaction | None = None
    ) -> pa.Table:
        """Run a query of ours, as those that list tables."""
        if transaction:
            with transaction.turn, translated():
                transaction.claim(None)
                return transaction.cursor.sql(query, params=values).to_arrow_table()
        cursor = self._database.cursor()
        try:
            with translated():
                return cursor.sql(query, params=values).to_arrow_table()
        finally:
            cursor.close()

    def refresh(self, words: Iterable[str] | None) -> None:
        """Make what is shown of the program new.

        Args:
            words: Names of tables, among other words; None means all of them.
        """
        wanted = None if words is None else frozenset(words)
        with self._turn:
            for name, source in self._live.items():
                if wanted is None or name in wanted:
                    self._database.show("main", name, source())
            names = self.vectors.names()
            for name in set(self._shown) - set(names):
                self._database.hide("vectors", name)
                del self._shown[name]
            for name in names:
                if wanted is None or name in wanted or name not in self._shown:
                    self._show_vectors(name)

    def _show_vectors(self, name: str) -> None:
        try:
            table = self.vectors.table(name)
        except HyprstreamError:
            return  # dropped, or damaged: whoever names it will be told
        if self._shown.get(name) is not table:
            self._database.show("vectors", name, vector_rows(table))
            self._shown[name] = table

    def _parsed(
        self, cursor: Any, caller: Caller, text: str, transaction: Transaction | None
    ) -> Parsed:
        if transaction is None:
            return parse(cursor, text, can_write=caller.can_write)
        with transaction.turn:
            transaction.claim(None)
            return parse(cursor, text, can_write=caller.can_write)
