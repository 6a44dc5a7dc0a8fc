"""Texts to vectors with a loaded model, adapter included; on the caller's thread.

How is what the files of the model say: pooling, length, limit. Where they say nothing, an
encoder takes the mean of its hidden states and a decoder its last one.
"""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hyprstream.engine.generate import SLOT
from hyprstream.errors import InvalidRequestError, NonFiniteEmbeddingError
from hyprstream.lora.bank import LoraBank
from hyprstream.models.attention import PackedAttention
from hyprstream.models.config import ModelConfig, Pooling
from hyprstream.models.decoder import Decoder
from hyprstream.models.encoder import Encoder
from hyprstream.models.forward import ForwardBatch
from hyprstream.models.pooling import pool
from hyprstream.models.tokenizer import Tokenizer

# Texts are computed in packed steps of about so many tokens: bounds memory, keeps cores busy.
_STEP_TOKENS = 4096


def embed_texts(
    network: Decoder | Encoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    bank: LoraBank | None = None,
    pooling: Pooling | None = None,
) -> NDArray[np.float32]:
    """Embed each text as one vector.

    Args:
        network: The model.
        tokenizer: Its tokenizer.
        texts: The texts; what exceeds the model's limit is cut.
        bank: Holds in slot 1 an adapter to embed with.
        pooling: None is how the model was made to.

    Returns:
        Float32, one row per text.

    Raises:
        InvalidRequestError: A text has no tokens, or a decoder was asked for the pooling `cls`:
            its first token sees nothing of the text.
        NonFiniteEmbeddingError: A vector holds something that is no number.
    """
    config = network.config
    chosen = choose_pooling(config, pooling)
    encoded = [embedding_tokens(tokenizer, config, text) for text in texts]
    vectors = np.empty((len(texts), config.width), dtype=np.float32)
    for step in _steps(encoded):
        rows = _embedded(network, [encoded[i] for i in step], chosen, bank)
        vectors[step] = rows.cpu().numpy()
    if not np.isfinite(vectors).all():
        raise NonFiniteEmbeddingError
    return vectors


def choose_pooling(config: ModelConfig, pooling: Pooling | None) -> Pooling:
    """Return how a model pools where a caller asks for `pooling`.

    Raises:
        InvalidRequestError: The pooling does not exist, or says nothing of a text.
    """
    chosen: Pooling = pooling or config.pooling or ("last" if config.causal else "mean")
    if chosen not in get_args(Pooling) or (chosen == "cls" and config.causal):
        raise InvalidRequestError(
            f"pooling {chosen!r} is not one of this model",
            hint=f"Choose {'last or mean' if config.causal else 'cls, last or mean'}.",
        )
    return chosen


def embedding_tokens(tokenizer: Tokenizer, config: ModelConfig, text: str) -> list[int]:
    """Return the tokens of a text to embed, cut to the model's limit.

    A control token that closes the text, as `[SEP]`, stays at its end when it is cut.

    Raises:
        InvalidRequestError: There are none.
    """
    token_ids = tokenizer.encode(text)
    if not token_ids:
        raise InvalidRequestError(
            f"the text {text[:40]!r} has no tokens", hint="Leave empty texts out."
        )
    limit = min(config.embedding_tokens or config.context_length, config.context_length)
    if len(token_ids) <= limit:
        return token_ids
    closed = token_ids[-1] in tokenizer.control_ids | tokenizer.eos_ids
    return [*token_ids[: limit - 1], token_ids[-1]] if closed else token_ids[:limit]


@torch.inference_mode()
def _embedded(
    network: Decoder | Encoder,
    texts: Sequence[list[int]],
    pooling: Pooling,
    bank: LoraBank | None,
) -> Float[Tensor, "S C"]:
    config, device = network.config, network.device
    lengths = [len(text) for text in texts]
    batch = ForwardBatch(
        token_ids=torch.tensor([token for text in texts for token in text], device=device),
        positions=torch.cat([torch.arange(length, device=device) for length in lengths]),
        attention=PackedAttention(config.attention, lengths, causal=config.causal),
        lora=None if bank is None else bank.view([SLOT] * sum(lengths)),
    )
    return pool(network.forward(batch), lengths, pooling, normalize=config.normalize)


def _steps(encoded: Sequence[Sequence[int]]) -> list[list[int]]:
    """Group texts into steps of bounded size, similar lengths together."""
    steps: list[list[int]] = []
    size = _STEP_TOKENS
    for i in sorted(range(len(encoded)), key=lambda i: len(encoded[i])):
        if size + len(encoded[i]) > _STEP_TOKENS:
            steps.append([])
            size = 0
        steps[-1].append(i)
        size += len(encoded[i])
    return steps
