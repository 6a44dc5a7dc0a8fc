"""Each request alone: nothing batched, cached or cut, and the adapter added the plain way."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.engine.request import FinishReason, SamplingParams
from hyprstream.engine.sampler import RowSampler
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.attention import PackedAttention
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import ForwardBatch
from tests.engine.adapters import Summed

Parts = Sequence[tuple[LoraWeights, float]]

# How far the logits of a batch may be from those of a sequence alone, in float32.
TOLERANCE = 1e-3


@torch.inference_mode()
def logits_alone(
    model: Decoder, prompt: Sequence[int], answer: Sequence[int], parts: Parts
) -> Float[Tensor, "N V"]:
    """What scores each token of an answer, computed in one piece, without any cache."""
    tokens = [*prompt, *answer[:-1]]
    lora = Summed(parts) if parts else None
    batch = ForwardBatch(
        token_ids=torch.tensor(tokens),
        positions=torch.arange(len(tokens)),
        attention=PackedAttention(model.config.attention, [len(tokens)]),
        lora=lora,
    )
    hidden = model.forward(batch)[len(prompt) - 1 :]
    return model.logits(hidden, lora)


def assert_answer(
    model: Decoder,
    prompt: Sequence[int],
    params: SamplingParams,
    answer: Sequence[int],
    *,
    parts: Parts = (),
    index: int = 0,
    is_whole: bool = True,
    eos_ids: frozenset[int] = frozenset(),
    tolerance: float = TOLERANCE,
) -> int:
    """Assert that an answer is what the request gets alone, and return its near ties.

    Each token is compared with what a sampler of the same history chooses from the logits of
    the sequence alone. Where they differ, a change of the logits below the tolerance must
    explain it; the answer is then followed as it is.
    """
    if params.seed is not None and index:
        params = replace(params, seed=params.seed + index)
    sampler = RowSampler(params, prompt, eos_ids, model.config.vocab_size)
    if not answer:
        assert not is_whole
        return 0
    scores = logits_alone(model, prompt, answer, parts)
    num_ties, finish = 0, None
    for place, (token, logits) in enumerate(zip(answer, scores, strict=True)):
        assert finish is None, f"{answer} goes on after its end"
        room = model.config.context_length - len(prompt) - place - 1
        before = copy.deepcopy(sampler)
        event = sampler.next(logits, room=room)
        finish = event.finish
        if event.token_id != token:
            explained = _explained(before, logits, token, room, tolerance)
            assert explained is not None, f"token {place} of {answer} is not {event.token_id}"
            num_ties += 1
            sampler, finish = explained
    assert not is_whole or finish is not None, f"{answer} ends too early"
    return num_ties


def _explained(
    sampler: RowSampler, logits: Float[Tensor, " V"], token: int, room: int, tolerance: float
) -> tuple[RowSampler, FinishReason | None] | None:
    """Find a change of the logits within the tolerance that gives `token`."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(64):
        noise = torch.randn(logits.shape, generator=generator).sign() * tolerance
        noise[token] = noise[token].abs()
        attempt = copy.deepcopy(sampler)
        event = attempt.next(logits + noise, room=room)
        if event.token_id == token:
            return attempt, event.finish
    return None
