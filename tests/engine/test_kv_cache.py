"""The cache of one sequence: pieces of any length give what the whole gives."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.engine.kv_cache import SequenceCache
from hyprstream.models.attention import PackedAttention
from hyprstream.models.config import AttentionConfig, ModelConfig


def config(window: int | None, softcap: float | None) -> ModelConfig:
    return ModelConfig(
        architecture="test",
        vocab_size=1,
        width=8,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_width=8,
        mlp_width=8,
        context_length=600,
        norm_eps=1e-5,
        attention=(AttentionConfig(scale=0.3, window=window, softcap=softcap),),
    )


@given(
    pieces=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    window=st.none() | st.integers(1, 60),
    softcap=st.none() | st.just(5.0),
)
@settings(max_examples=60, deadline=None)
def test_pieces_of_any_length_give_what_the_whole_gives(pieces, window, softcap):
    model = config(window, softcap)
    generator = torch.Generator().manual_seed(sum(pieces))
    total = sum(pieces)
    q = torch.randn(total, 4, 8, generator=generator)
    k = torch.randn(total, 2, 8, generator=generator)
    v = torch.randn(total, 2, 8, generator=generator)
    whole = PackedAttention(model.attention, [total]).attend(0, q, k, v)
    cache = SequenceCache(model, torch.float32, torch.device("cpu"))
    parts = []
    for q_piece, k_piece, v_piece in zip(*(x.split(pieces) for x in (q, k, v)), strict=True):
        parts.append(cache.attend(0, q_piece, k_piece, v_piece))
        cache.advance(len(q_piece))
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=1e-5)


def test_memory_grows_with_the_sequence_and_not_with_the_context():
    cache = SequenceCache(config(None, None), torch.float32, torch.device("cpu"))
    at_start = cache.size_bytes
    heads = torch.randn(300, 4, 8), torch.randn(300, 2, 8), torch.randn(300, 2, 8)
    cache.attend(0, *heads)
    cache.advance(300)
    assert at_start == 2 * 256 * 2 * 8 * 4
    assert cache.size_bytes == 2 * at_start


def test_memory_stops_at_the_context():
    cache = SequenceCache(config(None, None), torch.float32, torch.device("cpu"))
    for _ in range(6):
        cache.attend(0, torch.randn(100, 4, 8), torch.randn(100, 2, 8), torch.randn(100, 2, 8))
        cache.advance(100)
    assert cache.length == 600
    assert cache.size_bytes == 2 * 600 * 2 * 8 * 4


def brute_force(config: AttentionConfig, q, k, v):
    """One query at a time, in float64, from the definition."""
    groups = q.shape[1] // k.shape[1]
    rows = []
    for i in range(len(q)):
        first = 0 if config.window is None else max(0, i - config.window + 1)
        heads = []
        for h in range(q.shape[1]):
            keys = k[first : i + 1, h // groups].double()
            scores = keys @ q[i, h].double() * config.scale
            if config.softcap is not None:
                scores = config.softcap * torch.tanh(scores / config.softcap)
            heads.append(scores.softmax(0) @ v[first : i + 1, h // groups].double())
        rows.append(torch.stack(heads))
    return torch.stack(rows).float()


@given(
    length=st.integers(1, 30),
    window=st.none() | st.integers(1, 40),
    softcap=st.none() | st.just(5.0),
)
@settings(max_examples=30, deadline=None)
def test_attention_is_its_definition(length, window, softcap):
    layer = AttentionConfig(scale=0.3, window=window, softcap=softcap)
    generator = torch.Generator().manual_seed(length)
    q = torch.randn(length, 4, 8, generator=generator)
    k = torch.randn(length, 2, 8, generator=generator)
    v = torch.randn(length, 2, 8, generator=generator)
    ours = PackedAttention((layer,), [length]).attend(0, q, k, v)
    torch.testing.assert_close(ours, brute_force(layer, q, k, v), atol=1e-5, rtol=1e-5)
