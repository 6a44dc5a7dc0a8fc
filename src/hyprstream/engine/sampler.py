"""Choose the next token of one sequence, and say whether it is the last.

What happens to a row of logits, in this order, which is that of vLLM's V1 sampler:

 1. Log probabilities are those of the row as it came: natural base, float32.
 2. `min_tokens`: end and stop tokens get -inf until so many tokens are there. End tokens do
    so even under `ignore_eos`.
 3. The grammar: tokens with which it does not go on get -inf; end and stop tokens as well,
    unless the answer is complete or the grammar itself has them.
 4. `logit_bias` is added.
 5. `repetition_penalty`, over prompt and answer: positive logits are divided by it, negative
    ones multiplied. Then `frequency_penalty` and `presence_penalty`, over the answer alone.
 6. `temperature` below 1e-5: the most likely token, of equals the lowest id. The end.
 7. `temperature` divides.
 8. `min_p`, `top_k`, `top_p`, `typical_p`: each filters, by the probabilities that the one
    before it left. Ties at the border all stay, except in `top_p`: the lower ids do.
 9. One uniform number picks from what is left, in order of id.

An answer that is complete and cannot go on ends with its last token, whatever `min_tokens`.

Filters are defined as in transformers, whose processors the tests compare with; there,
`min_p` comes after `top_p`.

The random numbers of a sequence are its own, one for each token: which one the i-th token
gets depends on the seed alone, not on the batch, nor on the parameters.

In float32 an answer is the same, token by token, whatever else is served. In other dtypes a
prompt is rounded otherwise where it is computed in other pieces: in chunks beside other
requests, or behind a prefix that was kept (`engine.prefix_caching`). Where two tokens are all
but equally likely, the answer may then go on with the other one.
Runs on the engine thread.
"""

import math
import random
import secrets
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hyprstream.engine.logits import Candidates, draw, narrow, token_logprobs
from hyprstream.engine.request import FinishReason, SamplingParams, TokenEvent, TokenLogprobs
from hyprstream.errors import InvalidRequestError, NonFiniteLogitsError, UnsupportedError

_GREEDY_BELOW = 1e-5  # vLLM's bound, too


@runtime_checkable
class TokenConstraint(Protocol):
    """What one answer may go on with: a `GrammarConstraint`, or a few lines in tests."""

    @property
    def can_end(self) -> bool:
        """Tell whether the answer is complete as it stands."""
        ...

    @property
    def is_finished(self) -> bool:
        """Tell whether it is complete and cannot go on."""
        ...

    def forbidden(self) -> Bool[Tensor, " V"]:
        """Mark the tokens that may not come next, on the host."""
        ...

    def accept(self, token_id: int) -> None:
        """Go on by one token that is not forbidden."""
        ...


class RowSampler:
    """The sampling state of one sequence.

    Invariant, checked by `test_sampler_properties.py`: the tokens are a function of the
    parameters, the seed, the prompt and the rows of logits.

    Attributes:
        seed: The seed in use; `params.seed`, or a fresh one where that is None.
    """

    __slots__ = (
        "_bias",
        "_bias_ids",
        "_constraint",
        "_end_ids",
        "_ends",
        "_has_penalties",
        "_is_plain",
        "_masked_ids",
        "_max_tokens",
        "_min_tokens",
        "_num_generated",
        "_params",
        "_random",
        "_tally",
        "seed",
    )

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: Sequence[int],
        eos_ids: Collection[int],
        vocab_size: int,
        *,
        constraint: TokenConstraint | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Start before the first token of the answer.

        Args:
            params: How to choose.
            prompt_ids: The tokens before the answer.
            eos_ids: The model's own end tokens.
            vocab_size: Number of logits in a row.
            constraint: `params.grammar`, compiled for this sequence alone.
            device: Where the logits will be.

        Raises:
            InvalidRequestError: `params` names a token that is not in the vocabulary, or
                leaves no token to choose.
            UnsupportedError: `params` has a grammar that nobody compiled.
        """
        params.check_vocabulary(vocab_size)
        if params.grammar is not None and constraint is None:
            raise UnsupportedError(
                f"this model cannot follow a grammar, here a {params.grammar.kind}",
                hint="Ask without a grammar, or load the model with its tokenizer.",
            )
        self._constraint = constraint
        self._params = params
        self._min_tokens, self._max_tokens = params.min_tokens, params.max_tokens
        self._num_generated = 0
        # random.Random, because torch's generator on the CPU ignores all but 32 bits of a seed.
        self.seed = secrets.randbits(63) if params.seed is None else params.seed
        self._random = random.Random(self.seed)  # noqa: S311 - sampling, not cryptography

        stop_ids = frozenset(params.stop_token_ids)
        self._end_ids = stop_ids if params.ignore_eos else stop_ids | frozenset(eos_ids)
        masked = sorted(i for i in stop_ids | frozenset(eos_ids) if i < vocab_size)
        if params.min_tokens > 0 and len(masked) == vocab_size:
            raise InvalidRequestError(
                f"min_tokens is {params.min_tokens}, but every token is a stop token",
                hint="Name fewer stop_token_ids, or set min_tokens to 0.",
            )
        self._masked_ids = torch.tensor(masked, dtype=torch.long, device=device)
        ends = sorted(i for i in self._end_ids if i < vocab_size)
        self._ends = torch.tensor(ends, dtype=torch.long, device=device)

        bias = sorted(params.logit_bias.items())
        self._bias_ids = torch.tensor([i for i, _ in bias], dtype=torch.long, device=device)
        self._bias = torch.tensor([b for _, b in bias], dtype=torch.float32, device=device)

        self._has_penalties = (
            params.repetition_penalty != 1
            or params.frequency_penalty != 0
            or params.presence_penalty != 0
        )
        # Whether `takes_peak`, once there are min_tokens.
        self._is_plain = (
            params.temperature < _GREEDY_BELOW
            and params.logprobs is None
            and not (constraint is not None or params.logit_bias or self._has_penalties)
        )
        self._tally = _Tally(prompt_ids if self._has_penalties else (), device)

    @property
    def num_generated(self) -> int:
        """Number of tokens chosen so far."""
        return self._num_generated

    def next(self, logits: Float[Tensor, " V"], *, room: int) -> TokenEvent:
        """Choose the token that follows.

        Args:
            logits: The model's output at the last position; left as it is.
            room: Positions left in the context after this token.

        Raises:
            NonFiniteLogitsError: The logits hold NaN or infinity.
            InvalidRequestError: The grammar leaves no token, or takes too much work.
        """
        logits = logits.detach()
        kept = self.candidates(logits)
        token_id = int(kept.token_ids[draw(kept.scores, self._random.random())])
        num_top = self._params.logprobs
        logprobs = None if num_top is None else token_logprobs(logits, token_id, num_top)
        return self._take(token_id, logprobs, room)

    @property
    def takes_peak(self) -> bool:
        """Tell whether `next` would take the largest logit and report nothing else of the row.

        The peaks of many rows are found at once; `take_peak` then does the rest of `next`.
        """
        return self._is_plain and self._num_generated >= self._min_tokens

    def take_peak(self, token_id: int, *, room: int) -> TokenEvent:
        """Do as `next` does, for a row whose first largest logit is that of `token_id`."""
        assert self.takes_peak, "the largest logit is not all that matters here"
        return self._take(token_id, None, room)

    def candidates(self, logits: Float[Tensor, " V"]) -> Candidates:
        """Return the tokens that may come next: steps 2 to 8. Changes nothing.

        Raises:
            NonFiniteLogitsError: The logits hold NaN or infinity.
            InvalidRequestError: The grammar leaves no token, or takes too much work.
        """
        scores = self._adjust(logits)
        # max(dim=0) is several times as fast as argmax on the CPU. Of equals it takes the
        # first, NaN it takes before all: one look at the result finds every bad row.
        best = scores.max(dim=0)
        peak = float(best.values)
        if self._constraint is not None and peak == -math.inf:
            raise InvalidRequestError(
                f"the grammar leaves no token to choose after {self._num_generated} tokens",
                hint="Let it admit what this model can write, and at least min_tokens of it.",
            )
        if not math.isfinite(peak):
            raise NonFiniteLogitsError(peak)
        temperature = self._params.temperature
        if temperature < _GREEDY_BELOW:
            return Candidates(best.indices.view(1), best.values.view(1))
        # Less the peak first: dividing by a small temperature then cannot overflow upwards.
        return narrow((scores.float() - peak) / temperature, self._params)

    def _adjust(self, logits: Float[Tensor, " V"]) -> Float[Tensor, " V"]:
        """Apply steps 2 to 5; the row itself where they change nothing."""
        if not self._adjusts():
            return logits
        scores = logits.to(torch.float32, copy=True)
        if self._masks_ends():
            scores[self._masked_ids] = -math.inf
        if self._constraint is not None:
            self._constrain(scores, self._constraint)
        scores[self._bias_ids] += self._bias
        if self._has_penalties:
            self._tally.penalise(scores, self._params)
        return scores

    def _adjusts(self) -> bool:
        changes = self._constraint is not None or bool(self._params.logit_bias)
        return changes or self._has_penalties or self._masks_ends()

    def _constrain(self, scores: Float[Tensor, " V"], constraint: TokenConstraint) -> None:
        """Apply step 3 in place."""
        ends = scores[self._ends]
        scores.masked_fill_(constraint.forbidden().to(scores.device), -math.inf)
        if constraint.can_end:
            scores[self._ends] = ends

    def _masks_ends(self) -> bool:
        return self._num_generated < self._min_tokens

    def _take(self, token_id: int, logprobs: TokenLogprobs | None, room: int) -> TokenEvent:
        self._num_generated += 1
        if self._has_penalties:
            self._tally.add(token_id)
        if self._constraint is not None and token_id not in self._end_ids:
            self._constraint.accept(token_id)
        is_stop = token_id in self._end_ids
        return TokenEvent(token_id, logprobs, self._finish(room, is_stop=is_stop), is_stop)

    def _finish(self, room: int, *, is_stop: bool) -> FinishReason | None:
        if is_stop:
            return "stop"
        if self._constraint is not None and self._constraint.is_finished:
            return "stop"
        if room <= 0 or self._num_generated == self._max_tokens:
            return "length"
        return None


class _Tally:
    """Which tokens the sequence holds, and how often the answer does.

    One entry per distinct token, not per token of the vocabulary: penalties then cost next
    to nothing, however large the vocabulary is.
    """

    def __init__(self, prompt_ids: Iterable[int], device: torch.device | str) -> None:
        distinct = sorted(set(prompt_ids))
        self._entries = {token_id: entry for entry, token_id in enumerate(distinct)}
        self._token_ids = torch.tensor(distinct, dtype=torch.long, device=device)
        self._counts = torch.zeros(len(distinct), device=device)

    def add(self, token_id: int) -> None:
        """Count one token of the answer."""
        entry = self._entries.setdefault(token_id, len(self._entries))
        if entry == len(self._token_ids):
            self._token_ids = torch.cat([self._token_ids, self._token_ids.new_tensor([token_id])])
            self._counts = torch.cat([self._counts, self._counts.new_zeros(1)])
        self._counts[entry] += 1

    def penalise(self, scores: Float[Tensor, " V"], params: SamplingParams) -> None:
        """Apply the three penalties to `scores`, in place."""
        held = scores[self._token_ids]
        penalty = params.repetition_penalty
        held = torch.where(held > 0, held / penalty, held * penalty)
        held -= params.frequency_penalty * self._counts
        held -= params.presence_penalty * (self._counts > 0)
        scores[self._token_ids] = held
