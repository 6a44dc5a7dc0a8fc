"""Many clients of SQL at a time, with training and generation going on: errors, memory, handles."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl

from benchmarks.models import test_data
from hyprstream.flight.client import Server

NUM_CLIENTS = 50
_LOOKS = 10  # at memory and handles, evenly over the time
_STATEMENTS = (
    "SELECT count(*) FROM samples",
    "SELECT name, version FROM adapters",
    "SELECT embed('text ' || i) FROM range(4) r(i)",
    "SELECT generate('one ' || i, max_tokens := 4) FROM range(2) r(i)",
    "SELECT generate('two', adapter := 'learner', max_tokens := 4)",
    "SELECT text, score FROM search('notes', 'something', 5)",
    "SELECT i, i * i FROM range(20000) r(i)",
    "SELECT * FROM training_runs",
)


def clients(folder: Path) -> None:
    """Let them work for HYPRSTREAM_BENCH_CLIENTS_S seconds, 60 unless that is set; print."""
    seconds = float(os.environ.get("HYPRSTREAM_BENCH_CLIENTS_S", "60"))
    home = folder / "clients"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    server, address = _started(home)
    try:
        looks, done, errors = _load(server.pid, address, seconds)
        counted = Server(address=address).query("SELECT count(*) AS n FROM decisions")
        taught = counted.to_pylist()[0]["n"]
    finally:
        server.terminate()
        server.wait(60)
    print(f"\n{NUM_CLIENTS} clients for {seconds:.0f} s, {done} statements, {taught} decisions of "
          f"learning; errors: {dict(errors) or 'none'}; exit code {server.returncode}")  # fmt: skip
    print("| after s | MB | threads | open files |\n|---|---|---|---|")
    for at, memory, threads, files in looks:
        print(f"| {at:.0f} | {memory:.0f} | {threads} | {files} |")


def _started(home: Path) -> tuple[subprocess.Popen[str], str]:
    model = test_data() / "stories260K" / "hf"
    server = subprocess.Popen(
        [*(sys.executable, "-m", "hyprstream", "server", str(model)),
         *("--port", "0", "--flight-port", "0")],
        env={**os.environ, "HYPRSTREAM_HOME": str(home), "OMP_NUM_THREADS": "1",
             "HYPRSTREAM_ENGINE__KV_MEMORY_BYTES": str(1 << 24)},
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert server.stderr is not None
    for line in server.stderr:
        if "Arrow Flight SQL at " in line:
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, line.rpartition("//")[2].strip()
    raise SystemExit("the server did not start")


def _load(
    pid: int, address: str, seconds: float
) -> tuple[list[tuple[float, float, int, int]], int, Counter[str]]:
    _prepare(address)
    errors: Counter[str] = Counter()
    counts = [0] * NUM_CLIENTS
    until = time.monotonic() + seconds

    def work(number: int) -> None:
        choose = random.Random(number)  # noqa: S311 - a choice
        while time.monotonic() < until:
            try:
                if choose.random() < 0.1:
                    _teach(address, f"{number} {counts[number]}")
                else:
                    Server(address=address).query(choose.choice(_STATEMENTS))
                counts[number] += 1
            except Exception as error:  # noqa: BLE001  # what is counted
                errors[f"{type(error).__name__}: {error}"[:160]] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(NUM_CLIENTS)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    looks = []
    for number in range(_LOOKS):
        time.sleep(max(began + (number + 1) * seconds / _LOOKS - time.monotonic(), 0))
        looks.append((time.monotonic() - began, *_size(pid)))
    for thread in threads:
        thread.join()
    return looks, sum(counts), errors


def _prepare(address: str) -> None:
    with fl.connect(f"grpc://{address}") as client:
        for kind, body in (
            ("CreateAdapter", {"name": "learner", "rank": 2}),
            ("TrainAdapter", {"name": "learner"}),
        ):
            list(client.do_action(fl.Action(kind, json.dumps(body).encode())))
    _put(address, ("vectors", "notes"), {"text": [f"note {i}" for i in range(50)]})


def _teach(address: str, what: str) -> None:
    rows = {"prompt": [f"question {what}"], "completion": [f"answer {what}"]}
    _put(address, ("samples", "learner"), rows)


def _put(address: str, path: tuple[str, ...], rows: dict[str, list[str]]) -> None:
    table = pa.table(rows)
    with fl.connect(f"grpc://{address}") as client:
        writer, reader = client.do_put(fl.FlightDescriptor.for_path(*path), table.schema)
        with writer:
            writer.write_table(table)
            writer.done_writing()
            reader.read()


def _size(pid: int) -> tuple[float, int, int]:
    status = Path(f"/proc/{pid}/status").read_text()
    sizes = dict(line.split(":", 1) for line in status.splitlines())
    memory = int(sizes["VmRSS"].split()[0]) / 1024
    return memory, int(sizes["Threads"]), len(list(Path(f"/proc/{pid}/fd").iterdir()))
