"""Keys and values in 8 bits: what codes mean, how they lie, and what the kernel makes of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.engine import eight_bits
from hyprstream.engine.kept import EightBits, Layout
from hyprstream.kernels.native import open_kernels
from hyprstream.models import native
from hyprstream.models.attention import mixed_values
from hyprstream.models.config import AttentionConfig

CPU = torch.device("cpu")
PLACES = 96
needs_kernels = pytest.mark.skipif(open_kernels() is None, reason="no kernels were compiled")
dtypes = st.sampled_from([torch.float32, torch.bfloat16])


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers of very different sizes, from group to group."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randn(*shape[:-1], shape[-1] // 32, 1, generator=generator).mul(3).exp()
    numbers = torch.randn(shape, generator=generator).unflatten(-1, (-1, 32)) * sizes
    return numbers.flatten(-2).to(dtype)


def memory(seed: int, kv_heads: int, width: int, dtype: torch.dtype) -> EightBits:
    """Places that hold any bytes."""
    layout = Layout((kv_heads, width), "int8", dtype)
    generator = torch.Generator().manual_seed(seed)
    parts = (layout.allocate(num_places=PLACES, device=CPU) for _ in range(2))
    keys, values = (part.random_(0, 256, generator=generator) for part in parts)
    kept = layout.kept(keys, values)
    assert isinstance(kept, EightBits)
    return kept


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), dtype=dtypes)
def test_a_number_is_off_by_half_a_step_at_most_and_steps_are_as_small_as_can_be(seed, dtype):
    x = random(seed, 5, 64, dtype=dtype).float()
    codes, scales = eight_bits.quantised(x)
    assert codes.abs().max() <= 127
    assert torch.equal(codes, codes.round())
    steps = scales.float().repeat_interleave(32, dim=-1)
    most = x.unflatten(-1, (-1, 32)).abs().amax(-1)
    assert (scales.float() >= most / 127 * (1 - 1e-6)).all()
    assert (scales.float() <= most / 127 * (1 + 2**-7)).all()
    read = eight_bits.dequantised(codes, scales, torch.float32)
    assert ((read - x).abs() <= steps * 0.5001).all()
    assert torch.equal(read.bfloat16(), eight_bits.dequantised(codes, scales, torch.bfloat16))


@needs_kernels
@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    dtype=dtypes,
    kv_heads=st.integers(1, 3),
    width=st.sampled_from([32, 64, 96, 128]),
    places=st.lists(st.integers(0, PLACES - 1), min_size=1, max_size=12, unique=True),
    odd=st.sampled_from([0.0, 1e-38, -3e38, float("inf"), float("nan")]),
)
def test_the_kernel_writes_the_bytes_of_the_reference_and_no_others(
    seed, dtype, kv_heads, width, places, odd
):
    k, v = (random(seed + i, len(places), kv_heads, width, dtype=dtype) for i in range(2))
    k[0, 0, 3], v[-1, -1, 5] = odd, odd
    v[0, 0, :32] = odd
    ours, theirs = (memory(seed, kv_heads, width, dtype) for _ in range(2))
    at = torch.tensor(places)
    assert native.keep_codes(at, k, v, ours.keys, ours.values)
    eight_bits.write_keys(eight_bits.key_parts(theirs.keys, width), at, k)
    eight_bits.write_values(eight_bits.value_parts(theirs.values, width), at, v)
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.values, theirs.values)
    for read, written in zip(ours.stretch(slice(0, PLACES)), (k, v), strict=True):
        wanted = eight_bits.dequantised(*eight_bits.quantised(written), dtype)
        assert torch.equal(read[at].nan_to_num(7.0), wanted.nan_to_num(7.0))


@needs_kernels
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    dtype=dtypes,
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 9),
    width=st.sampled_from([32, 64, 96, 128]),
    cut=st.tuples(st.integers(0, PLACES - 8), st.integers(1, 8)),
    layer=st.builds(
        AttentionConfig,
        scale=st.just(0.1),
        window=st.none() | st.integers(1, 60),
        softcap=st.none() | st.just(20.0),
    ),
)
def test_the_kernel_is_near_float64_and_the_same_with_any_instructions(
    seed, dtype, kv_heads, group, width, cut, layer
):
    kernels = native.kernels()
    assert kernels is not None
    num_before, num_queries = cut
    kept = memory(seed, kv_heads, width, dtype)
    end = num_before + num_queries
    generator = torch.Generator().manual_seed(seed)
    k, v = (torch.randn(end, kv_heads, width, generator=generator).to(dtype) for _ in range(2))
    q = torch.randn(num_queries, kv_heads * group, width, generator=generator).to(dtype)
    kept.write(torch.arange(end), k, v)
    usual, found = kernels.instructions, []
    try:
        for instructions in kernels.available:
            kernels.instructions = instructions
            mixed = native.attend_codes(layer, q, kept.keys, kept.values, num_before)
            assert mixed is not None
            found.append(mixed)
    finally:
        kernels.instructions = usual
    assert all(torch.equal(mixed, found[0]) for mixed in found)
    alone = native.attend_codes(layer, q[-1:], kept.keys, kept.values, end - 1)
    assert alone is not None
    assert torch.equal(alone, found[0][-1:])
    read = (x.double() for x in kept.stretch(slice(0, end)))
    expected = mixed_values(layer, q.double(), *read, num_before=num_before)
    error = found[0].double() - expected
    # Of shares one 510th of the largest, times as many as have one scale; of scores as many
    # 127ths of queries; of results in bfloat16 one 256th. Values are about 1.
    assert error.abs().max() <= 0.12
    assert error.square().mean().sqrt() <= 0.02


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["query", "key", "value"])
def test_numbers_that_are_none_come_out_as_such(part, bad):
    layer = AttentionConfig(scale=0.2)
    kept = memory(0, 2, 32, torch.float32)
    q, k, v = torch.ones(1, 4, 32), torch.ones(40, 2, 32), torch.ones(40, 2, 32)
    {"query": q[0], "key": k[7], "value": v[7]}[part][:2, 3] = bad
    kept.write(torch.arange(40), k, v)
    mixed = native.attend_codes(layer, q, kept.keys, kept.values, 39)
    assert mixed is not None
    assert torch.isnan(mixed[:, :2]).all()


def test_torch_computes_without_the_kernels():
    layout = Layout((2, 32), "int8", torch.float16)
    kept = layout.kept(*(layout.allocate(num_places=32, device=CPU) for _ in range(2)))
    k, v = (random(i, 20, 2, 32).clamp(-100, 100).half() for i in range(2))
    kept.write(torch.arange(5, 25), k, v)
    for read, written in zip(kept.stretch(slice(5, 25)), (k, v), strict=True):
        steps = eight_bits.quantised(written)[1].float().repeat_interleave(32, dim=-1)
        assert ((read - written).float().abs() <= steps * 0.51 + written.float().abs() / 512).all()
