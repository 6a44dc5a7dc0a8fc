"""How much a runtime does and holds: requests, tokens, memory, and what its adapters take."""

import resource
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hyprstream.engine.stats import EngineStats
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.adapters import Adapters
from hyprstream.store.records import Adapter

_STATM = Path("/proc/self/statm")
_MAX_KNOWN = 1024  # versions whose dense size is remembered


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeLoad:
    """What a runtime does and holds at one moment.

    Attributes:
        engine: Sequences, blocks and slots.
        num_requests: Requests that hold something, those on their way to the engine included.
        num_tokens: Tokens of answers since the start.
        tokens_per_s: The same a second, over the last ten.
        kv_bytes: KV memory in all.
        kv_used_bytes: What of it sequences hold.
        resident_bytes: Of the process, as the kernel counts them.
    """

    engine: EngineStats
    num_requests: int
    num_tokens: int
    tokens_per_s: float
    kv_bytes: int
    kv_used_bytes: int
    resident_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSize:
    """What an adapter takes on the disk, and what it would take without a code.

    Attributes:
        name: The adapter.
        version: What its name points at.
        codec: How that is stored.
        stored_bytes: Length of its payload.
        dense_bytes: The same as dense float32 tensors.
    """

    name: AdapterName
    version: VersionId
    codec: str
    stored_bytes: int
    dense_bytes: int


class Sizes:
    """Tells what adapters take. Remembers versions, which never change.

    A version is read whole the first time that it is asked for.
    """

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self._known: OrderedDict[VersionId, int] = OrderedDict()

    def of(self, adapters: Sequence[Adapter]) -> list[StoredSize]:
        """Measure adapters; waits for the disk. One call at a time.

        Raises:
            CorruptError: A version is damaged.
        """
        return [
            StoredSize(
                name=adapter.name,
                version=adapter.version,
                codec=adapter.codec,
                stored_bytes=adapter.size_bytes,
                dense_bytes=self._dense_bytes(adapter.version),
            )
            for adapter in adapters
        ]

    def _dense_bytes(self, version: VersionId) -> int:
        found = self._known.get(version)
        if found is None:
            tensors = self._adapters.tensors(version).values()
            found = self._known[version] = sum(4 * tensor.size for tensor in tensors)
            if len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
        return found


def resident_bytes(read: Callable[[], str] = _STATM.read_text) -> int:
    """Tell how much memory the process holds; its highest amount where the kernel does not say."""
    try:
        return int(read().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
