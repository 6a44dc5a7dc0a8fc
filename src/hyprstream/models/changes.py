"""Changes between how a file stores a weight and how a model uses it.

Applied to rows while loading, so that quantised blocks need not be opened: reordering
rows moves whole rows of blocks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from hyprstream.models.config import ModelConfig

RowOrder = Callable[[ModelConfig], Int[Tensor, " O"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What to change on the way in, by the end of a parameter's path.

    Attributes:
        row_order: Which stored row becomes each row of the weight.
        added: What to add to a stored vector.
    """

    row_order: Mapping[str, RowOrder]
    added: Mapping[str, float]


NO_CHANGES = Changes(row_order={}, added={})


def _interleaved_rows(num_heads: int, head_width: int) -> Int[Tensor, " O"]:
    """Undo llama.cpp's permutation of q and k.

    Its converter stores the rows of each head as pairs (0, D/2, 1, D/2 + 1, ...), because
    ggml rotates neighbours; we rotate halves, as `config.json` models do.
    """
    rows = torch.arange(num_heads * head_width).view(num_heads, head_width // 2, 2)
    return rows.transpose(1, 2).reshape(-1)


LLAMA_GGUF_CHANGES = Changes(
    row_order={
        "self_attn.q_proj": lambda c: _interleaved_rows(c.num_heads, c.head_width),
        "self_attn.k_proj": lambda c: _interleaved_rows(c.num_kv_heads, c.head_width),
    },
    added={},
)
"""For families whose GGUF stores q and k permuted."""

GEMMA_HF_CHANGES = Changes(row_order={}, added={"norm.weight": 1.0})
"""Gemma's SafeTensors store the scale of a norm less one; its GGUF files store the scale."""
