"""Which versions the engine is told of: all that are in use, and a bounded number of others."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hyprstream.errors import AdapterNotFoundError
from hyprstream.refs import VersionId
from hyprstream.runtime.residence import Residence


class FakeEngine:
    def __init__(self):
        self.known: set[str] = set()

    async def install(self, version):
        await asyncio.sleep(0)
        self.known.add(version)

    async def retire(self, version):
        self.known.remove(version)
        await asyncio.sleep(0)


def resolve(ref: str, key: str | None) -> VersionId:
    assert key is None
    if ref == "nobody":
        raise AdapterNotFoundError("there is no adapter nobody")
    return VersionId(ref)


def run(use, max_known=2):
    async def main():
        engine = FakeEngine()
        with ThreadPoolExecutor(1) as pool:
            await use(Residence(engine, resolve, pool, max_known=max_known), engine)

    asyncio.run(main())


@settings(max_examples=30, deadline=None)
@example([["a", "c", "d", "e"], ["b", "b"]])  # retired twice at a time
@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=5), max_size=8))
def test_versions_in_use_are_known_and_others_are_bounded(rounds):
    async def use(residence, engine):
        for names in rounds:

            async def one(name):
                async with residence.in_use(name) as version:
                    assert version in engine.known
                    assert version in residence.in_use_now
                    await asyncio.sleep(0)
                    assert version in engine.known

            await asyncio.gather(*map(one, names))
            assert not residence.in_use_now
            assert len(engine.known) <= len(set(names)) + 2

    run(use)


def test_one_that_is_not_there_holds_nothing():
    async def use(residence, engine):
        with pytest.raises(AdapterNotFoundError):
            async with residence.in_use("nobody"):
                raise AssertionError
        assert not residence.in_use_now
        assert not engine.known

    run(use)
