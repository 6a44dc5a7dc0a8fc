"""Any sequence of calls, against a memory in which every block says what was written to it."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hyprstream.engine.blocks import BlockPool, Holding, block_key, root_key

_NUM_BLOCKS = 6
_LETTERS = st.lists(st.integers(0, 1), max_size=4).map(tuple)  # one letter fills a block


def _keys(letters: tuple[int, ...]) -> list[bytes]:
    keys = [root_key(None, "")]
    for letter in letters:
        keys.append(block_key(keys[-1], [letter]))
    return keys[1:]


class BlockMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(_NUM_BLOCKS)
        self.content: dict[int, tuple[int, ...]] = {}
        self.held: list[tuple[int, ...]] = []

    @rule(letters=_LETTERS, num_more=st.integers(0, 3), num_spare=st.integers(0, 2))
    def begin(self, letters, num_more, num_spare):
        before = self._holders()
        holding = self.pool.begin(_keys(letters), len(letters) + num_more, num_spare=num_spare)
        if holding is None:
            assert before == self._holders()
            return
        self._fill(holding, letters, before)
        assert self.pool.num_free >= num_spare
        self.held.append(holding.blocks)

    def _fill(self, holding: Holding, letters: tuple[int, ...], before: list[int]) -> None:
        shared, new = (
            holding.blocks[: holding.num_shared],
            holding.blocks[holding.num_shared :],
        )
        assert [self.content[block] for block in shared] == [
            letters[: i + 1] for i in range(len(shared))
        ]
        assert all(before[block] == 0 for block in new), "a block in use was handed out as new"
        assert len(set(holding.blocks)) == len(holding.blocks)
        for block in new:
            self.content[block] = ()
        for i in range(len(shared), len(letters)):
            self.content[holding.blocks[i]] = letters[: i + 1]
            self.pool.register(holding.blocks[i], _keys(letters)[i])

    @rule(num_blocks=st.integers(1, 3))
    def extend(self, num_blocks):
        before = self._holders()
        blocks = self.pool.extend(num_blocks)
        assert (blocks is None) == (before.count(0) < num_blocks)
        if blocks is not None:
            assert all(before[block] == 0 for block in blocks)
            self.content.update(dict.fromkeys(blocks, ()))
            self.held.append(blocks)

    @rule(data=st.data())
    def release(self, data):
        if self.held:
            self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    def _holders(self) -> list[int]:
        return [self.pool.holders(block) for block in range(_NUM_BLOCKS)]

    @invariant()
    def everybody_is_counted(self):
        self.pool.check_integrity()
        counted = [sum(block in blocks for blocks in self.held) for block in range(_NUM_BLOCKS)]
        assert self._holders() == counted
        assert self.pool.num_free == counted.count(0)


TestBlockMachine = BlockMachine.TestCase
TestBlockMachine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
