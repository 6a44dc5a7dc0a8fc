"""Attention over whole packed sequences, without a cache: the reference, and for training.

A step packs sequences end to end; no token sees another sequence. `mixed_values` is the
arithmetic that every implementation of `Attention` shares.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from hyprstream.models import native
from hyprstream.models.attention_steps import attended
from hyprstream.models.config import AttentionConfig


class PackedAttention:
    """Attends within each sequence of a packed step.

    Args:
        layers: How each layer attends.
        lengths: Tokens of each sequence of the step, in packing order.
        causal: A token sees only what comes before it, within the layer's window, and
            itself; otherwise its whole sequence, as in encoders.
    """

    def __init__(
        self, layers: Sequence[AttentionConfig], lengths: Sequence[int], *, causal: bool = True
    ) -> None:
        self._layers = tuple(layers)
        self._lengths = list(lengths)
        self._causal = causal

    def attend(
        self,
        layer: int,
        q: Float[Tensor, "T H D"],
        k: Float[Tensor, "T K D"],
        v: Float[Tensor, "T K D"],
    ) -> Float[Tensor, "T H D"]:
        """Attend sequence by sequence."""
        config = self._layers[layer]
        wants_gradient = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
        if self._causal and q.is_cpu and wants_gradient:
            return attended(config, self._lengths, q, k, v)
        sequences = zip(*(x.split(self._lengths) for x in (q, k, v)), strict=True)
        mixed = [
            mixed_values(config, *qkv, num_before=0 if self._causal else None) for qkv in sequences
        ]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def mixed_values(
    config: AttentionConfig,
    q: Float[Tensor, "Q H D"],
    k: Float[Tensor, "L K D"],
    v: Float[Tensor, "L K D"],
    *,
    num_before: int | None,
) -> Float[Tensor, "Q H D"]:
    """Mix the values of one sequence for its last queries.

    Args:
        config: Scale, window and soft cap of the layer.
        q: Queries of the positions `num_before` to `num_before` + Q.
        k: Keys of all positions so far (L = `num_before` + Q).
        v: Values of the same positions.
        num_before: Positions before the first query; None lets every query see all keys.
    """
    if num_before is None:
        return _sdpa(config, q, k, v, mask=None, causal=False)
    mixed = native.attend(config, q, k, v, num_before)
    if mixed is not None:
        return mixed
    num_queries, window = q.shape[0], config.window
    if window is not None:
        unseen = num_before - window + 1
        if unseen > 0:  # keys that no query of this call can see are not read at all
            k, v, num_before = k[unseen:], v[unseen:], window - 1
    if num_queries == 1:
        return _sdpa(config, q, k, v, mask=None, causal=False)
    if num_before == 0 and (window is None or num_queries <= window):
        return _sdpa(config, q, k, v, mask=None, causal=True)
    mask = causal_mask(num_queries, num_before, window, q.device)
    return _sdpa(config, q, k, v, mask=mask, causal=False)


def causal_mask(
    num_queries: int, num_before: int, window: int | None, device: torch.device
) -> Bool[Tensor, "Q L"]:
    """Tell which key positions each query sees: none after it, none beyond its window."""
    queries = torch.arange(num_before, num_before + num_queries, device=device)[:, None]
    keys = torch.arange(num_before + num_queries, device=device)
    seen = keys <= queries
    return seen if window is None else seen & (keys > queries - window)


def _sdpa(
    config: AttentionConfig,
    q: Float[Tensor, "Q H D"],
    k: Float[Tensor, "L K D"],
    v: Float[Tensor, "L K D"],
    *,
    mask: Bool[Tensor, "Q L"] | None,
    causal: bool,
) -> Float[Tensor, "Q H D"]:
    queries, keys, values = (x.transpose(0, 1)[None] for x in (q, k, v))  # 1 H Q D
    if config.softcap is not None:
        return _soft_capped(config, queries, keys, values, mask, causal=causal)
    mixed = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        is_causal=causal,
        scale=config.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    return mixed[0].transpose(0, 1)


def _soft_capped(
    config: AttentionConfig,
    q: Float[Tensor, "1 H Q D"],
    k: Float[Tensor, "1 K L D"],
    v: Float[Tensor, "1 K L D"],
    mask: Bool[Tensor, "Q L"] | None,
    *,
    causal: bool,
) -> Float[Tensor, "Q H D"]:
    """Gemma 2: scores pass through cap * tanh(score / cap) before the mask and softmax."""
    assert config.softcap is not None
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)) * config.scale
    scores = torch.tanh(scores / config.softcap) * config.softcap
    if causal:
        mask = causal_mask(q.shape[2], 0, None, q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    mixed = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
    return mixed[0].transpose(0, 1)
