"""What running sequences hold on the device: blocks for keys and values, a slot for an adapter.

Joins the block pool, the slot table and the prefix keys of sequences. Bookkeeping only, no
tensors. Runs on the engine thread.
"""

from collections import Counter
from collections.abc import Sequence

from hyprstream.engine.blocks import BlockPool
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.request import Request
from hyprstream.engine.sequence import SequenceState
from hyprstream.engine.slots import Lease, SlotTable
from hyprstream.errors import ContextTooLongError, RequestTooLargeError
from hyprstream.refs import VersionId


class SequenceMemory:
    """Gives sequences their blocks and slots, all or nothing, and takes them back.

    Invariants, checked by `test_scheduler_properties.py`: every block and every pin belongs
    to the running sequences that it is counted for; a block that several hold is not written.
    """

    def __init__(self, config: EngineConfig, *, num_blocks: int, context_length: int) -> None:
        self._context_length = context_length
        self._block_tokens = config.block_tokens
        self._shares_prefixes = config.prefix_caching
        self._pool = BlockPool(num_blocks)
        self._slots = SlotTable(config.num_slots)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._pool.num_free

    @property
    def num_blocks(self) -> int:
        """All blocks that there are."""
        return self._pool.num_blocks

    @property
    def resident(self) -> frozenset[VersionId]:
        """Versions that are in slots."""
        return self._slots.resident

    def final_length(self, request: Request) -> int:
        """Return the length at which an answer ends at the latest, its prompt included.

        Raises:
            ContextTooLongError: The prompt leaves no room for a token.
            RequestTooLargeError: The blocks are too few for it, even if it had them all.
        """
        num_prompt = len(request.token_ids)
        num_chosen = 0 if request.embeds else 1  # the last token is chosen and never computed
        most = self._context_length - num_chosen
        if num_prompt > most:
            raise ContextTooLongError(num_tokens=num_prompt, max_tokens=most)
        room = self._pool.num_blocks * self._block_tokens + num_chosen
        wanted = num_prompt
        if not request.embeds:
            # Without a limit an answer goes on until the context is full, or the memory.
            answer = request.params.max_tokens or max(1, room - num_prompt)
            wanted = min(self._context_length, num_prompt + answer)
        if wanted > room:
            raise RequestTooLargeError(num_tokens=wanted, max_tokens=room)
        return wanted

    def take(self, state: SequenceState, *, num_spare: int) -> Lease | None:
        """Give a sequence blocks for all its tokens and a slot.

        What another sequence has computed of its beginning counts as computed.

        Args:
            state: The sequence.
            num_spare: Free blocks that have to be left over.

        Returns:
            The lease of the slot, or None if something is short; then nothing has changed.
        """
        version = state.request.adapter
        # At least one block is always new: the last token is computed, to choose what follows.
        if not self._slots.has_room(version) or self._pool.num_free <= num_spare:
            return None
        num_known = len(state.token_ids)
        shares = self._shares_prefixes and not state.needs_whole_prompt
        num_keys = (num_known - 1) // self._block_tokens if shares else 0
        # One by one: whoever waits without a hit would otherwise pay for its whole prompt.
        keys = (state.key(index, self._block_tokens) for index in range(num_keys))
        holding = self._pool.begin(keys, self._num_blocks(num_known), num_spare=num_spare)
        if holding is None:
            return None
        state.blocks = holding.blocks
        state.num_registered = holding.num_shared
        state.num_computed = holding.num_shared * self._block_tokens
        lease = self._slots.lease(version)
        assert lease is not None, f"no slot for {version} although there was room"
        return lease

    def grow(self, state: SequenceState, num_tokens: int) -> bool:
        """Make sure that a sequence has blocks for `num_tokens`; False if too few are free."""
        if num_tokens <= self.capacity(state):
            return True
        added = self._pool.extend(self._num_blocks(num_tokens) - len(state.blocks))
        if added is None:
            return False
        state.blocks += added
        return True

    def capacity(self, state: SequenceState) -> int:
        """Return how many tokens the blocks of a sequence have room for."""
        return len(state.blocks) * self._block_tokens

    def remember(self, state: SequenceState) -> None:
        """Offer the blocks that a sequence has filled to those that begin the same."""
        num_full = state.num_computed // self._block_tokens
        if not self._shares_prefixes or num_full == state.num_registered:
            return
        for index in range(state.num_registered, num_full):
            self._pool.register(state.blocks[index], state.key(index, self._block_tokens))
        state.num_registered = num_full

    def give_back(self, state: SequenceState) -> None:
        """Take back what a sequence holds."""
        self._pool.release(state.blocks)
        self._slots.release(state.request.adapter)

    def forget(self, version: VersionId) -> None:
        """Free the slot of a version that nobody will ask for again, unless it is in use."""
        self._slots.forget(version)

    def check_integrity(self, running: Sequence[SequenceState]) -> None:
        """Check what the class promises; for tests, after every step."""
        self._pool.check_integrity()
        self._slots.check_integrity()
        holders = Counter(block for state in running for block in state.blocks)
        pins = Counter(state.request.adapter for state in running if state.request.adapter)
        assert pins == self._slots.pins, f"{pins} are in use, {self._slots.pins} are pinned"
        for block in range(self._pool.num_blocks):
            assert holders[block] == self._pool.holders(block), f"block {block} is miscounted"
        for state in running:
            assert state.num_computed <= self.capacity(state), f"{state.id} has too few blocks"
            for block in state.blocks[state.num_computed // self._block_tokens :]:
                assert holders[block] == 1, f"block {block} is shared and will be written"

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_tokens)
