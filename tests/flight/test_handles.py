"""What clients hold: they give it back, and one that does not takes nothing from others."""

import time
from contextlib import closing

import duckdb
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from hyprstream.errors import HyprstreamError, NotFoundError
from hyprstream.flight.auth import Session
from hyprstream.flight.client import Server
from hyprstream.flight.handles import MOST_PREPARED, Handles, Prepared
from hyprstream.flight.protocol import pack
from hyprstream.flight.service import FlightService
from hyprstream.runtime.sql_config import SqlConfig
from hyprstream.runtime.warehouse.statements import parse
from hyprstream.runtime.warehouse.tenants import Warehouses
from hyprstream.runtime.warehouse.warehouse import Caller, Description, Warehouse
from hyprstream.vectors.store import VectorStore


def nobody(caller):
    raise AssertionError(f"{caller} is not limited")


def test_our_own_client_closes_what_it_prepares(tmp_path, monkeypatch):
    monkeypatch.setattr("hyprstream.flight.handles.MOST_PREPARED", 10**9)
    monkeypatch.setattr("hyprstream.flight.handles._MOST", 2)
    warehouse = Warehouse(tmp_path / "t.duckdb", VectorStore(tmp_path / "vectors"))
    with Warehouses(warehouse, nobody) as warehouses, closing(FlightService(warehouses)) as service:
        client = Server(address=f"127.0.0.1:{service.port}")
        client.query("CREATE TABLE t AS SELECT 1 AS x")
        for _ in range(3):
            assert client.query("SELECT x FROM t").to_pylist() == [{"x": 1}]
            assert client.query("INSERT INTO t SELECT 1 WHERE false").to_pylist() == [{"count": 0}]
            with pytest.raises(HyprstreamError, match="nope"):
                client.query("SELECT nope FROM t")
            with pytest.raises(HyprstreamError, match="Conversion"):
                client.query("SELECT CAST('a' || x AS INTEGER) FROM t")


SLOW = (
    "CREATE TABLE slow AS SELECT count(*) FROM range(10000000) a, range(10000000) b "
    "WHERE a.range + b.range = 7"
)


def update(client, options):
    place = fl.FlightDescriptor.for_command(pack("CommandStatementUpdate", query=SLOW))
    writer, reader = client.do_put(place, pa.schema([]), options)
    with writer:
        writer.done_writing()
        reader.read()


def query(client, options):
    command = pack("CommandStatementQuery", query=SLOW)
    client.get_flight_info(fl.FlightDescriptor.for_command(command), options)


@pytest.mark.parametrize("ask", [update, query])
def test_what_a_client_started_ends_when_it_goes(tmp_path, ask):
    config = SqlConfig(timeout_s=3600)
    vectors = VectorStore(tmp_path / "vectors")
    warehouse = Warehouse(tmp_path / "t.duckdb", vectors, config=config)
    with Warehouses(warehouse, nobody) as warehouses, closing(FlightService(warehouses)) as service:
        client = fl.connect(f"grpc://127.0.0.1:{service.port}")
        with client, pytest.raises(fl.FlightTimedOutError):
            ask(client, fl.FlightCallOptions(timeout=1.0))
        other = Server(address=f"127.0.0.1:{service.port}")
        until = time.monotonic() + 60
        while not made(other):  # as long as it runs, nobody else can make the table
            assert time.monotonic() < until
            time.sleep(0.05)


def made(server: Server) -> bool:
    try:
        server.query("CREATE TABLE slow AS SELECT 1 AS x")
    except HyprstreamError as error:
        if "conflict" not in str(error):
            raise
        return False
    return True


def test_who_never_closes_loses_what_was_idle_longest_and_only_of_their_own():
    one, other = (Session(name, Caller(name=name)) for name in ("one", "other"))

    with closing(duckdb.connect()) as database:
        parsed = parse(database, "SELECT 1", can_write=False)
    described = Description(parsed, pa.schema([]), pa.schema([]))
    now = time.monotonic()

    def prepared(session, number):
        used_at = now - 1 + number / MOST_PREPARED  # not so long ago that it is closed for that
        return Prepared(session, "SELECT 1", None, described, used_at=used_at)

    with closing(Handles()) as handles:
        theirs = handles.prepare(prepared(other, -1))
        mine = [handles.prepare(prepared(one, number)) for number in range(MOST_PREPARED)]
        handles.prepared(mine[0], one)  # used just now
        handles.prepare(prepared(one, MOST_PREPARED))
        with pytest.raises(NotFoundError):
            handles.prepared(mine[1], one)
        for handle in (mine[0], *mine[2:]):
            assert handles.prepared(handle, one).session is one
        assert handles.prepared(theirs, other).session is other
