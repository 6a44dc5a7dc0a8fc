"""Attention over blocks: any cut, any blocks, any company give what the whole sequence gives."""

from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.engine.eight_bits import dequantised, quantised
from hyprstream.engine.kept import Dense
from hyprstream.engine.native_attention import NativeAttention
from hyprstream.engine.paged_attention import PagedAttention
from hyprstream.engine.paged_cache import PagedCache, block_bytes
from hyprstream.engine.plan import Row, SequenceId
from hyprstream.errors import InvalidSettingsError
from hyprstream.kernels.native import open_kernels
from hyprstream.models.attention import PackedAttention, mixed_values
from hyprstream.models.config import AttentionConfig, ModelConfig
from hyprstream.refs import RequestId

HEADS, KV_HEADS, WIDTH = 6, 2, 32
CPU = torch.device("cpu")


needs_kernels = pytest.mark.skipif(
    open_kernels() is None, reason="the native kernels are not compiled: is there a C++ compiler?"
)
WAYS = ["torch", pytest.param("native", marks=needs_kernels)]


def config(*layers: AttentionConfig) -> ModelConfig:
    return ModelConfig(
        architecture="test",
        vocab_size=1,
        width=8,
        num_layers=len(layers),
        num_heads=HEADS,
        num_kv_heads=KV_HEADS,
        head_width=WIDTH,
        mlp_width=8,
        context_length=4096,
        norm_eps=1e-5,
        attention=layers,
    )


def cache_for(model, num_blocks, block_tokens, kind="auto"):
    cache = PagedCache(
        model,
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        dtype=torch.float32,
        device=torch.device("cpu"),
        kind=kind,
    )
    for layer in range(model.num_layers):  # what an earlier, broken sequence may have left
        places = torch.arange(num_blocks * block_tokens)
        noise = torch.full((len(places), KV_HEADS, WIDTH), float("nan"))
        cache.write(layer, places, noise, noise)
    return cache


def row(index, start, num_tokens, blocks):
    return Row(
        sequence_id=SequenceId(RequestId("r"), index),
        token_ids=(0,) * num_tokens,
        start=start,
        blocks=tuple(blocks),
        slot=0,
        samples=False,
    )


class Sequence:
    """Random queries, keys and values of one sequence, and what they should give."""

    def __init__(self, model, pieces, seed, kind="auto"):
        generator = torch.Generator().manual_seed(seed)
        total = sum(pieces)
        self.pieces = pieces
        self.ends = list(accumulate(pieces))
        shapes = [(total, heads, WIDTH) for heads in (HEADS, KV_HEADS, KV_HEADS)]
        self.qkv = [torch.randn(shape, generator=generator) for shape in shapes]
        whole = PackedAttention(model.attention, [total])
        read = self.qkv
        if kind == "int8":
            read = [read[0], *(dequantised(*quantised(x), torch.float32) for x in read[1:])]
        self.expected = [whole.attend(i, *read) for i in range(model.num_layers)]

    def cut(self, step):
        return slice(self.ends[step] - self.pieces[step], self.ends[step])


def native_for(way, model, cache):
    if way == "torch":
        return None
    native = NativeAttention.open(model, cache)
    assert native is not None
    return native


def check(way, model, sequences, block_tokens, draw_blocks, kind="auto"):
    """Run all sequences side by side, piece by piece, and compare each piece."""
    # In 8 bits the kernel rounds queries and shares, too; the numbers are about 1.
    tolerance = 0.05 if kind == "int8" and way == "native" else 1e-5
    needs = [-(-s.ends[-1] // block_tokens) for s in sequences]
    pool = draw_blocks(sum(needs))
    blocks = [[pool.pop() for _ in range(need)] for need in needs]
    cache = cache_for(model, sum(needs), block_tokens, kind)
    native = native_for(way, model, cache)
    for step in range(max(len(s.pieces) for s in sequences)):
        alive = [i for i, s in enumerate(sequences) if step < len(s.pieces)]
        cuts = [sequences[i].cut(step) for i in alive]
        rows = [
            row(i, cut.start, cut.stop - cut.start, blocks[i])
            for i, cut in zip(alive, cuts, strict=True)
        ]
        attention = PagedAttention(model, cache, rows, native=native)
        for layer in range(model.num_layers):
            packed = [
                torch.cat([sequences[i].qkv[x][cut] for i, cut in zip(alive, cuts, strict=True)])
                for x in range(3)
            ]
            expected = torch.cat(
                [sequences[i].expected[layer][cut] for i, cut in zip(alive, cuts, strict=True)]
            )
            ours = attention.attend(layer, *packed)
            torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)


PIECES = st.lists(st.sampled_from([1, 1, 1, 2, 3, 9, 40]), min_size=1, max_size=6)


@pytest.mark.parametrize("way", WAYS)
@given(
    sequences=st.lists(PIECES, min_size=1, max_size=5),
    block_tokens=st.sampled_from([1, 4, 16]),
    window=st.integers(1, 60),
    softcap=st.none() | st.just(5.0),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_cut_any_blocks_any_company_give_what_the_whole_gives(
    way, sequences, block_tokens, window, softcap, data
):
    model = config(
        AttentionConfig(scale=0.3, softcap=softcap),
        AttentionConfig(scale=0.3, window=window, softcap=softcap),
    )
    made = [Sequence(model, pieces, seed) for seed, pieces in enumerate(sequences)]

    def draw_blocks(count):
        return data.draw(st.permutations(range(count)))

    check(way, model, made, block_tokens, draw_blocks)


@pytest.mark.parametrize("way", WAYS)
@given(
    sequences=st.lists(PIECES, min_size=1, max_size=5),
    block_tokens=st.sampled_from([16, 48]),
    window=st.integers(1, 60),
    softcap=st.none() | st.just(5.0),
    data=st.data(),
)
@settings(max_examples=15, deadline=None)
def test_the_same_in_8_bits(way, sequences, block_tokens, window, softcap, data):
    model = config(
        AttentionConfig(scale=0.2, softcap=softcap),
        AttentionConfig(scale=0.2, window=window, softcap=softcap),
    )
    made = [Sequence(model, pieces, seed, "int8") for seed, pieces in enumerate(sequences)]

    def draw_blocks(count):
        return data.draw(st.permutations(range(count)))

    check(way, model, made, block_tokens, draw_blocks, "int8")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("block_order", [list, lambda r: [*r][::-1]])
def test_contexts_beyond_those_that_attend_together_are_right_too(way, block_order):
    model = config(AttentionConfig(scale=0.3), AttentionConfig(scale=0.3, window=300))
    pieces = [[250, 1, 1, 1, 1, 1, 1, 1], [230, 30, 1, 1, 1], [700, 1, 4, 1, 1]]
    made = [Sequence(model, p, seed) for seed, p in enumerate(pieces)]
    check(way, model, made, 16, lambda count: block_order(range(count)))


def test_a_row_may_own_more_blocks_than_it_fills():
    model = config(AttentionConfig(scale=0.3))
    sequence = Sequence(model, [5], 0)
    cache = cache_for(model, 8, 4)
    attention = PagedAttention(model, cache, [row(0, 0, 5, range(8))])
    torch.testing.assert_close(attention.attend(0, *sequence.qkv), sequence.expected[0])


def test_a_position_without_a_block_is_refused():
    model = config(AttentionConfig(scale=0.3))
    with pytest.raises(AssertionError, match="5 positions in 1 blocks"):
        PagedAttention(model, cache_for(model, 8, 4), [row(0, 0, 5, [3])])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cache_takes_what_its_blocks_take(dtype):
    model = config(*[AttentionConfig(scale=0.3)] * 3)
    cache = PagedCache(
        model, num_blocks=7, block_tokens=16, dtype=dtype, device=torch.device("cpu")
    )
    assert cache.size_bytes == 7 * block_bytes(model, dtype, 16)
    assert block_bytes(model, dtype, 16) == 3 * 2 * 16 * KV_HEADS * WIDTH * dtype.itemsize
    codes = PagedCache(
        model, num_blocks=7, block_tokens=16, dtype=dtype, device=torch.device("cpu"), kind="int8"
    )
    assert codes.size_bytes == 7 * block_bytes(model, dtype, 16, "int8")
    assert block_bytes(model, dtype, 16, "int8") == 3 * 2 * 16 * KV_HEADS * (WIDTH + 2)


def test_heads_that_have_no_place_in_8_bits_are_refused():
    model = replace(config(AttentionConfig(scale=0.3)), head_width=48)
    with pytest.raises(InvalidSettingsError, match=r"engine\.kv_cache_dtype is 'int8'.* 48 wide"):
        block_bytes(model, torch.float32, 16, "int8")


@pytest.mark.parametrize("way", WAYS)
def test_bfloat16_rows_that_attend_together_are_as_exact_as_alone(way):
    model = config(AttentionConfig(scale=0.3), AttentionConfig(scale=0.3, softcap=5.0))
    made = [Sequence(model, [40 + 10 * seed, 1], seed) for seed in range(4)]
    cache = PagedCache(
        model, num_blocks=40, block_tokens=4, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    blocks = torch.arange(40).view(10, 4).t().flatten().split([11, 13, 16])  # scattered
    made = made[:3]
    rows = [row(i, 0, 40 + 10 * i, blocks[i].tolist()) for i in range(3)]
    new = [row(i, 40 + 10 * i, 1, blocks[i].tolist()) for i in range(3)]
    native = native_for(way, model, cache)
    for step, rows_of_step in enumerate((rows, new)):
        attention = PagedAttention(model, cache, rows_of_step, native=native)
        for layer in range(2):
            packed = [torch.cat([s.qkv[x][s.cut(step)] for s in made]).bfloat16() for x in range(3)]
            expected = torch.cat([s.expected[layer][s.cut(step)] for s in made])
            ours = attention.attend(layer, *packed).float()
            torch.testing.assert_close(ours, expected, atol=3e-2, rtol=3e-2)


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    width=st.sampled_from([16, 48, 64, 80, 128]),
    lengths=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 8)), min_size=1, max_size=4),
    layer=st.builds(
        AttentionConfig,
        scale=st.sampled_from([1e-3, 0.2, 1.5]),
        softcap=st.none() | st.just(20.0),
    ),
    seed=st.integers(0, 1000),
)
def test_the_kernel_equals_float64_whatever_the_shape_and_the_company(
    dtype, kv_heads, group, width, lengths, layer, seed
):
    model = replace(
        config(layer), num_heads=kv_heads * group, num_kv_heads=kv_heads, head_width=width
    )
    cache = PagedCache(model, num_blocks=40, block_tokens=8, dtype=dtype, device=CPU)
    native = native_for("native", model, cache)
    generator = torch.Generator().manual_seed(seed)
    shape = (40 * 8, kv_heads, width)
    keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    blocks = torch.randperm(40, generator=generator).view(4, 10).tolist()
    rows = [row(i, start, count, blocks[i]) for i, (start, count) in enumerate(lengths)]
    num_queries = sum(count for _, count in lengths)
    q = torch.randn(num_queries, kv_heads * group, width, generator=generator).to(dtype)
    ours = native.share(rows, slice(0, num_queries), 8).attend(layer, q, Dense(keys, values))
    begin = 0
    for one in rows:
        tokens = slice(begin, begin + len(one.token_ids))
        begin = tokens.stop
        end = one.start + len(one.token_ids)
        places = [one.blocks[p // 8] * 8 + p % 8 for p in range(end)]
        wide = (x.double() for x in (q[tokens], keys[places], values[places]))
        expected = mixed_values(layer, *wide, num_before=one.start)
        rtol, atol = (1e-4, 1e-4) if dtype == torch.float32 else (0.02, 0.01)
        torch.testing.assert_close(ours[tokens].double(), expected, rtol=rtol, atol=atol)
        alone = native.share([one], slice(0, len(one.token_ids)), 8)
        assert torch.equal(alone.attend(layer, q[tokens], Dense(keys, values)), ours[tokens])


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_come_out_as_such(bad):
    layer = AttentionConfig(scale=0.2)
    model = config(layer)
    cache = PagedCache(model, num_blocks=2, block_tokens=8, dtype=torch.float32, device=CPU)
    native = native_for("native", model, cache)
    keys = torch.ones(16, KV_HEADS, WIDTH)
    values = torch.ones(16, KV_HEADS, WIDTH)
    keys[3] = bad
    q = torch.ones(1, HEADS, WIDTH)
    share = native.share([row(0, 9, 1, [0, 1])], slice(0, 1), 8)
    assert torch.isnan(share.attend(layer, q, Dense(keys, values))).all()


def test_widths_that_the_kernel_does_not_take_are_left_to_torch():
    model = replace(config(AttentionConfig(scale=0.3)), head_width=24)
    cache = PagedCache(model, num_blocks=2, block_tokens=8, dtype=torch.float32, device=CPU)
    assert NativeAttention.open(model, cache) is None
    halves = PagedCache(
        config(AttentionConfig(scale=0.3)),
        num_blocks=2,
        block_tokens=8,
        dtype=torch.float16,
        device=CPU,
    )
    assert NativeAttention.open(config(AttentionConfig(scale=0.3)), halves) is None
