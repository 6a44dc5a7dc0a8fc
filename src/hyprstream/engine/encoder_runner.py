"""Compute plans of an encoder: whole texts, packed into one pass, one vector for each.

An encoder reads a text in both directions: it cannot be cut, there is nothing to cache and
no next token. Runs on the engine thread.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.engine.answer import checked_vector
from hyprstream.engine.plan import Plan, Sampled, SequenceId
from hyprstream.errors import NonFiniteEmbeddingError
from hyprstream.models.attention import PackedAttention
from hyprstream.models.encoder import Encoder
from hyprstream.models.forward import ForwardBatch
from hyprstream.models.pooling import pool


class EncoderRunner:
    """The `Runner` of an encoder. Each row of a plan is a whole text, without an adapter.

    Pools as the model was made for; `mean` where it does not say. Keeps nothing between steps.
    """

    def __init__(self, model: Encoder) -> None:
        self._model = model

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
        vectors = pool(
            self._model.forward(batch),
            lengths,
            config.pooling or "mean",
            normalize=config.normalize,
        )
        return {
            row.sequence_id: _sampled(vector)
            for row, vector in zip(plan.rows, vectors, strict=True)
        }


def _sampled(vector: Float[Tensor, " C"]) -> Sampled:
    try:
        return Sampled(embedding=checked_vector(vector))
    except NonFiniteEmbeddingError as error:
        return Sampled(error=error)
