"""Attention as one step of autograd has the values and gradients of whole score matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hyprstream.models import attention_steps
from hyprstream.models.attention_steps import attended
from hyprstream.models.config import AttentionConfig


def by_matrices(config: AttentionConfig, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return the same for one sequence, in the order of the definition."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * config.scale
    if config.softcap is not None:
        scores = (scores / config.softcap).tanh() * config.softcap
    place = torch.arange(len(q))
    seen = place <= place[:, None]
    if config.window is not None:
        seen &= place > place[:, None] - config.window
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (3, 1), (4, 2)]),
    window=st.sampled_from([None, 1, 5, 100]),
    softcap=st.sampled_from([None, 2.0]),
    is_cut=st.booleans(),
    seed=st.integers(0, 999),
)
def test_values_and_gradients(
    lengths: list[int],
    heads: tuple[int, int],
    window: int | None,
    softcap: float | None,
    is_cut: bool,
    seed: int,
) -> None:
    config = AttentionConfig(scale=0.7, window=window, softcap=softcap)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(sum(lengths), n, 6, generator=generator, dtype=torch.float64).requires_grad_()
        for n in (heads[0], heads[1], heads[1])
    )
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    expected = torch.cat([by_matrices(config, *part) for part in parts])
    upstream = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        if is_cut:
            patch.setattr(attention_steps, "_BLOCK_WEIGHTS", 1)
            patch.setattr(attention_steps, "_LEAST_QUERIES", 7)
        found = attended(config, lengths, q, k, v)
        gradients = torch.autograd.grad(found, (q, k, v), upstream)
    theirs = torch.autograd.grad(expected, (q, k, v), upstream)
    for ours, other in zip((found, *gradients), (expected, *theirs), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-9, atol=1e-9)
