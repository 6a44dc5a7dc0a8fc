"""The Flight service: one port for Flight SQL and for plain Flight.

gRPC calls the methods on threads of its own. pyarrow frees a server only with the process
before version 26: one per process.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl
from typing_extensions import override

from hyprstream.errors import InvalidSettingsError, NotFoundError, UnsupportedError
from hyprstream.flight.actions import ACTIONS, Actions
from hyprstream.flight.auth import Gate, OpenHandshake, Session, Sessions
from hyprstream.flight.failures import guarded, hide_tracebacks, status_of
from hyprstream.flight.handles import Handles
from hyprstream.flight.metadata import Metadata
from hyprstream.flight.plain import Plain, batches_of, streamed_schema
from hyprstream.flight.protocol import pack, plain, unpack
from hyprstream.flight.schemas import fixed_schema
from hyprstream.flight.statements import Statements
from hyprstream.refs import is_loopback
from hyprstream.runtime.warehouse.execution import Execution, Transaction
from hyprstream.runtime.warehouse.tenants import Warehouses


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """How the service proves who it is, and clients who they are.

    Attributes:
        certificate: File with its certificate chain, PEM.
        key: File with its private key, PEM.
        client_ca: File with the authorities of clients; None asks clients for no certificate.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None


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
    ) -> None:
        """Listen.

        Args:
            warehouses: What is served; they stay open when the service is closed.
            host: Where to listen.
            port: Where to listen; 0 takes a free one, see the attribute `port`.
            gate: Knows the keys; None lets everybody in, on this machine only.
            tls: None speaks in the clear, on this machine only.

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
        self._statements = Statements(warehouses, self._handles)
        self._actions = Actions(warehouses, self._handles, self._statements, self._sessions)
        self.scheme = "grpc" if tls is None else "grpc+tls"
        try:
            super().__init__(
                f"{self.scheme}://{self.shown_host}:{port}",
                auth_handler=OpenHandshake(),
                middleware={"sessions": self._sessions},
                **_tls_options(tls),
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
        if name == "CommandStatementQuery":
            started = self._statements.start(session, command["query"], command["transaction_id"])
        elif name == "CommandPreparedStatementQuery":
            handle = command["prepared_statement_handle"]
            started = self._statements.start_prepared(session, handle)
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
            num_rows = self._plain(session).put(session.caller, descriptor.path or [], reader)
            writer.write(json.dumps({"rows": num_rows}).encode())
            return
        name, command = found
        if name == "CommandPreparedStatementQuery":
            handle = command["prepared_statement_handle"]
            self._statements.bind(session, handle, reader.read_all())
            answer = plain("DoPutPreparedStatementResult", prepared_statement_handle=handle)
        else:
            count = self._update(session, name, command, reader)
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

    def _update(self, session: Session, name: str, command: dict[str, Any], reader: Any) -> int:
        if name == "CommandStatementUpdate":
            return self._statements.update(session, command["query"], command["transaction_id"])
        if name == "CommandPreparedStatementUpdate":
            handle = command["prepared_statement_handle"]
            return self._statements.update_prepared(session, handle, reader)
        if name == "CommandStatementIngest":
            return self._statements.ingest(session, command, reader)
        raise UnsupportedError(f"{name} is not served")

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


def check_guarded(host: str, *, has_keys: bool, has_tls: bool) -> None:
    """Refuse an address beyond this machine without keys, or in the clear.

    Raises:
        InvalidSettingsError: Others could reach it without a key, or overhear them.
    """
    if not is_loopback(host) and not (has_keys and has_tls):
        raise InvalidSettingsError(
            f"{host} can be reached by others: Flight needs keys and TLS there",
            hint="Listen on 127.0.0.1, or set both up.",
        )


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


def _tls_options(tls: Tls | None) -> dict[str, Any]:
    if tls is None:
        return {}
    options: dict[str, Any] = {
        "tls_certificates": [(_read(tls.certificate), _read(tls.key))],
        "verify_client": tls.client_ca is not None,
    }
    if tls.client_ca is not None:
        options["root_certificates"] = _read(tls.client_ca)
    return options


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidSettingsError(f"{file} cannot be read: {error.strerror}") from error
