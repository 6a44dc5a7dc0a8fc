"""Hidden states of packed sequences to one vector each."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hyprstream.models.config import Pooling

_REDUCTIONS: Mapping[Pooling, Callable[[Tensor], Tensor]] = {
    "mean": lambda sequence: sequence.mean(dim=0),
    "cls": lambda sequence: sequence[0],
    "last": lambda sequence: sequence[-1],
}


def pool(
    hidden: Float[Tensor, "T C"],
    lengths: Sequence[int],
    pooling: Pooling,
    *,
    normalize: bool,
) -> Float[Tensor, "S C"]:
    """Reduce each sequence to one float32 vector.

    Args:
        hidden: Hidden states, sequences packed end to end.
        lengths: Tokens of each sequence.
        pooling: `mean` of its tokens, its first (`cls`), or its `last`.
        normalize: Scale each vector to unit length.
    """
    reduce = _REDUCTIONS[pooling]
    vectors = torch.stack([reduce(sequence) for sequence in hidden.float().split(list(lengths))])
    return F.normalize(vectors, dim=-1) if normalize else vectors
