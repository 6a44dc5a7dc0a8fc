"""The commands of Flight SQL that run statements: translated to the warehouse."""

from collections.abc import Mapping
from typing import Any, Literal

import pyarrow as pa

from hyprstream.errors import InvalidRequestError, UnavailableError, UnsupportedError
from hyprstream.flight.adapters import SAMPLES, AdapterDesk
from hyprstream.flight.auth import Session
from hyprstream.flight.handles import Begun, Handles, Prepared, unwatched
from hyprstream.flight.protobuf import Message
from hyprstream.runtime.warehouse.execution import Execution
from hyprstream.runtime.warehouse.ingest import Ingest
from hyprstream.runtime.warehouse.parameters import Row, parameter_rows
from hyprstream.runtime.warehouse.tenants import Warehouses
from hyprstream.runtime.warehouse.warehouse import Description

# TableDefinitionOptions: number on the wire -> what to do.
_IF_MISSING: Mapping[int, Literal["create", "fail"]] = {0: "create", 1: "create", 2: "fail"}
_IF_EXISTS: Mapping[int, Literal["append", "replace", "fail"]] = {
    0: "fail",
    1: "fail",
    2: "append",
    3: "replace",
}


class Statements:
    """Runs what clients send, for their sessions."""

    def __init__(self, warehouses: Warehouses, handles: Handles, adapters: AdapterDesk) -> None:
        self._warehouses = warehouses
        self._handles = handles
        self._adapters = adapters

    def start(
        self,
        session: Session,
        text: str,
        transaction: bytes | None,
        rows: list[Row | None] | None = None,
        *,
        begun: Begun = unwatched,
    ) -> Execution:
        """Start a statement."""
        return self._warehouses.of(session.caller).start(
            session.caller,
            text,
            rows or [None],
            transaction=self._handles.transaction(transaction, session),
            schema=session.schema,
            begun=begun,
        )

    def describe(self, session: Session, text: str, transaction: bytes | None) -> Description:
        """Tell a statement's columns and parameters."""
        return self._warehouses.of(session.caller).describe(
            session.caller,
            text,
            transaction=self._handles.transaction(transaction, session),
            schema=session.schema,
        )

    def prepare(self, session: Session, request: Message) -> tuple[bytes, Description]:
        """Prepare a statement."""
        text, transaction = request["query"], request["transaction_id"]
        description = self.describe(session, text, transaction)
        prepared = Prepared(session, text, transaction, description)
        return self._handles.prepare(prepared), description

    def bind(self, session: Session, handle: bytes, table: pa.Table) -> None:
        """Bind parameters of a prepared query."""
        prepared = self._handles.prepared(handle, session)
        prepared.rows = parameter_rows(prepared.description.parsed, table)

    def start_prepared(
        self, session: Session, handle: bytes, begun: Begun = unwatched
    ) -> Execution:
        """Start a prepared query with what is bound."""
        prepared = self._handles.prepared(handle, session)
        names = prepared.description.parsed.parameters
        if names and (not prepared.rows or prepared.rows == [None]):
            raise InvalidRequestError(f"the statement has {len(names)} parameters, none is bound")
        transaction = self._handles.of_prepared(prepared, session)
        return self.start(session, prepared.text, transaction, prepared.rows, begun=begun)

    def update(
        self, session: Session, text: str, transaction: bytes | None, begun: Begun = unwatched
    ) -> int:
        """Run a statement to its end; return how many rows it changed."""
        return self.start(session, text, transaction, begun=begun).count()

    def update_prepared(
        self, session: Session, handle: bytes, reader: Any, begun: Begun = unwatched
    ) -> int:
        """Run a prepared statement for each row of parameters: for all of them, or none."""
        prepared = self._handles.prepared(handle, session)
        rows: list[Row | None] = [None]
        if prepared.description.parsed.parameters:
            rows = parameter_rows(prepared.description.parsed, reader.read_all())
        if not rows:
            return 0
        transaction = self._handles.of_prepared(prepared, session)
        if transaction or len(rows) == 1:
            counts = [
                self.start(session, prepared.text, transaction, [row], begun=begun).count()
                for row in rows
            ]
            return sum(max(count, 0) for count in counts) if len(rows) > 1 else counts[0]
        warehouse = self._warehouses.of(session.caller)
        own = warehouse.begin(session.caller, session.schema)
        total = 0
        try:
            for row in rows:
                run = warehouse.start(
                    session.caller, prepared.text, [row], transaction=own, schema=session.schema,
                    begun=begun,
                )  # fmt: skip
                total += max(run.count(), 0)
        except BaseException:
            own.end(commit=False)
            raise
        own.end(commit=True)
        return total

    def ingest(self, session: Session, command: Message, reader: Any) -> int:
        """Add rows to a table, as `CommandStatementIngest` says."""
        if command["schema"] == SAMPLES:
            return self._samples(session, command["table"], reader)
        options = command["table_definition_options"] or {"if_not_exist": 0, "if_exists": 0}
        try:
            target = Ingest(
                table=command["table"],
                schema=command["schema"] or session.schema,
                catalog=command["catalog"] or "",
                temporary=command["temporary"],
                if_missing=_IF_MISSING[options["if_not_exist"]],
                if_exists=_IF_EXISTS[options["if_exists"]],
                adapter=command["options"].get("adapter", ""),
            )
        except KeyError as error:
            raise UnsupportedError(f"the option {error} of a table is not known") from error
        transaction = self._handles.transaction(
            command["transaction_id"], session
        ) or self._handles.of_session(session)
        warehouse = self._warehouses.of(session.caller)
        return warehouse.ingest(session.caller, target, reader.to_reader(), transaction)

    def _samples(self, session: Session, adapter: str, reader: Any) -> int:
        """Take samples for an adapter; return how many were kept."""
        taken = self._adapters.put(session.caller, adapter, reader.to_reader())
        if num_left := taken.counts.get("full", 0):
            raise UnavailableError(
                f"there is no room for {num_left} samples; {taken.num_kept} were kept",
                hint="Let the adapter learn, then send the rest.",
            )
        return taken.num_kept
