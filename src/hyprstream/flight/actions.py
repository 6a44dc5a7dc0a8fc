"""The actions of Flight SQL and of Flight, and those of ours on tables of vectors."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from hyprstream.errors import InvalidRequestError, UnsupportedError
from hyprstream.flight.adapters import ADAPTER_ACTIONS, AdapterDesk
from hyprstream.flight.auth import Session, Sessions
from hyprstream.flight.handles import Handles
from hyprstream.flight.plain import compact_vectors, drop_vectors, index_vectors
from hyprstream.flight.protobuf import Message
from hyprstream.flight.protocol import pack, plain, read, unpack
from hyprstream.flight.statements import Statements
from hyprstream.runtime.warehouse.database import CATALOG
from hyprstream.runtime.warehouse.tenants import Warehouses

ACTIONS = (
    ("CreatePreparedStatement", "Prepares a statement."),
    ("ClosePreparedStatement", "Forgets a prepared statement."),
    ("BeginTransaction", "Begins a transaction."),
    ("EndTransaction", "Commits a transaction, or rolls it back."),
    ("CancelFlightInfo", "Cancels a query."),
    ("CancelQuery", "Cancels a query (an older form)."),
    ("SetSessionOptions", "Sets the schema of a session."),
    ("GetSessionOptions", "Tells the options of a session."),
    ("CloseSession", "Ends a session."),
    ("CompactVectors", 'Joins the files of a table of vectors: {"table": NAME}.'),
    ("IndexVectors", 'Indexes a large table of vectors: {"table": NAME}.'),
    ("DropVectors", 'Removes a table of vectors: {"table": NAME}.'),
    *ADAPTER_ACTIONS,
)
_CANCELLED, _NOT_CANCELLABLE = 1, 3
_COMMIT, _ROLLBACK = 1, 2
_CHOICES: Mapping[type, str] = {
    str: "string_value",
    bool: "bool_value",
    int: "int64_value",
    float: "double_value",
}


class Actions:
    """Runs actions for sessions."""

    def __init__(
        self,
        warehouses: Warehouses,
        handles: Handles,
        statements: Statements,
        sessions: Sessions,
        adapters: AdapterDesk,
    ) -> None:
        self._adapters = adapters
        self._warehouses = warehouses
        self._handles = handles
        self._statements = statements
        self._sessions = sessions
        self._known: Mapping[str, Callable[[Session, bytes], list[bytes]]] = {
            "CreatePreparedStatement": self._prepare,
            "ClosePreparedStatement": self._close_prepared,
            "BeginTransaction": self._begin,
            "EndTransaction": self._end,
            "CancelFlightInfo": self._cancel_info,
            "CancelQuery": self._cancel_query,
            "SetSessionOptions": self._set_options,
            "GetSessionOptions": self._get_options,
            "CloseSession": self._close_session,
            "CompactVectors": self._compact,
            "IndexVectors": self._index,
            "DropVectors": self._drop,
        }

    def run(self, session: Session, kind: str, body: bytes) -> list[bytes]:
        """Run an action; return the bodies of its answers.

        Raises:
            UnsupportedError: There is no such action.
        """
        if self._adapters.knows(kind):
            return self._adapters.run(session.caller, kind, body)
        if kind not in self._known:
            raise UnsupportedError(
                f"there is no action {kind!r}", hint="ListActions tells which there are."
            )
        return self._known[kind](session, body)

    def _prepare(self, session: Session, body: bytes) -> list[bytes]:
        request = _request(body, "ActionCreatePreparedStatementRequest")
        handle, description = self._statements.prepare(session, request)
        schema, parameters = description.schema, description.parameters
        is_update = description.parsed.kind not in {"SELECT", "EXPLAIN"}
        answer = pack(
            "ActionCreatePreparedStatementResult",
            prepared_statement_handle=handle,
            dataset_schema=schema.serialize().to_pybytes() if len(schema) else b"",
            parameter_schema=parameters.serialize().to_pybytes() if len(parameters) else b"",
            is_update=is_update,
        )
        return [answer]

    def _close_prepared(self, session: Session, body: bytes) -> list[bytes]:
        request = _request(body, "ActionClosePreparedStatementRequest")
        self._handles.forget(request["prepared_statement_handle"], session)
        return []

    def _begin(self, session: Session, body: bytes) -> list[bytes]:
        _request(body, "ActionBeginTransactionRequest")
        transaction = self._warehouses.of(session.caller).begin(session.caller, session.schema)
        handle = self._handles.begun(transaction)
        # Uploads and questions about tables carry no transaction: they take part in this one.
        self._sessions.keep(session)
        session.transaction = handle
        return [pack("ActionBeginTransactionResult", transaction_id=handle)]

    def _end(self, session: Session, body: bytes) -> list[bytes]:
        request = _request(body, "ActionEndTransactionRequest")
        if request["action"] not in {_COMMIT, _ROLLBACK}:
            raise InvalidRequestError("a transaction is committed or rolled back")
        commit = request["action"] == _COMMIT
        self._handles.end(request["transaction_id"], session, commit=commit)
        return []

    def _cancel_info(self, session: Session, body: bytes) -> list[bytes]:
        info = read("CancelFlightInfoRequest", body)["info"]
        return [plain("CancelFlightInfoResult", status=self._cancel(session, info))]

    def _cancel_query(self, session: Session, body: bytes) -> list[bytes]:
        request = _request(body, "ActionCancelQueryRequest")
        info = read("FlightInfo", request["info"])
        return [pack("ActionCancelQueryResult", result=self._cancel(session, info))]

    def _cancel(self, session: Session, info: Message | None) -> int:
        status = _NOT_CANCELLABLE
        for endpoint in (info or {}).get("endpoint", []):
            found = unpack((endpoint["ticket"] or {}).get("ticket", b""))
            if found and found[0] == "TicketStatementQuery":
                handle = found[1]["statement_handle"]
                if self._handles.cancel(handle, session):
                    status = _CANCELLED
        return status

    def _set_options(self, session: Session, body: bytes) -> list[bytes]:
        errors = {}
        for name, value in read("SetSessionOptionsRequest", body)["session_options"].items():
            if problem := self._set_option(session, name, (value or {}).get("string_value")):
                errors[name] = {"value": problem}
        return [plain("SetSessionOptionsResult", errors=errors)]

    def _set_option(self, session: Session, name: str, value: str | None) -> int:
        """Return 0, or what is wrong: 1 for the name, 2 for the value."""
        if name == "catalog":
            return 0 if value == CATALOG else 2
        if name != "schema":
            return 1
        query = (
            "SELECT 1 FROM duckdb_schemas() "
            "WHERE database_name = $catalog AND schema_name = $schema"
        )
        place = {"catalog": CATALOG, "schema": value}
        warehouse = self._warehouses.of(session.caller)
        if value is None or not warehouse.look(query, place).num_rows:
            return 2
        session.schema = value
        self._sessions.keep(session)
        return 0

    def _get_options(self, session: Session, body: bytes) -> list[bytes]:
        read("GetSessionOptionsRequest", body)
        options: dict[str, Any] = {"catalog": CATALOG, "schema": session.schema}
        told = {name: {_CHOICES[type(value)]: value} for name, value in options.items()}
        return [plain("GetSessionOptionsResult", session_options=told)]

    def _close_session(self, session: Session, body: bytes) -> list[bytes]:
        read("CloseSessionRequest", body)
        self._sessions.drop(session)
        return [plain("CloseSessionResult", status=1)]

    def _compact(self, session: Session, body: bytes) -> list[bytes]:
        warehouse = self._warehouses.of(session.caller)
        num_files = compact_vectors(warehouse, session.caller, _table_name(body))
        return [json.dumps({"files": num_files}).encode()]

    def _index(self, session: Session, body: bytes) -> list[bytes]:
        warehouse = self._warehouses.of(session.caller)
        found = index_vectors(warehouse, session.caller, _table_name(body))
        return [json.dumps(found).encode()]

    def _drop(self, session: Session, body: bytes) -> list[bytes]:
        drop_vectors(self._warehouses.of(session.caller), session.caller, _table_name(body))
        return []


def _request(body: bytes, name: str) -> Message:
    found = unpack(body)
    if found is None or found[0] != name:
        raise InvalidRequestError(f"the body of the action is no {name}")
    return found[1]


def _table_name(body: bytes) -> str:
    try:
        name = json.loads(body)["table"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidRequestError('the body of the action is {"table": NAME}') from error
    return str(name)
