"""A server of Flight SQL, as the command line asks it: one statement, or rows for a table."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from hyprstream.errors import (
    AuthenticationError,
    HyprstreamError,
    InvalidSettingsError,
    InvalidSqlError,
    NotFoundError,
    SqlNotAllowedError,
    UnavailableError,
    UnsupportedError,
)
from hyprstream.flight.protocol import pack, read, unpack
from hyprstream.refs import is_loopback
from hyprstream.runtime.warehouse.execution import pieces

_CREATE, _REPLACE = 1, 3
_ERRORS: tuple[tuple[type[Exception], type[HyprstreamError]], ...] = (
    (fl.FlightUnauthenticatedError, AuthenticationError),
    (fl.FlightUnauthorizedError, SqlNotAllowedError),
    (KeyError, NotFoundError),
    (NotImplementedError, UnsupportedError),
    (ValueError, InvalidSqlError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where a server is, and how to talk to it.

    Attributes:
        address: `HOST:PORT`.
        key: To be let in; empty sends none.
        tls_ca: File with the authority that vouches for the server, PEM; without one, a server
            on this machine is spoken to in the clear, any other with the system's authorities.
        tls_cert: File with the certificate chain to show, PEM.
        tls_key: File with its private key, PEM.
    """

    address: str
    key: str = field(default="", repr=False)
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None

    def query(self, text: str) -> pa.Table:
        """Run a statement.

        Returns:
            Its rows; of a statement without rows, one row `count` of how many it changed.

        Raises:
            HyprstreamError: The server is not there, or refuses.
        """
        with self._calling() as (client, options), self._prepared(client, options, text) as found:
            handle = found["prepared_statement_handle"]
            if found["is_update"]:
                return _update(client, handle, options)
            command = pack("CommandPreparedStatementQuery", prepared_statement_handle=handle)
            info = client.get_flight_info(fl.FlightDescriptor.for_command(command), options)
            return client.do_get(info.endpoints[0].ticket, options).read_all()

    def upload(self, table: str, rows: pa.RecordBatchReader) -> int:
        """Put rows in the place of a table; return how many.

        Raises:
            HyprstreamError: As `query`.
        """
        how = {"if_not_exist": _CREATE, "if_exists": _REPLACE}
        command = pack("CommandStatementIngest", table=table, table_definition_options=how)
        with self._calling() as (client, options):
            descriptor = fl.FlightDescriptor.for_command(command)
            writer, reader = client.do_put(descriptor, rows.schema, options)
            with writer:
                for batch in rows:
                    for piece in pieces(batch):
                        writer.write_batch(piece)
                writer.done_writing()
                answer = reader.read()
        count: int = read("DoPutUpdateResult", answer.to_pybytes())["record_count"]
        return count

    @contextmanager
    def _calling(self) -> Iterator[tuple[fl.FlightClient, fl.FlightCallOptions]]:
        files = (self.tls_ca, self.tls_cert, self.tls_key)
        with _failures(self.address), _connected(self.address, *files) as client:
            yield client, self._options()

    @contextmanager
    def _prepared(
        self, client: fl.FlightClient, options: fl.FlightCallOptions, text: str
    ) -> Iterator[dict[str, Any]]:
        body = pack("ActionCreatePreparedStatementRequest", query=text)
        answer = next(iter(client.do_action(("CreatePreparedStatement", body), options)))
        unpacked = unpack(answer.body.to_pybytes())
        if unpacked is None:
            raise UnsupportedError(f"{self.address} does not speak Flight SQL")
        found = unpacked[1]
        try:
            yield found
        finally:
            body = pack(
                "ActionClosePreparedStatementRequest",
                prepared_statement_handle=found["prepared_statement_handle"],
            )
            with suppress(pa.ArrowException):  # a server that is gone has closed it
                options = self._options(timeout=1.0)
                list(client.do_action(("ClosePreparedStatement", body), options))

    def _options(self, timeout: float | None = None) -> fl.FlightCallOptions:
        headers = [(b"authorization", f"Bearer {self.key}".encode())] if self.key else []
        return fl.FlightCallOptions(headers=headers, timeout=timeout)


def _update(client: fl.FlightClient, handle: bytes, options: fl.FlightCallOptions) -> pa.Table:
    command = pack("CommandPreparedStatementUpdate", prepared_statement_handle=handle)
    descriptor = fl.FlightDescriptor.for_command(command)
    writer, reader = client.do_put(descriptor, pa.schema([]), options)
    with writer:
        writer.done_writing()
        answer = reader.read()
    count = read("DoPutUpdateResult", answer.to_pybytes())["record_count"]
    return pa.table({"count": [count]})


@contextmanager
def _connected(address: str, *files: Path | None) -> Iterator[fl.FlightClient]:
    host = address.rpartition(":")[0].strip("[]")
    authority, certificate, key = (None if file is None else _read(file) for file in files)
    if (certificate is None) != (key is None):
        raise InvalidSettingsError(
            "a certificate and its key belong together", hint="Give both files, or neither."
        )
    in_the_clear = authority is None and certificate is None and is_loopback(host)
    scheme = "grpc" if in_the_clear else "grpc+tls"
    options = {"tls_root_certs": authority, "cert_chain": certificate, "private_key": key}
    with fl.connect(f"{scheme}://{address}", **options) as client:
        yield client


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidSettingsError(f"{file} cannot be read: {error.strerror}") from error


@contextmanager
def _failures(address: str) -> Iterator[None]:
    try:
        yield
    except HyprstreamError:
        raise
    except (pa.ArrowException, KeyError, OSError) as error:
        text = str(error.args[0] if error.args else error).partition(". Detail:")[0]
        for kind, ours in _ERRORS:
            if isinstance(error, kind):
                raise ours(text.removeprefix("Flight error: ")) from error
        raise UnavailableError(
            f"{address}: {text.splitlines()[0]}", hint="Is a server listening there?"
        ) from error
