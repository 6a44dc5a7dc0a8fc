"""Which adapter versions the engine knows, so that requests can name them. On the event loop.

The store says what a reference means; the engine fetches and drops weights by itself, within
`EngineConfig.adapter_memory_bytes`. What stands here is in between: a version is made known
to the engine with the first request that names it, once it is clear that it fits the model.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from hyprstream.refs import AdapterName, AdapterRef, VersionId


@runtime_checkable
class VersionHost(Protocol):
    """What is told of versions: `Engine`."""

    async def install(self, version: VersionId) -> None:
        """Let requests use a version."""
        ...

    async def retire(self, version: VersionId) -> None:
        """Refuse it to new requests."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A version that the engine knows.

    Attributes:
        ref: What it was asked for by, last.
        version: Its id.
        in_use: A request uses it.
    """

    ref: str
    version: VersionId
    in_use: bool


MAX_KNOWN = 4096  # each costs some hundred bytes, in the engine as well


class Residence:
    """The versions that the engine knows because of requests.

    Invariant, checked by `test_residence.py`: a version that is in use is not retired; at most
    `max_known` others are known.

    Args:
        engine: Takes the versions.
        resolve: Tells which version a reference means to a request of a key, and raises for one
            that is not for this model; it may wait for the disk.
        pool: Threads that may.
        max_known: How many versions to keep known while nobody uses them.
    """

    def __init__(
        self,
        engine: VersionHost,
        resolve: Callable[[str, str | None], VersionId],
        pool: Executor,
        *,
        max_known: int = MAX_KNOWN,
    ) -> None:
        self._engine = engine
        self._resolve = resolve
        self._pool = pool
        self._max_known = max_known
        self._known: OrderedDict[VersionId, str] = OrderedDict()  # reference; oldest use first
        self._pins: Counter[VersionId] = Counter()
        self._names: dict[VersionId, AdapterName] = {}

    @property
    def in_use_now(self) -> frozenset[VersionId]:
        """Versions that requests use."""
        return frozenset(self._pins)

    @property
    def known_now(self) -> list[Resident]:
        """Versions that requests may use at once, the one that was used last first."""
        return [
            Resident(ref=ref, version=version, in_use=version in self._pins)
            for version, ref in reversed(self._known.items())
        ]

    def name_of(self, version: VersionId) -> AdapterName | None:
        """Return the name by which a known version was asked for last."""
        return self._names.get(version)

    @asynccontextmanager
    async def in_use(self, ref: str, key: str | None = None) -> AsyncIterator[VersionId]:
        """Give the version that a reference means now; the engine knows it in this block.

        Args:
            ref: The reference.
            key: Of the request: a name alone may mean its canary then.

        Raises:
            NotFoundError: There is no such adapter or version.
            IncompatibleAdapterError: It was made for another model.
            EngineStoppedError: The engine does not run.
        """
        loop = asyncio.get_running_loop()
        version = await loop.run_in_executor(self._pool, self._resolve, ref, key)
        self._pins[version] += 1
        try:
            if version not in self._known:
                await self._engine.install(version)
            self._known[version] = ref
            self._names[version] = AdapterRef.parse(ref).name
            self._known.move_to_end(version)
            await self._forget()
            yield version
        finally:
            self._pins[version] -= 1
            if not self._pins[version]:
                del self._pins[version]

    async def _forget(self) -> None:
        """Retire the versions beyond the bound that nobody uses."""
        if len(self._known) - len(self._pins) <= self._max_known:
            return
        unused = [version for version in self._known if version not in self._pins]
        for version in unused[: max(0, len(unused) - self._max_known)]:
            if version in self._pins or version not in self._known:
                continue  # while others were retired, somebody took it up, or retired it too
            del self._known[version]
            self._names.pop(version, None)
            await self._engine.retire(version)
