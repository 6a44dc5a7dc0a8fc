"""A bidirectional encoder of the BERT family: text in, one hidden state per token out."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from hyprstream.models.config import ModelConfig
from hyprstream.models.forward import ForwardBatch
from hyprstream.models.layers import Embedding, LayerNorm, Weights


@runtime_checkable
class EncoderLayer(Protocol):
    """One block of an encoder."""

    def __call__(self, x: Float[Tensor, "T C"], batch: ForwardBatch) -> Float[Tensor, "T C"]:
        """Apply attention and feed-forward parts with their residuals."""
        ...


class Encoder:
    """A text encoder whose weights are constants; `forward` changes nothing.

    Attributes:
        config: What the model is made of.
        dtype: Dtype of activations.
        device: Where weights and activations live.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        *,
        tokens: Embedding,
        positions: Embedding,
        token_type: Float[Tensor, " C"],
        norm: LayerNorm,
        layers: Sequence[EncoderLayer],
    ) -> None:
        self.config = config
        self.dtype = weights.dtype
        self.device = weights.device
        self._tokens = tokens
        self._positions = positions
        self._token_type = token_type
        self._norm = norm
        self._layers = tuple(layers)

    def forward(self, batch: ForwardBatch) -> Float[Tensor, "T C"]:
        """Compute the hidden state of every token; all tokens are of the first type."""
        x = self._tokens(batch.token_ids) + self._token_type + self._positions(batch.positions)
        x = self._norm(x)
        for layer in self._layers:
            x = layer(x, batch)
        return x
