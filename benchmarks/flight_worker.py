"""Servers for `benchmarks/flight.py`: `python -m benchmarks.flight_worker ours|bare FOLDER`."""

import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from hyprstream.flight.service import FlightService
from hyprstream.runtime.sql_config import SqlConfig
from hyprstream.runtime.warehouse.tenants import Warehouses
from hyprstream.runtime.warehouse.warehouse import Caller, Warehouse
from hyprstream.vectors.store import VectorStore


class Bare(fl.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """Gives back what it was given last: nothing but Flight."""

    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._table = pa.table({})

    def do_put(self, _context: Any, _descriptor: Any, reader: Any, _writer: Any) -> None:
        self._table = reader.read_all()

    def do_get(self, _context: Any, _ticket: Any) -> Any:
        return fl.RecordBatchStream(self._table)


def main() -> None:
    folder = Path(sys.argv[2])
    if sys.argv[1] == "bare":
        _serve(Bare())
        return
    vectors = VectorStore(folder / "vectors")

    def none(_: Caller) -> Warehouse:
        raise AssertionError("nobody is limited here")

    config = SqlConfig(memory_bytes=1 << 30)
    with Warehouses(Warehouse(folder / "t.duckdb", vectors, config=config), none) as warehouses:
        service = FlightService(warehouses)
        _serve(service)


def _serve(service: Any) -> None:
    sys.stdout.write(f"{service.port}\n")
    sys.stdout.flush()
    sys.stdin.read()
    if isinstance(service, FlightService):
        service.close()


if __name__ == "__main__":
    main()
