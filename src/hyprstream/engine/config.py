"""How large the engine is and how it shares itself. Plain data, no torch."""

from dataclasses import dataclass
from typing import Literal

from hyprstream.errors import InvalidSettingsError
from hyprstream.kernels.native import CODE_TILE

KvCacheDtype = Literal["auto", "int8"]
"""How keys and values are kept: as they are computed, or in 8 bits with a scale for each 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Sizes and limits of one engine. None means that the engine decides."""

    max_batch_tokens: int = 2048
    """Most tokens that one step computes, over all sequences."""
    max_sequences: int = 64
    """Most sequences that run at a time; not above `max_batch_tokens`."""
    max_waiting: int = 1024
    """Most requests that wait to start; one more is refused."""
    max_overtakes: int = 256
    """So many later sequences may start before a waiting one; then nothing does until it has."""
    block_tokens: int = 16
    """Positions in one block of KV memory; only full blocks are shared."""
    kv_memory_bytes: int | None = None
    """Memory for keys and values."""
    kv_cache_dtype: KvCacheDtype = "auto"
    """Keys and values: `auto` as the model computes them, `int8` in half the memory."""
    num_slots: int = 8
    """Adapter versions that one step can use; 0 serves the base model alone."""
    max_rank: int = 64
    """Highest rank of an adapter that a slot holds."""
    adapter_memory_bytes: int = 1 << 30
    """Most host memory that installed adapters take."""
    prefix_caching: bool = True
    """Keep full blocks after their sequence is over, for prompts that begin the same."""
    max_drafts: int = 4
    """Most tokens that are guessed ahead for one sequence and step; 0 guesses none."""
    background_share: float = 0.25
    """Share of the time that background work may take while requests are waiting."""
    background_burst_s: float = 0.06
    """Longest that requests wait for background work at a time, if its slices are short enough."""
    background_every: int = 24
    """So many steps apart background work makes requests wait: every 24th token of an answer."""

    def __post_init__(self) -> None:
        """Reject values of the wrong type or outside their range.

        Raises:
            InvalidSettingsError: A field is wrong, or two contradict each other.
        """
        for name, low in _LOWEST.items():
            value = getattr(self, name)
            if not _is_integer(value, low):
                raise _wrong(name, value, f"an integer, {low} or more")
        memory = self.kv_memory_bytes
        if memory is not None and not _is_integer(memory, 1):
            raise _wrong("kv_memory_bytes", memory, "a number of bytes, or leave it out")
        if self.kv_cache_dtype == "int8" and self.block_tokens % CODE_TILE:
            meaning = f"a multiple of {CODE_TILE}, or kv_cache_dtype 'auto'"
            raise _wrong("block_tokens", self.block_tokens, meaning)
        share = self.background_share
        if not 0 <= share <= 1:
            raise _wrong("background_share", share, "a number from 0 to 1")
        if not self.background_burst_s >= 0:
            raise _wrong("background_burst_s", self.background_burst_s, "a number of seconds")
        # Every answer under way then gets a token in each step.
        if self.max_sequences > self.max_batch_tokens:
            raise _wrong("max_sequences", self.max_sequences, f"{self.max_batch_tokens} or fewer")


_LOWEST = {
    "max_batch_tokens": 1,
    "max_sequences": 1,
    "max_waiting": 1,
    "max_overtakes": 0,
    "block_tokens": 1,
    "num_slots": 0,
    "max_rank": 1,
    "adapter_memory_bytes": 1,
    "max_drafts": 0,
    "background_every": 1,
}


def _is_integer(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _wrong(name: str, value: object, meaning: str) -> InvalidSettingsError:
    return InvalidSettingsError(f"engine.{name} is {value!r}", hint=f"Make it {meaning}.")
