"""A server in a process of its own: `python -m tests.flight.serving FOLDER [gate]`."""

import sys
from pathlib import Path

import pyarrow as pa

from hyprstream.flight.service import FlightService
from hyprstream.refs import AdapterName
from hyprstream.runtime.keys import Grant
from hyprstream.runtime.sql_config import SqlConfig
from hyprstream.runtime.warehouse.live import visible
from hyprstream.runtime.warehouse.tenants import LimitedBrain, Warehouses, made_with
from hyprstream.runtime.warehouse.warehouse import Caller, Warehouse
from hyprstream.vectors.store import VectorStore
from tests.runtime.warehouse.fakes import FakeBrain

POET = frozenset({AdapterName("poet")})
KEYS = {
    "writer-key": Grant(id="writer", scopes=frozenset({"admin"})),
    "other-key": Grant(id="other", scopes=frozenset({"ingest"})),
    "reader-key": Grant(id="reader", scopes=frozenset({"inference"})),
    "voter-key": Grant(id="voter", scopes=frozenset({"feedback"})),
    "poet-key": Grant(id="poet", scopes=frozenset({"inference"}), adapters=POET),
    "poets-ingest-key": Grant(id="poets", scopes=frozenset({"ingest"}), adapters=POET),
}
LIVE = {
    "models": lambda: pa.table({"ref": ["pypi://one"], "size_bytes": [7]}),
    "adapters": lambda: pa.table({"name": ["pirate", "poet"], "version": ["v1", "v2"]}),
    "versions": lambda: pa.table({"adapter": ["pirate", "poet"], "version": ["v1", "v2"]}),
    "samples": lambda: pa.table(
        {"id": [1, 2, 3], "adapter": ["pirate", "poet", None], "source": ["a", "b", "c"]}
    ),
}


def main() -> None:
    folder, options = Path(sys.argv[1]), sys.argv[2:]
    gate = KEYS.get if "gate" in options else None
    config = SqlConfig(timeout_s=20)
    brain = FakeBrain()

    def part(caller: Caller) -> Warehouse:
        assert caller.adapters is not None
        return Warehouse(
            folder / f"{caller.name}.duckdb" if caller.can_write else None,
            VectorStore(folder / "vectors", only=made_with(caller.adapters)),
            config=config,
            live=visible(LIVE, caller.adapters),
            brain=LimitedBrain(brain, caller.adapters),
        )

    vectors = VectorStore(folder / "vectors")
    whole = Warehouse(folder / "t.duckdb", vectors, config=config, live=LIVE, brain=brain)
    with Warehouses(whole, part) as warehouses:
        service = FlightService(warehouses, gate=gate)
        sys.stdout.write(f"{service.port}\n")
        sys.stdout.flush()
        sys.stdin.read()  # until the test closes it
        service.close()


if __name__ == "__main__":
    main()
