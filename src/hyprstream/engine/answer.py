"""What the runner keeps of a sequence between steps, besides its keys and values.

Runs on the engine thread.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hyprstream.engine.request import Request
from hyprstream.engine.sampler import RowSampler
from hyprstream.errors import NonFiniteEmbeddingError
from hyprstream.models.config import Pooling


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A sequence that generates.

    Attributes:
        request: What it answers.
        sampler: Chooses its tokens.
        num_top: Report so many most likely tokens for each prompt position; None reports none.
    """

    request: Request
    sampler: RowSampler
    num_top: int | None


class Embedding:
    """A sequence that becomes one vector: pools its hidden states row by row, in float32.

    Positions that come again, because the sequence was preempted, count once.
    """

    def __init__(self, request: Request, pooling: Pooling, *, normalize: bool) -> None:
        self._request = request
        self._pooling = pooling
        self._normalize = normalize
        self._num_pooled = 0
        self._pooled: Float[Tensor, " C"] | None = None

    def add(self, start: int, hidden: Float[Tensor, "T C"]) -> tuple[float, ...] | None:
        """Pool the positions from `start` on; return the vector if these are the last.

        Raises:
            NonFiniteEmbeddingError: The vector holds NaN or infinity.
        """
        end = start + len(hidden)
        assert start <= self._num_pooled, f"positions {self._num_pooled} to {start} were skipped"
        if end > self._num_pooled:
            self._pool(hidden[self._num_pooled - start :].float())
            self._num_pooled = end
        if end < len(self._request.token_ids):
            return None
        assert self._pooled is not None, "a request has at least one token"
        vector = self._pooled / end if self._pooling == "mean" else self._pooled
        return checked_vector(F.normalize(vector, dim=-1) if self._normalize else vector)

    def _pool(self, hidden: Float[Tensor, "T C"]) -> None:
        if self._pooling == "last":
            self._pooled = hidden[-1]
        elif self._pooled is None:
            self._pooled = hidden[0] if self._pooling == "cls" else hidden.sum(dim=0)
        elif self._pooling == "mean":
            self._pooled = self._pooled + hidden.sum(dim=0)


def checked_vector(vector: Float[Tensor, " C"]) -> tuple[float, ...]:
    """Return a vector as numbers.

    Raises:
        NonFiniteEmbeddingError: It holds NaN or infinity.
    """
    numbers = tuple(vector.tolist())
    if not all(map(math.isfinite, numbers)):
        raise NonFiniteEmbeddingError
    return numbers
