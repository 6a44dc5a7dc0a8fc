"""Compute a plan: adapters into slots, one forward pass for all rows, then what each row wants.

All decisions are in the plan; what is kept here between steps is tensors, and for each
sequence its sampling state. Runs on the engine thread.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.engine.answer import Answer, Embedding
from hyprstream.engine.config import KvCacheDtype
from hyprstream.engine.indices import indices
from hyprstream.engine.logits import token_logprobs
from hyprstream.engine.native_attention import NativeAttention
from hyprstream.engine.paged_attention import PagedAttention
from hyprstream.engine.paged_cache import PagedCache
from hyprstream.engine.peaks import Peak, PeakFinder
from hyprstream.engine.plan import Plan, Row, Sampled, SequenceId, Start
from hyprstream.engine.request import (
    MAX_SEED,
    Grammar,
    Request,
    TokenEvent,
    TokenLogprobs,
    check_tokens,
)
from hyprstream.engine.sampler import RowSampler, TokenConstraint
from hyprstream.errors import HyprstreamError, NonFiniteLogitsError, UnsupportedError
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import ForwardBatch, LoraView
from hyprstream.refs import VersionId

# Logits held at once, whatever the vocabulary and the prompt: 32 MB in float32.
_MAX_LOGITS = 1 << 23

Weights = TypeVar("Weights")
WeightsIn = TypeVar("WeightsIn", contravariant=True)  # noqa: PLC0105

_NOTHING = Sampled()

_Scored = tuple[Row, Answer, range]
"""A row, its state, and the tokens of the step whose logits are wanted."""


@runtime_checkable
class Bank(Protocol[WeightsIn]):
    """Device memory for adapters of some kind, one in each slot: `LoraBank`."""

    def write(self, slot: int, weights: WeightsIn) -> None:
        """Copy an adapter into a slot, over what was there."""
        ...

    def view(self, slots: Sequence[int]) -> LoraView | None:
        """Return what the adapters add, given the slot of each token; slot 0 adds nothing."""
        ...


class ModelRunner(Generic[Weights]):
    """The `Runner` of a decoder.

    A request that embeds and does not say how gets the pooling that the model was made for.
    A decoder made for text gets `last`: only its last position has seen the whole of it.

    A sequence that embeds or reports on its prompt has to compute all of it: the prefix of
    another one is of no use to it.

    Invariant, checked by `test_runner_properties.py`: what comes of a sequence does not
    depend on how it is cut into rows, on its blocks, or on the other rows of its steps.
    """

    def __init__(  # noqa: PLR0913 - what a runner joins
        self,
        model: Decoder,
        bank: Bank[Weights] | None,
        *,
        num_blocks: int,
        block_tokens: int,
        eos_ids: frozenset[int],
        weights_of: Callable[[VersionId], Weights],
        constraint_of: Callable[[Grammar], TokenConstraint] | None = None,
        kv_cache_dtype: KvCacheDtype = "auto",
    ) -> None:
        """Allocate the KV blocks.

        Args:
            model: The base model.
            bank: Where adapters go; None where no plan will name one.
            num_blocks: KV blocks to allocate.
            block_tokens: Positions per block.
            eos_ids: The model's own end tokens.
            weights_of: Looks up an adapter version that a plan loads.
            constraint_of: Compiles a grammar for one answer, at no cost the second time; None
                where answers cannot follow one.
            kv_cache_dtype: How keys and values are kept.
        """
        self._model = model
        self._bank = bank
        self._eos_ids = eos_ids
        self._weights_of = weights_of
        self._constraint_of = constraint_of
        self._peaks = PeakFinder.open()
        self._sequences: dict[SequenceId, Answer | Embedding] = {}
        self._cache = PagedCache(
            model.config,
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            dtype=model.dtype,
            device=model.device,
            kind=kv_cache_dtype,
        )
        self._native = NativeAttention.open(model.config, self._cache)
        self._max_scored = max(1, _MAX_LOGITS // model.config.vocab_size)

    @property
    def cache_bytes(self) -> int:
        """Memory of the KV blocks."""
        return self._cache.size_bytes

    @property
    def num_sequences(self) -> int:
        """Sequences that something is kept for."""
        return len(self._sequences)

    def check(self, request: Request) -> object:
        """Refuse a request that could not be started. May run on any thread.

        Returns:
            What keeps the grammar from being built again, for as long as it is held.

        Raises:
            InvalidRequestError: The prompt or the parameters name a token that the model
                does not have, the parameters leave no token to choose, or the grammar is
                none that can be followed.
            UnsupportedError: There is a grammar and no compiler, or a pooling that says
                nothing of the text.
        """
        check_tokens(request, self._model.config.vocab_size)
        if not request.embeds:
            return self._sampler(request, 0)
        if request.pooling == "cls":
            raise UnsupportedError(
                "the first position of a decoder has seen none of the text",
                hint="Choose the pooling last or mean.",
            )
        return None

    @torch.inference_mode()
    def run(self, plan: Plan) -> dict[SequenceId, Sampled]:
        """Compute one step and answer for each of its rows.

        A sequence that cannot go on, for logits that are no numbers or a grammar without a
        way on, has its error in the answer; the others are not concerned.
        """
        for load in plan.loads:
            assert self._bank is not None, "an adapter to load, but no bank"
            self._bank.write(load.slot, self._weights_of(load.version))
        for sequence_id in plan.ended:
            self._sequences.pop(sequence_id, None)  # one that never ran has left nothing
        sampled: dict[SequenceId, Sampled] = {}
        for start in plan.starts:
            try:
                self._sequences[start.sequence_id] = self._state(start)
            except HyprstreamError as error:
                sampled[start.sequence_id] = Sampled(error=error)
        # Rows alike become neighbours, so that PagedAttention lets them attend together.
        rows = [row for row in plan.rows if row.sequence_id not in sampled]
        rows.sort(key=lambda row: (len(row.token_ids), row.start))
        if rows:
            sampled |= self._compute(rows)
        return sampled

    def _state(self, start: Start) -> Answer | Embedding:
        request, index = start.request, start.sequence_id.answer
        if request.embeds:
            config = self._model.config
            pooling = request.pooling or config.pooling or "last"
            return Embedding(request, pooling, normalize=config.normalize)
        # All answers have the same prompt: one of them reports on it.
        num_top = request.prompt_logprobs if index == 0 else None
        return Answer(request=request, sampler=self._sampler(request, index), num_top=num_top)

    def _sampler(self, request: Request, index: int) -> RowSampler:
        params, constraint = request.params, None
        if params.seed is not None:  # each answer has random numbers of its own
            params = replace(params, seed=(params.seed + index) % (MAX_SEED + 1))
        if params.grammar is not None and self._constraint_of is not None:
            constraint = self._constraint_of(params.grammar)
        return RowSampler(
            params,
            request.token_ids,
            self._eos_ids,
            self._model.config.vocab_size,
            constraint=constraint,
            device=self._model.device,
        )

    def _compute(self, rows: Sequence[Row]) -> dict[SequenceId, Sampled]:
        hidden = self._forward(rows)
        sampled: dict[SequenceId, Sampled] = {}
        sampling: list[_Scored] = []
        end = 0
        for row in rows:
            begin, end = end, end + len(row.token_ids)
            state = self._sequences[row.sequence_id]
            result = _NOTHING
            if isinstance(state, Embedding) or state.num_top is not None:
                result = self._whole_prompt(row, state, hidden[begin:end])
            sampled[row.sequence_id] = result
            if row.samples and result.error is None:
                assert isinstance(state, Answer), f"{row.sequence_id} embeds and samples"
                sampling.append((row, state, range(end - 1 - row.num_drafts, end)))
        for group in _bounded(sampling, self._max_scored):
            self._sample(hidden, group, sampled)
        return sampled

    def _whole_prompt(
        self, row: Row, state: Answer | Embedding, hidden: Float[Tensor, "T C"]
    ) -> Sampled:
        """Take what is wanted of every position of a row."""
        try:
            if isinstance(state, Embedding):
                return Sampled(embedding=state.add(row.start, hidden))
            return Sampled(prompt_logprobs=self._score_prompt(row, state, hidden))
        except HyprstreamError as error:
            return Sampled(error=error)

    def _forward(self, rows: Sequence[Row]) -> Float[Tensor, "T C"]:
        """Compute the hidden states of all rows, packed in this order."""
        device = self._model.device
        token_ids = [token for row in rows for token in row.token_ids]
        positions = [
            position
            for row in rows
            for position in range(row.start, row.start + len(row.token_ids))
        ]
        batch = ForwardBatch(
            token_ids=indices(token_ids, device),
            positions=indices(positions, device),
            attention=PagedAttention(self._model.config, self._cache, rows, native=self._native),
            lora=self._view([row.slot for row in rows for _ in row.token_ids]),
        )
        return self._model.forward(batch)

    def _view(self, slots: Sequence[int]) -> LoraView | None:
        if not any(slots):
            return None
        assert self._bank is not None, "a row uses an adapter, but there is no bank"
        return self._bank.view(slots)

    def _sample(
        self,
        hidden: Float[Tensor, "T C"],
        group: Sequence[_Scored],
        sampled: dict[SequenceId, Sampled],
    ) -> None:
        """Choose the next tokens of rows, and add them to what came of these."""
        scored = [i for _, _, tokens in group for i in tokens]
        slots = [row.slot for row, _, tokens in group for _ in tokens]
        if len(scored) < len(hidden):  # else it is all of them, in order
            hidden = hidden.index_select(0, indices(scored, hidden.device))
        logits, best = self._scores(hidden, self._view(slots), [s.sampler for _, s, _ in group])
        end = 0
        for row, answer, tokens in group:
            begin, end = end, end + len(tokens)
            try:
                events = self._choose(row, answer.sampler, logits, best, begin)
                scores = sampled[row.sequence_id].prompt_logprobs
                sampled[row.sequence_id] = Sampled(events, scores)
            except HyprstreamError as error:
                sampled[row.sequence_id] = Sampled(error=error)

    def _scores(
        self,
        hidden: Float[Tensor, "N C"],
        lora: LoraView | None,
        samplers: Sequence[RowSampler],
    ) -> tuple[Float[Tensor, "N V"] | None, Sequence[Peak]]:
        """Return logits, and their peaks if they matter; no logits if nothing else does."""
        takes_peaks = [sampler.takes_peak for sampler in samplers]
        if all(takes_peaks):
            best = self._model.peaks(hidden, lora)
            if best is not None:
                return None, best
        logits = self._model.logits(hidden, lora)
        return logits, self._peaks.find(logits) if any(takes_peaks) else []

    def _choose(
        self,
        row: Row,
        sampler: RowSampler,
        logits: Float[Tensor, "N V"] | None,
        best: Sequence[Peak],
        begin: int,
    ) -> tuple[TokenEvent, ...]:
        """Choose a token from each of a row's logits, for as long as the drafts are right.

        Those of the row begin at `begin`.

        Every token is chosen as it would be without drafts, so drafts cannot show in the
        answer, whether it is greedy or not.
        """
        num_known = len(row.token_ids) - row.num_drafts
        drafts = row.token_ids[num_known:]
        room = self._model.config.context_length - (row.start + num_known) - 1
        events = []
        for i in range(1 + row.num_drafts):
            # Past min_tokens a sampler begins to take peaks, where none were looked up.
            if logits is None or (best and sampler.takes_peak):
                event = sampler.take_peak(_finite(best[begin + i]), room=room - i)
            else:
                event = sampler.next(logits[begin + i], room=room - i)
            events.append(event)
            if event.finish is not None or drafts[i : i + 1] != (event.token_id,):
                break
        return tuple(events)

    def _score_prompt(
        self, row: Row, answer: Answer, hidden: Float[Tensor, "T C"]
    ) -> tuple[TokenLogprobs, ...]:
        """Report on the prompt tokens that follow the positions of a row."""
        # The last position of the prompt is followed by the answer, and not reported on.
        successors = answer.request.token_ids[row.start + 1 : row.start + 1 + len(hidden)]
        if answer.num_top is None or not successors:
            return ()
        scores: list[TokenLogprobs] = []
        for part in hidden[: len(successors)].split(self._max_scored):
            logits = self._model.logits(part, self._view([row.slot] * len(part)))
            for peak in self._peaks.find(logits):
                _finite(peak)
            tokens = successors[len(scores) : len(scores) + len(part)]
            scores += [
                token_logprobs(scored, token, answer.num_top)
                for scored, token in zip(logits, tokens, strict=True)
            ]
        return tuple(scores)


def _finite(peak: Peak) -> int:
    """Return the token of a peak.

    Raises:
        NonFiniteLogitsError: The row holds NaN or infinity.
    """
    value, token_id = peak
    if not math.isfinite(value):
        raise NonFiniteLogitsError(value)
    return token_id


def _bounded(scored: Sequence[_Scored], limit: int) -> Iterator[list[_Scored]]:
    """Divide into groups of at most `limit` hidden states, or of one row."""
    group: list[_Scored] = []
    size = 0
    for one in scored:
        if group and size + len(one[2]) > limit:
            yield group
            group, size = [], 0
        group.append(one)
        size += len(one[2])
    if group:
        yield group
