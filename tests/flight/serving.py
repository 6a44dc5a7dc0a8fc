"""A server in a process of its own: `python -m tests.flight.serving FOLDER [gate] [CERT KEY]`."""

import sys
from pathlib import Path

import pyarrow as pa

from hyprstream.flight.service import FlightService, Tls
from hyprstream.runtime.sql_config import SqlConfig
from hyprstream.runtime.warehouse.warehouse import Warehouse
from hyprstream.vectors.store import VectorStore
from tests.runtime.warehouse.fakes import FakeBrain

KEYS = {
    "writer-key": frozenset({"admin"}),
    "other-key": frozenset({"ingest"}),
    "reader-key": frozenset({"read"}),
}


def main() -> None:
    folder, options = Path(sys.argv[1]), sys.argv[2:]
    gate = KEYS.get if "gate" in options else None
    files = [Path(option) for option in options if option != "gate"]
    tls = Tls(certificate=files[0], key=files[1]) if files else None
    live = {"models": lambda: pa.table({"ref": ["pypi://one"], "size_bytes": [7]})}
    vectors = VectorStore(folder / "vectors")
    config = SqlConfig(timeout_s=20)
    with Warehouse(folder / "t.duckdb", vectors, config=config, live=live, brain=FakeBrain()) as w:
        service = FlightService(w, gate=gate, tls=tls)
        sys.stdout.write(f"{service.port}\n")
        sys.stdout.flush()
        sys.stdin.read()  # until the test closes it
        service.close()


if __name__ == "__main__":
    main()
