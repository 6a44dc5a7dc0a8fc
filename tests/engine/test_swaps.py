"""Thousands of adapter versions come and go under load: no token is from another version.

The runner is the fake one: its tokens follow from the version that computed every position
of the context, so a stale slot, a stale prefix or a wrong version changes them.
"""

import asyncio
import random

import pytest

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.engine.versions import HostVersions
from hyprstream.errors import AdapterMemoryFullError
from hyprstream.lora.weights import LoraWeights
from hyprstream.refs import RequestId, VersionId
from tests.engine.adapters import low_rank
from tests.engine.fakes import Parts, answer_alone

NUM_NAMES = 6
CONFIG = EngineConfig(
    block_tokens=4, num_slots=3, max_sequences=8, max_batch_tokens=48, prefix_caching=True
)


def make_version(name: int, number: int) -> VersionId:
    return VersionId(f"adapter {name}, version {number}")


async def swap(num_swaps: int, seed: int) -> tuple[Parts, int]:
    """Move names to new versions while clients use whatever the names point at."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible crowd
    weights = LoraWeights({})  # the fake runner goes by versions alone
    parts = Parts(CONFIG, num_blocks=48)
    current = {name: make_version(name, 0) for name in range(NUM_NAMES)}
    num_answers = 0
    swaps_left = num_swaps

    async def client(engine, number):
        nonlocal num_answers
        turn = 0
        while swaps_left > 0 or turn == 0:
            name = rng.choice([None, *range(NUM_NAMES)])
            version = None if name is None else current[name]
            request = Request(
                id=RequestId(f"{number}.{turn}"),
                # Few prompts, and whole blocks of them: every version meets cached prefixes.
                token_ids=(*range(4 * rng.randint(1, 4)), rng.randint(0, 2)),
                params=SamplingParams(max_tokens=rng.randint(1, 6)),
                adapter=version,
            )
            async with engine.submit(request) as stream:
                tokens = [event.token.token_id async for event in stream]
            assert tokens == answer_alone(request)
            num_answers += 1
            turn += 1

    async with parts.engine() as engine:
        for version in current.values():
            await engine.install(version, weights)
        async with asyncio.TaskGroup() as clients:
            for number in range(12):
                clients.create_task(client(engine, number))
            while swaps_left > 0:
                names = rng.sample(range(NUM_NAMES), 4)
                old = [current[name] for name in names]
                new = {name: make_version(name, swaps_left) for name in names}
                await asyncio.gather(*(engine.install(v, weights) for v in new.values()))
                current.update(new)
                await asyncio.gather(*(engine.retire(version) for version in old))
                swaps_left -= len(names)
    return parts, num_answers


def check(num_swaps: int, seed: int) -> None:
    parts, num_answers = asyncio.run(swap(num_swaps, seed))
    parts.assert_clean()
    assert num_answers > num_swaps / 40
    assert parts.scheduler.counts.shared_tokens > 0
    assert parts.versions.size_bytes == 0


@pytest.mark.timeout(180)
def test_no_token_comes_from_a_wrong_or_stale_version_through_500_swaps():
    check(500, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_token_comes_from_a_wrong_or_stale_version_through_10000_swaps():
    check(10_000, seed=2)


def test_versions_swap_through_a_host_memory_smaller_than_they_are_together():
    sizes = low_rank(seed=0).size_bytes
    disk = {make_version(0, n): low_rank(seed=n) for n in range(20)}
    versions = HostVersions(4 * sizes, fetch=disk.__getitem__)
    parts = Parts(CONFIG, num_blocks=48, versions=versions)
    for version in disk:
        parts.core.install(version)
    rng = random.Random(0)  # noqa: S311 - a reproducible crowd
    waiting = 0
    for number in range(200):
        params = SamplingParams(max_tokens=4)
        request = Request(
            id=RequestId(str(number)),
            token_ids=(1, 2, 3, 4, 5),
            params=params,
            adapter=rng.choice(list(disk)),
        )
        while True:
            try:
                parts.core.add(request)
                break
            except AdapterMemoryFullError:
                waiting += 1
                parts.core.step()
        parts.core.check_integrity()
        assert versions.size_bytes <= 4 * sizes
    assert waiting > 0
    while parts.core.has_work:
        parts.core.step()
    parts.assert_clean()
