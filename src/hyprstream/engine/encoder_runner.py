"""Compute plans of an encoder: whole texts, packed into one pass, one vector for each.

An encoder reads a text in both directions: it cannot be cut, there is nothing to cache and
no next token. Runs on the engine thread.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.engine.answer import checked_vector
from hyprstream.engine.plan import Plan, Sampled, SequenceId
from hyprstream.engine.request import Request, check_tokens
from hyprstream.errors import NonFiniteEmbeddingError, UnsupportedError
from hyprstream.models.attention import PackedAttention
from hyprstream.models.encoder import Encoder
from hyprstream.models.forward import ForwardBatch
from hyprstream.models.pooling import pool


class EncoderRunner:
    """The `Runner` of an encoder. Each row of a plan is a whole text, without an adapter.

    Pools as the request says, or else as the model was made for; `mean` where neither does.
    Keeps nothing between steps.
    """

    def __init__(self, model: Encoder) -> None:
        self._model = model

    def check(self, request: Request) -> None:
        """Refuse a request that could not be started. May run on any thread.

        Raises:
            InvalidRequestError: The text has a token that the model does not have.
            UnsupportedError: It asks for an answer, or names an adapter.
        """
        check_tokens(request, self._model.config.vocab_size)
        if not request.embeds:
            raise UnsupportedError(
                "this model embeds texts and writes none", hint="Load a model that generates."
            )
        if request.adapter is not None:
            raise UnsupportedError(
                f"the request names adapter {request.adapter!r}, encoders take none",
                hint="Leave the adapter out, or embed with a model that generates.",
            )

    @torch.inference_mode()
    def run(self, plan: Plan) -> dict[SequenceId, Sampled]:
        """Compute one step and answer for each of its rows."""
        if not plan.rows:
            return {}
        config, device = self._model.config, self._model.device
        assert all(row.start == 0 and row.slot == 0 for row in plan.rows), "a text was cut"
        lengths = [len(row.token_ids) for row in plan.rows]
        token_ids = [token for row in plan.rows for token in row.token_ids]
        positions = [position for length in lengths for position in range(length)]
        batch = ForwardBatch(
            token_ids=torch.tensor(token_ids, device=device),
            positions=torch.tensor(positions, device=device),
            attention=PackedAttention(config.attention, lengths, causal=False),
        )
        asked = {start.sequence_id: start.request.pooling for start in plan.starts}
        sampled = {}
        texts = self._model.forward(batch).split(lengths)
        for row, hidden in zip(plan.rows, texts, strict=True):
            pooling = asked.get(row.sequence_id) or config.pooling or "mean"
            vectors = pool(hidden, [len(hidden)], pooling, normalize=config.normalize)
            sampled[row.sequence_id] = _sampled(vectors)
        return sampled


def _sampled(vectors: Float[Tensor, "1 C"]) -> Sampled:
    try:
        return Sampled(embedding=checked_vector(vectors[0]))
    except NonFiniteEmbeddingError as error:
        return Sampled(error=error)
