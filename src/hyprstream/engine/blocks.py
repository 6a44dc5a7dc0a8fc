"""Which blocks of KV memory are in use, and which hold a prefix that can be shared.

A block holds the keys and values of a fixed number of positions. A full block gets a key:
a hash of the tokens in it and of everything before them that shaped its content. A sequence
that begins with the same blocks holds them too instead of computing them again.

A block that nobody holds keeps its content and its key until it is needed for something
else. Blocks without a key go first, then the one released longest ago.

Bookkeeping only, no tensors. Runs on the engine thread.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hyprstream.refs import VersionId


def root_key(version: VersionId | None, salt: str) -> bytes:
    """Return what the first block of a sequence has for a parent.

    Keys and values depend on the adapter; salts keep strangers from learning by its speed
    that somebody else had the same prompt.
    """
    return hashlib.sha256(repr((version, salt)).encode()).digest()


def block_key(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Return the key of a full block: SHA-256, so that equal keys mean equal content."""
    return hashlib.sha256(parent + array("q", token_ids).tobytes()).digest()


@dataclass(frozen=True, slots=True)
class Holding:
    """Blocks that were taken for a sequence.

    Attributes:
        blocks: In order of position.
        num_shared: How many of the first already hold what they should.
    """

    blocks: tuple[int, ...]
    num_shared: int


class BlockPool:
    """Hands out the blocks of the KV memory.

    Invariants, checked by `test_blocks_properties.py`: a block is held by somebody or free,
    never both; it is handed out as new only while nobody holds it; a key leads to one block
    at most, and is forgotten when the block is handed out as new.
    """

    def __init__(self, num_blocks: int) -> None:
        self._holders = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))  # next first
        self._keys: list[bytes | None] = [None] * num_blocks
        self._index: dict[bytes, int] = {}

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return len(self._holders)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, whether or not a prefix is remembered in them."""
        return len(self._free)

    def holders(self, block: int) -> int:
        """Count how often a block is held."""
        return self._holders[block]

    def begin(
        self, keys: Iterable[bytes], num_blocks: int, *, num_spare: int = 0
    ) -> Holding | None:
        """Take the blocks of a sequence that starts, remembered ones as far as they go.

        Args:
            keys: Keys of its first blocks, as many as may be shared; taken up to the first miss.
            num_blocks: Blocks that it needs, those that are shared included.
            num_spare: Free blocks that have to be left over.

        Returns:
            The blocks, or None if there are too few; then nothing has changed.
        """
        shared = self._remembered(keys)
        num_new = num_blocks - len(shared)
        num_revived = sum(1 for block in shared if self._holders[block] == 0)
        if num_new + num_revived + num_spare > len(self._free):
            return None
        for block in shared:
            if self._holders[block] == 0:
                del self._free[block]
            self._holders[block] += 1
        return Holding((*shared, *self._take(num_new)), len(shared))

    def extend(self, num_blocks: int) -> tuple[int, ...] | None:
        """Take new blocks for a sequence that grows; None if there are too few."""
        return self._take(num_blocks) if num_blocks <= len(self._free) else None

    def register(self, block: int, key: bytes) -> None:
        """Remember what a full block holds. Where another block holds it too, that one stays."""
        assert self._holders[block] > 0, f"block {block} is registered and held by nobody"
        if key not in self._index and self._keys[block] is None:
            self._index[key] = block
            self._keys[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of blocks that a sequence held; what is remembered in them stays until reuse."""
        # Last block first: the beginning of a prompt is more often asked for than its end,
        # and the end is worth nothing without it.
        for block in reversed(blocks):
            assert self._holders[block] > 0, f"block {block} released more often than taken"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free[block] = None
                if self._keys[block] is None:
                    self._free.move_to_end(block, last=False)

    def check_integrity(self) -> None:
        """Check what the class promises; for tests, after every step."""
        free = {block for block, count in enumerate(self._holders) if count == 0}
        assert free == self._free.keys(), f"{free} are held by nobody, {set(self._free)} are free"
        assert all(count >= 0 for count in self._holders), "a block is held less than never"
        indexed = {block: key for key, block in self._index.items()}
        keyed = {block: key for block, key in enumerate(self._keys) if key is not None}
        assert indexed == keyed, "keys and blocks do not lead to one another"

    def _remembered(self, keys: Iterable[bytes]) -> list[int]:
        blocks = []
        for key in keys:
            block = self._index.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def _take(self, num_blocks: int) -> tuple[int, ...]:
        # Released blocks come last one first. In order they are one stretch, read without a copy.
        taken = tuple(sorted(self._free.popitem(last=False)[0] for _ in range(num_blocks)))
        for block in taken:
            self._holders[block] = 1
            key = self._keys[block]
            if key is not None:
                del self._index[key]
                self._keys[block] = None
        return taken
