"""One request from its prompt to its last token, alone on the model.

The plain loop: compute the prompt in pieces, then sample a token and compute it, until an
end. Runs on the caller's thread, one token per `next`.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.engine.kv_cache import SequenceCache
from hyprstream.engine.request import SamplingParams, TokenEvent
from hyprstream.engine.sampler import RowSampler, TokenConstraint
from hyprstream.errors import ContextTooLongError, InvalidRequestError
from hyprstream.lora.bank import LoraBank
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import ForwardBatch, LoraView

# Bounds the memory of a prompt's activations; large enough to keep the processor busy.
_CHUNK_TOKENS = 512
SLOT = 1
"""Slot of the bank that holds the adapter of an answer."""


def generate(
    decoder: Decoder,
    token_ids: Sequence[int],
    params: SamplingParams,
    *,
    eos_ids: frozenset[int] = frozenset(),
    constraint: TokenConstraint | None = None,
    bank: LoraBank | None = None,
) -> Iterator[TokenEvent]:
    """Generate tokens one at a time.

    Stop strings are text and not looked for here; closing the iterator stops the work.

    Args:
        decoder: The model.
        token_ids: The prompt.
        params: How to sample and when to stop.
        eos_ids: The model's own end tokens.
        constraint: `params.grammar`, compiled for this answer alone.
        bank: Holds in slot 1 an adapter for this answer; it must not be written to meanwhile.

    Raises:
        ContextTooLongError: The prompt leaves no room for a token.
        InvalidRequestError: The prompt is empty, or names a token outside the vocabulary.
        UnsupportedError: `params` has a grammar, and there is no constraint.
    """
    context, vocab_size = decoder.config.context_length, decoder.config.vocab_size
    if not token_ids:
        raise InvalidRequestError("the prompt is empty", hint="Give at least one token of text.")
    if len(token_ids) >= context:
        raise ContextTooLongError(num_tokens=len(token_ids), max_tokens=context - 1)
    if not all(0 <= token < vocab_size for token in token_ids):
        raise InvalidRequestError(f"the prompt has a token outside 0 to {vocab_size - 1}")
    sampler = RowSampler(params, token_ids, eos_ids, vocab_size, constraint=constraint)
    return _tokens(decoder, list(token_ids), sampler, bank)


def _tokens(
    decoder: Decoder, pending: list[int], sampler: RowSampler, bank: LoraBank | None
) -> Iterator[TokenEvent]:
    cache = SequenceCache(decoder.config, decoder.dtype, decoder.device)
    while True:
        logits = next_logits(decoder, cache, pending, bank)
        event = sampler.next(logits, room=decoder.config.context_length - cache.length - 1)
        yield event
        if event.finish is not None:
            return
        pending = [event.token_id]


@torch.inference_mode()
def next_logits(
    decoder: Decoder,
    cache: SequenceCache,
    token_ids: Sequence[int],
    bank: LoraBank | None = None,
) -> Float[Tensor, " V"]:
    """Compute new tokens, with the adapter in slot 1, and score what follows the last one."""
    hidden = None
    for start in range(0, len(token_ids), _CHUNK_TOKENS):
        piece = token_ids[start : start + _CHUNK_TOKENS]
        first = cache.length
        batch = ForwardBatch(
            token_ids=torch.tensor(piece, device=decoder.device),
            positions=torch.arange(first, first + len(piece), device=decoder.device),
            attention=cache,
            lora=_view(bank, len(piece)),
        )
        hidden = decoder.forward(batch)
        cache.advance(len(piece))
    assert hidden is not None, "there is at least one token to compute"
    return decoder.logits(hidden[-1:], _view(bank, 1))[0]


def _view(bank: LoraBank | None, num_tokens: int) -> LoraView | None:
    return None if bank is None else bank.view([SLOT] * num_tokens)
