"""Random load and random departures for as long as one likes: memory stays within its bound.

HYPRSTREAM_SOAK_S is the number of seconds; 1200 is what a release is held to.
"""

import asyncio
import contextlib
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from hyprstream.engine.assembly import build_core
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.engine import Engine
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.errors import AdapterMemoryFullError, QueueFullError, VersionNotFoundError
from hyprstream.refs import RequestId, VersionId
from tests.engine.adapters import low_rank
from tests.models.reference import load_decoder, make_model, variants

SOAK_S = float(os.environ.get("HYPRSTREAM_SOAK_S", "20"))
NUM_CLIENTS = 12
VERSIONS = [VersionId(str(n)) for n in range(8)]
MAX_GROWTH_BYTES = 64 << 20  # allocators keep some; a leak of one block table per request is more
CONFIG = EngineConfig(
    block_tokens=8,
    max_batch_tokens=64,
    max_sequences=8,
    max_waiting=8,
    num_slots=3,
    max_rank=8,
    kv_memory_bytes=1 << 20,
)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Crowd:
    """Clients of one engine that come, stay or leave at random, and somebody who watches."""

    engine: Engine
    rng: random.Random
    ends: float
    names: Iterator[int] = field(default_factory=itertools.count)
    sizes: list[int] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.ends

    def make_request(self) -> Request:
        rng = self.rng
        return Request(
            id=RequestId(f"r{next(self.names)}"),
            token_ids=tuple(rng.randrange(8, 90) for _ in range(rng.randint(1, 60))),
            params=SamplingParams(max_tokens=rng.randint(1, 40), seed=rng.randint(0, 9)),
            adapter=rng.choice([None, *VERSIONS]),
            num_answers=rng.choice([1, 1, 2]),
        )

    async def client(self) -> None:
        while self.goes_on:
            patience = self.rng.choice([1000, 1000, self.rng.randint(0, 20)])
            try:
                async with self.engine.submit(self.make_request()) as stream:
                    async for _ in stream:
                        patience -= 1
                        if patience < 0:
                            break
                self.outcomes["left" if patience < 0 else "finished"] += 1
            except (QueueFullError, AdapterMemoryFullError, VersionNotFoundError):
                self.outcomes["refused"] += 1
                await asyncio.sleep(0)

    async def vanishing_client(self) -> None:
        """Clients whose tasks are cancelled wherever they are."""
        while self.goes_on:
            task = asyncio.create_task(self.client())
            for _ in range(self.rng.randint(0, 50)):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def operator(self) -> None:
        """Installs and retires, and watches the memory."""
        while self.goes_on:
            version = self.rng.choice(VERSIONS)
            await self.engine.install(version)
            if self.rng.random() < 0.3:
                await self.engine.retire(version)
            self.sizes.append(resident_bytes())

    async def come_and_go(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(NUM_CLIENTS):
                group.create_task(self.client())
            group.create_task(self.vanishing_client())
            group.create_task(self.operator())
        while self.engine.num_requests:
            await asyncio.sleep(0)


@pytest.mark.slow
@pytest.mark.timeout(SOAK_S + 120)
def test_memory_stays_within_its_bound_through_random_load(tmp_path):
    torch.set_num_threads(1)
    make_model(variants("qwen3")["plain"]).save_pretrained(tmp_path)
    model = load_decoder(tmp_path)
    core = build_core(
        model,
        replace(CONFIG, adapter_memory_bytes=3 * low_rank(0, model.linears).size_bytes),
        fetch=lambda version: low_rank(int(version), model.linears),
    )

    async def main() -> Crowd:
        before = asyncio.all_tasks()
        async with Engine(core, CONFIG) as engine:
            rng = random.Random(0)  # noqa: S311 - a reproducible crowd
            crowd = Crowd(engine, rng, time.monotonic() + SOAK_S)
            await crowd.come_and_go()
        assert asyncio.all_tasks() == before
        return crowd

    crowd = asyncio.run(main())
    while core.has_work:
        core.step()
    core.check_integrity()
    assert core.open_requests == []
    warm = crowd.sizes[len(crowd.sizes) // 4]  # the first quarter fills caches
    assert max(crowd.sizes) - warm < MAX_GROWTH_BYTES
    assert set(crowd.outcomes) == {"finished", "left", "refused"}
