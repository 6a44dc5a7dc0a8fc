"""The Flight service: one port for Flight SQL and for plain Flight.

gRPC calls the methods on threads of its own. pyarrow frees a server only with the process
before version 26: one per process.
"""

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
from typing_extensions import override

from hyprstream.errors import InvalidSettingsError, NotFoundError, UnsupportedError
from hyprstream.flight.actions import ACTIONS, Actions
from hyprstream.flight.adapters import SAMPLES, AdapterDesk
from hyprstream.flight.auth import Gate, OpenHandshake, Session, Sessions
from hyprstream.flight.failures import guarded, hide_tracebacks, status_of
from hyprstream.flight.handles import Begun, Handles
from hyprstream.flight.listening import Tls, check_guarded, tls_options
from hyprstream.flight.metadata import Metadata
from hyprstream.flight.plain import Plain, batches_of, streamed_schema
from hyprstream.flight.protocol import pack, plain, unpack
from hyprstream.flight.schemas import fixed_schema
from hyprstream.flight.statements import Statements
from hyprstream.runtime.warehouse.desk import Desk
from hyprstream.runtime.warehouse.execution import Execution, Transaction
from hyprstream.runtime.warehouse.tenants import Warehouses


class FlightService(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """Serves warehouses, on threads of its own, until it is closed.

    Attributes:
        scheme: Of its address: `grpc`, or `grpc+tls`.
        shown_host: Where it listens, as addresses write it.
    """

    def __init__(
        self,
        warehouses: Warehouses,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        gate: Gate | None = None,
        tls: Tls | None = None,
        desk: Desk | None = None,
    ) -> None:
        """Listen.

        Args:
            warehouses: What is served; they stay open when the service is closed.
            host: Where to listen.
            port: Where to listen; 0 takes a free one, see the attribute `port`.
            gate: Knows the keys; None lets everybody in, on this machine only.
            tls: None speaks in the clear, on this machine only.
            desk: Takes samples, and what is asked about adapters; None where there is no runtime.

        Raises:
            InvalidSettingsError: Others could reach it without a key, or overhear them; or
                the address cannot be had.
        """
        self.shown_host = f"[{host}]" if ":" in host else host
        check_guarded(self.shown_host, has_keys=gate is not None, has_tls=tls is not None)
        hide_tracebacks()
        self._warehouses = warehouses
        self._handles = Handles()
        self._sessions = Sessions(gate, self._handles.end_session)
        self._adapters = AdapterDesk(desk)
        self._statements = Statements(warehouses, self._handles, self._adapters)
        self._actions = Actions(
            warehouses, self._handles, self._statements, self._sessions, self._adapters
        )
        self.scheme = "grpc" if tls is None else "grpc+tls"
        try:
            super().__init__(
                f"{self.scheme}://{self.shown_host}:{port}",
                auth_handler=OpenHandshake(),
                middleware={"sessions": self._sessions},
                **tls_options(tls),
            )
        except (OSError, pa.ArrowException) as error:
            self._handles.close()
            raise InvalidSettingsError(
                f"{self.shown_host}:{port} cannot be listened on: {error}",
                hint="Choose another port.",
            ) from error

    def close(self) -> None:
        """Stop listening, end what runs."""
        self._handles.cancel_all()
        self.shutdown()
        self._handles.close()

    @override
    @guarded
    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        """Plan a query, or start a statement."""
        session = _session(context)
        found = _command(descriptor)
        if found is None:
            return self._plain_info(session, descriptor)
        name, command = found
        fixed = fixed_schema(name, command)
        if fixed is not None:
            return _info(fixed, descriptor, descriptor.command)
        with self._handles.watching(context) as begun:
            if name == "CommandStatementQuery":
                text, transaction = command["query"], command["transaction_id"]
                started = self._statements.start(session, text, transaction, begun=begun)
            elif name == "CommandPreparedStatementQuery":
                handle = command["prepared_statement_handle"]
                started = self._statements.start_prepared(session, handle, begun)
            else:
                raise UnsupportedError(f"{name} is not served")
        return self._started(descriptor, started)

    @override
    @guarded
    def get_schema(self, context: Any, descriptor: Any) -> Any:
        """Tell the columns of what a descriptor means."""
        session = _session(context)
        found = _command(descriptor)
        if found is None:
            return fl.SchemaResult(self._plain_schema(session, descriptor))
        name, command = found
        fixed = fixed_schema(name, command)
        if fixed is not None:
            return fl.SchemaResult(fixed)
        if name == "CommandStatementQuery":
            text, transaction = command["query"], command["transaction_id"]
            return fl.SchemaResult(self._statements.describe(session, text, transaction).schema)
        if name == "CommandPreparedStatementQuery":
            prepared = self._handles.prepared(command["prepared_statement_handle"], session)
            return fl.SchemaResult(prepared.description.schema)
        raise UnsupportedError(f"{name} is not served")

    @override
    @guarded
    def do_get(self, context: Any, ticket: Any) -> Any:
        """Stream the rows of a ticket."""
        session = _session(context)
        found = unpack(ticket.ticket)
        if found is None:
            table = self._plain(session).table(ticket.ticket)
            return fl.GeneratorStream(streamed_schema(table), batches_of(table))
        name, command = found
        if fixed_schema(name, command) is not None:
            table = self._told(session, name, command, self._handles.of_session(session))
            return fl.RecordBatchStream(table)
        if name != "TicketStatementQuery":
            raise UnsupportedError(f"{name} is no ticket")
        handle = command["statement_handle"]
        execution = self._handles.take(handle, session)
        rows = _reading(self._handles.reading(execution, handle, context))
        return fl.GeneratorStream(execution.schema, rows)

    @override
    @guarded
    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Take rows: of a table, or parameters; run an update."""
        session = _session(context)
        found = _command(descriptor)
        if found is None:
            writer.write(json.dumps(self._put(session, descriptor.path or [], reader)).encode())
            return
        name, command = found
        if name == "CommandPreparedStatementQuery":
            handle = command["prepared_statement_handle"]
            self._statements.bind(session, handle, reader.read_all())
            answer = plain("DoPutPreparedStatementResult", prepared_statement_handle=handle)
        else:
            with self._handles.watching(context) as begun:
                count = self._update(session, name, command, reader, begun)
            answer = plain("DoPutUpdateResult", record_count=count)
        writer.write(pa.py_buffer(answer))

    @override
    @guarded
    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Embed texts as they come."""
        self._plain(_session(context)).exchange(descriptor.command or b"", reader, writer)

    @override
    @guarded
    def do_action(self, context: Any, action: Any) -> list[Any]:
        """Run an action."""
        body = action.body.to_pybytes() if action.body else b""
        answers = self._actions.run(_session(context), action.type, body)
        return [fl.Result(answer) for answer in answers]

    @override
    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        """List the actions."""
        return list(ACTIONS)

    @override
    @guarded
    def list_flights(self, context: Any, criteria: bytes) -> Iterator[Any]:
        """List the tables; their rows are at the path of schema and name."""
        session = _session(context)
        command: dict[str, Any] = {
            "catalog": None,
            "db_schema_filter_pattern": None,
            "include_schema": False,
        }
        command |= {"table_name_filter_pattern": None, "table_types": []}
        tables = self._told(session, "CommandGetTables", command, None)
        infos = []
        for row in tables.to_pylist():
            path = fl.FlightDescriptor.for_path(row["db_schema_name"], row["table_name"])
            infos.append(fl.FlightInfo(self._plain_schema(session, path), path, [], -1, -1))
        return iter(infos)

    def _update(
        self, session: Session, name: str, command: dict[str, Any], reader: Any, begun: Begun
    ) -> int:
        if name == "CommandStatementUpdate":
            text, transaction = command["query"], command["transaction_id"]
            return self._statements.update(session, text, transaction, begun)
        if name == "CommandPreparedStatementUpdate":
            handle = command["prepared_statement_handle"]
            return self._statements.update_prepared(session, handle, reader, begun)
        if name == "CommandStatementIngest":
            return self._statements.ingest(session, command, reader)
        raise UnsupportedError(f"{name} is not served")

    def _put(self, session: Session, path: list[bytes], reader: Any) -> dict[str, Any]:
        if len(path) == 2 and path[0] == SAMPLES.encode():
            adapter = path[1].decode(errors="replace")
            taken = self._adapters.put(session.caller, adapter, reader.to_reader())
            return {"rows": taken.rows, "source": taken.source, "counts": dict(taken.counts)}
        return {"rows": self._plain(session).put(session.caller, path, reader)}

    def _plain_info(self, session: Session, descriptor: Any) -> Any:
        if not descriptor.path:
            table = self._plain(session).table(descriptor.command or b"")
            return _info(streamed_schema(table), descriptor, descriptor.command, table.num_rows)
        return self._started(descriptor, self._statements.start(session, _select(descriptor), None))

    def _plain_schema(self, session: Session, descriptor: Any) -> pa.Schema:
        if not descriptor.path:
            return streamed_schema(self._plain(session).table(descriptor.command or b""))
        return self._statements.describe(session, _select(descriptor), None).schema

    def _plain(self, session: Session) -> Plain:
        return Plain(self._warehouses.of(session.caller))

    def _told(
        self,
        session: Session,
        name: str,
        command: dict[str, Any],
        transaction: Transaction | None,
    ) -> pa.Table:
        caller = session.caller
        metadata = Metadata(self._warehouses.of(caller))
        return metadata.answer(name, command, transaction, can_write=caller.can_write)

    def _started(self, descriptor: Any, execution: Execution) -> Any:
        handle = self._handles.keep(execution)
        ticket = pack("TicketStatementQuery", statement_handle=handle)
        return _info(execution.schema, descriptor, ticket)


def _session(context: Any) -> Session:
    session = context.get_middleware("sessions").session
    assert isinstance(session, Session), "every call passes `Sessions`"
    return session


def _command(descriptor: Any) -> tuple[str, dict[str, Any]] | None:
    return unpack(descriptor.command) if descriptor.command else None


def _select(descriptor: Any) -> str:
    names = [part.decode(errors="replace").replace('"', '""') for part in descriptor.path]
    if len(names) not in {1, 2}:
        raise NotFoundError("a table is at a path of one name, or of schema and name")
    path = ".".join(f'"{name}"' for name in names)
    return f"SELECT * FROM {path}"  # noqa: S608 - quoted


def _info(schema: pa.Schema, descriptor: Any, ticket: bytes, num_rows: int = -1) -> Any:
    # Without a location a client comes back to where it was.
    return fl.FlightInfo(schema, descriptor, [fl.FlightEndpoint(ticket, [])], num_rows, -1)


def _reading(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    try:
        yield from batches
    except Exception as error:  # noqa: BLE001  # whatever it is, the client gets a status
        raise status_of(error) from None
