"""SQL and Flight: vectors out and in, search, `embed`, and many clients at a time.

Each part stands beside the least that could be done: a Flight server of ten lines that gives
back what it got, one product of matrices, the engine asked without SQL. Times are ratios of
turns that alternate, or processor time, since other work may run beside.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl
import torch

from benchmarks.flight_clients import clients
from benchmarks.flight_data import DIM, batches, vectors
from benchmarks.flight_embed import embed
from hyprstream.flight.protocol import pack
from hyprstream.vectors.store import VectorStore
from hyprstream.vectors.table import Stamp

NUM_ROWS = int(os.environ.get("HYPRSTREAM_BENCH_ROWS", "1000000"))


class Server:
    """One of the two servers, as a process."""

    def __init__(self, kind: str, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.flight_worker", kind, str(folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.client = fl.connect(f"grpc://127.0.0.1:{self.process.stdout.readline().strip()}")

    def close(self) -> None:
        self.client.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def memory(self) -> tuple[float, float]:
        """Most memory so far, in MB: all, and without mapped files."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        sizes = dict(line.split(":", 1) for line in status.splitlines())
        return tuple(int(sizes[name].split()[0]) / 1024 for name in ("VmHWM", "RssAnon"))  # type: ignore[return-value]  # two

    def processor(self) -> float:
        """Seconds of the processor so far, in user mode and in the system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def servers(folder: Path) -> Iterator[tuple[Server, Server]]:
    ours, bare = Server("ours", folder), Server("bare", folder)
    try:
        yield ours, bare
    finally:
        ours.close()
        bare.close()


def sent(server: Server, descriptor: Any, rows: list[pa.RecordBatch]) -> None:
    writer, reader = server.client.do_put(descriptor, rows[0].schema)
    for batch in rows:
        writer.write_batch(batch)
    writer.done_writing()
    reader.read()
    writer.close()


def received(server: Server, ticket: Any) -> None:
    num_rows = 0
    for chunk in server.client.do_get(ticket):
        num_rows += chunk.data.num_rows
    assert num_rows == NUM_ROWS


def selected(server: Server) -> None:
    command = pack("CommandStatementQuery", query="SELECT embedding FROM vectors.v0")
    info = server.client.get_flight_info(fl.FlightDescriptor.for_command(command))
    received(server, info.endpoints[0].ticket)


@dataclass(frozen=True)
class Cost:
    """What a transfer took: seconds by the clock, and of the processor at both ends."""

    wall_s: float
    processor_s: float


def cost(server: Server, work: Callable[[], None]) -> Cost:
    began, used = time.perf_counter(), time.process_time() + server.processor()
    work()
    used = time.process_time() + server.processor() - used
    return Cost(time.perf_counter() - began, used)


def transfers(folder: Path, rounds: int) -> None:
    """Send and fetch the vectors, in turns with the bare server."""
    rows = list(batches(NUM_ROWS, 0))
    size_gb = sum(batch.nbytes for batch in rows) / 1e9
    listing = fl.Ticket(b'{"ListEmbeddings": {"table": "v0"}}')
    costs: dict[str, list[Cost]] = {}

    def note(name: str, server: Server, work: Callable[[], None]) -> None:
        costs.setdefault(name, []).append(cost(server, work))

    with servers(folder) as (ours, bare):
        for number in range(rounds):
            place = fl.FlightDescriptor.for_path("vectors", f"v{number}")
            note("in", bare, lambda: sent(bare, fl.FlightDescriptor.for_path("x"), rows))
            note("in, vectors", ours, partial(sent, ours, place, rows))
            for _ in range(2):
                note("out", bare, lambda: received(bare, fl.Ticket(b"x")))
                note("out, ListEmbeddings", ours, lambda: received(ours, listing))
                note("out, SELECT", ours, lambda: selected(ours))
            if number:
                action = fl.Action("DropVectors", f'{{"table": "v{number}"}}'.encode())
                list(ours.client.do_action(action))
        memory = ours.memory()
    print(f"\n{NUM_ROWS} x {DIM} float32, {size_gb:.2f} GB, {rounds} rounds in turns")
    print("| | GB/s | share of a bare server's speed | by processor time |\n|---|---|---|---|")
    for name, found in costs.items():
        best = costs[name.partition(",")[0]]
        speed = size_gb / statistics.median(one.wall_s for one in found)
        by_wall = shares([one.wall_s for one in best], [one.wall_s for one in found])
        by_use = shares([one.processor_s for one in best], [one.processor_s for one in found])
        print(f"| {name} | {speed:.2f} | {by_wall} | {by_use} |")
    print(f"most memory of the server: {memory[0]:.0f} MB; {memory[1]:.0f} MB are no mapped files")


def shares(best: list[float], found: list[float]) -> str:
    each = [b / f for b, f in zip(best, found, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


def processor(work: Callable[[], Any]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def searches(folder: Path, rounds: int) -> None:
    """Search exactly, beside one product of matrices, and with an index."""
    store = VectorStore(folder / "vectors")
    if "v0" not in store.names():
        store.create("v0", DIM)
        first = next(batches(1, 0)).schema
        store.append("v0", first, batches(NUM_ROWS, 0), Stamp())
    began = time.process_time()
    entry = store.index("v0")
    built = time.process_time() - began
    table = store.table("v0")
    matrix = torch.from_numpy(np.concatenate([piece.vectors for piece in table.pieces]))
    asked = vectors(64, 12345)
    one, many = asked[:1], asked[:32]
    times: dict[str, list[float]] = {}
    turns: dict[str, tuple[Callable[[], Any], int]] = {
        "torch, 1": (lambda: torch.topk(torch.from_numpy(one) @ matrix.T, 10), 1),
        "exact, 1": (lambda: table.search(one, 10, exact=True), 1),
        "torch, 32": (lambda: torch.topk(torch.from_numpy(many) @ matrix.T, 10), 32),
        "exact, 32": (lambda: table.search(many, 10, exact=True), 32),
        "index, 1": (lambda: [table.search(q[None], 10) for q in asked], len(asked)),
    }
    for _ in range(rounds + 1):
        for name, (work, num_queries) in turns.items():
            times.setdefault(name, []).append(1000 * processor(work) / num_queries)
    middle = {name: statistics.median(found[1:]) for name, found in times.items()}
    exact = table.search(asked, 10, exact=True).ids
    found = table.search(asked, 10).ids
    same = sum(len(np.intersect1d(a, b)) for a, b in zip(exact, found, strict=True))
    print(f"\nsearch in {len(table)} vectors, processor time of a query in ms, {rounds} rounds")
    print("| | ms |\n|---|---|")
    for name, value in middle.items():
        print(f"| {name} | {value:.2f} |")
    print(f"exact by torch: {middle['exact, 1'] / middle['torch, 1']:.2f} for one query, "
          f"{middle['exact, 32'] / middle['torch, 32']:.2f} for 32")  # fmt: skip
    print(f"index: {middle['exact, 1'] / middle['index, 1']:.0f} times as fast, recall@10 "
          f"{same / exact.size:.3f} of queries that are no rows; built in {built:.0f} s of "
          f"processor, {entry.size_bytes / 1e6:.0f} MB, {entry.probes} cells seen")  # fmt: skip


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    parts = os.environ.get("HYPRSTREAM_BENCH_PARTS", "transfers,searches,embed,clients").split(",")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "transfers" in parts:
            transfers(folder, rounds)
        if "searches" in parts:
            searches(folder, rounds)
        if "embed" in parts:
            embed(folder)
        if "clients" in parts:
            clients(folder)
