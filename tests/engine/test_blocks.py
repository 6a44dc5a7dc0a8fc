from hyprstream.engine.blocks import BlockPool, block_key, root_key
from hyprstream.refs import VersionId


def _chain(*blocks: tuple[int, ...], version: str | None = None, salt: str = "") -> list[bytes]:
    keys = [root_key(None if version is None else VersionId(version), salt)]
    for block in blocks:
        keys.append(block_key(keys[-1], block))
    return keys[1:]


def _filled(pool: BlockPool, keys: list[bytes]) -> tuple[int, ...]:
    """Take new blocks, fill and register them."""
    blocks = pool.extend(len(keys))
    assert blocks is not None
    for block, key in zip(blocks, keys, strict=True):
        pool.register(block, key)
    return blocks


def test_a_key_depends_on_all_that_shapes_a_block():
    keys = [
        _chain((1, 2), (3, 4))[-1],
        _chain((1, 3), (3, 4))[-1],
        _chain((1, 2), (3, 5))[-1],
        _chain((1, 2), (3, 4), version="a")[-1],
        _chain((1, 2), (3, 4), version="")[-1],
        _chain((1, 2), (3, 4), salt="s")[-1],
        _chain((1, 2), (3, 4), version="a", salt="s")[-1],
        _chain((1, 2))[-1],
        _chain((1, 2, 3, 4))[-1],
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == _chain((1, 2), (3, 4))[-1]


def test_blocks_that_begin_the_same_are_shared():
    pool = BlockPool(8)
    keys = _chain((1, 2), (3, 4), (5, 6))
    blocks = _filled(pool, keys)
    holding = pool.begin(keys[:2], 4)
    assert holding is not None
    assert holding.num_shared == 2
    assert holding.blocks[:2] == blocks[:2]
    assert not set(holding.blocks[2:]) & set(blocks)
    assert [pool.holders(block) for block in blocks] == [2, 2, 1]


def test_sharing_stops_at_the_first_block_that_is_not_there():
    pool = BlockPool(8)
    keys = _chain((1, 2), (3, 4), (5, 6))
    blocks = pool.extend(3)
    assert blocks is not None
    pool.register(blocks[0], keys[0])
    pool.register(blocks[2], keys[2])
    holding = pool.begin(keys, 3)
    assert holding is not None
    assert holding.num_shared == 1


def test_a_released_block_is_reused_last():
    pool = BlockPool(4)
    first = _filled(pool, _chain((1, 2)))
    pool.release(first)
    second = pool.extend(3)
    assert second is not None
    assert not set(first) & set(second)
    assert pool.extend(1) == first


def test_a_block_without_a_key_is_reused_before_one_with():
    pool = BlockPool(2)
    (kept,) = _filled(pool, _chain((1, 2)))
    plain = pool.extend(1)
    assert plain is not None
    pool.release((kept,))
    pool.release(plain)
    assert pool.extend(1) == plain


def test_the_end_of_a_sequence_is_reused_before_its_beginning():
    pool = BlockPool(3)
    blocks = _filled(pool, _chain((1, 2), (3, 4), (5, 6)))
    pool.release(blocks)
    assert [pool.extend(1) for _ in blocks] == [(block,) for block in blocks[::-1]]


def test_a_block_that_is_handed_out_as_new_is_forgotten():
    pool = BlockPool(1)
    keys = _chain((1, 2))
    pool.release(_filled(pool, keys))
    blocks = pool.extend(1)
    assert blocks is not None
    pool.release(blocks)
    holding = pool.begin(keys, 1)
    assert holding is not None
    assert holding.num_shared == 0


def test_of_two_blocks_with_the_same_content_the_first_is_remembered():
    pool = BlockPool(3)
    keys = _chain((1, 2))
    first, _ = _filled(pool, keys), _filled(pool, keys)
    holding = pool.begin(keys, 1)
    assert holding is not None
    assert holding.blocks == first


def test_too_few_blocks_change_nothing():
    pool = BlockPool(4)
    keys = _chain((1, 2), (3, 4))
    pool.release(_filled(pool, keys))
    assert pool.begin(keys, 5) is None
    assert pool.begin(keys, 3, num_spare=2) is None
    assert pool.extend(5) is None
    assert (pool.num_free, pool.num_blocks) == (4, 4)
    pool.check_integrity()
    holding = pool.begin(keys, 3, num_spare=1)
    assert holding is not None
    assert holding.num_shared == 2


def test_blocks_that_come_back_are_one_stretch_again():
    pool = BlockPool(8)
    holding = pool.begin([], 4)
    assert holding is not None
    for index, block in enumerate(holding.blocks):
        pool.register(block, bytes([index]))
    pool.release(holding.blocks)
    pool.begin([], 4)  # the other half
    again = pool.begin([], 4)
    assert again is not None
    assert again.blocks == holding.blocks == (0, 1, 2, 3)
