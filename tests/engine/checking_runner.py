"""A runner that computes in plain Python and checks that what it is told makes sense.

Its KV memory holds, for each position, everything that shaped it: version, salt and all
tokens up to there. A row that would read anything else than its own beginning fails at once.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from hyprstream.engine.plan import Plan, Row, Sampled, SequenceId
from hyprstream.engine.request import FinishReason, Request, TokenEvent, TokenLogprobs
from hyprstream.refs import VersionId

END = 0
_VOCAB_SIZE = 5

Place = tuple[int, int]
Content = tuple[VersionId | None, str, tuple[int, ...]]


def next_token(request: Request, index: int, token_ids: Sequence[int]) -> int:
    """The fake model. With an even seed its answers go round in circles, so drafts come true."""
    seed = (request.params.seed or 0) + index
    context = tuple(token_ids[-2:] if seed % 2 == 0 else token_ids)
    token = zlib.crc32(repr((request.adapter, seed, context)).encode()) % _VOCAB_SIZE
    return token or (1 if request.params.ignore_eos else END)


def finish_of(request: Request, token: int, num_generated: int, room: float) -> FinishReason | None:
    if token == END:
        return "stop"
    return "length" if num_generated == request.params.max_tokens or room <= 0 else None


def answer_alone(request: Request, index: int, longest: int) -> list[TokenEvent]:
    """What the fake model answers when it has nothing else to do."""
    token_ids = list(request.token_ids)
    events: list[TokenEvent] = []
    while not events or events[-1].finish is None:
        token_ids.append(next_token(request, index, token_ids))
        finish = finish_of(request, token_ids[-1], len(events) + 1, longest - len(token_ids))
        events.append(TokenEvent(token_id=token_ids[-1], finish=finish))
    return events


def scores_alone(request: Request) -> list[TokenLogprobs]:
    """What the fake model reports on a prompt."""
    prompt = request.token_ids
    return [
        TokenLogprobs(chosen=-float(hash(prompt[: i + 1])), top=()) for i in range(1, len(prompt))
    ]


@dataclass
class CheckingRunner:
    """The `Runner` of the scheduler's tests."""

    block_tokens: int
    max_batch_tokens: int = 2048
    num_slots: int = 8
    context_length: float = math.inf
    plans: list[Plan] = field(default_factory=list)
    requests: dict[SequenceId, Request] = field(default_factory=dict)
    token_ids: dict[SequenceId, list[int]] = field(default_factory=dict)
    bank: dict[int, VersionId | None] = field(default_factory=lambda: {0: None})
    memory: dict[Place, Content] = field(default_factory=dict)

    def run(self, plan: Plan) -> Mapping[SequenceId, Sampled]:
        self.plans.append(plan)
        for sequence_id in plan.ended:
            del self.requests[sequence_id]
            del self.token_ids[sequence_id]
        for load in plan.loads:
            assert 1 <= load.slot <= self.num_slots
            assert load.version not in self.bank.values(), "it is in another slot"
            self.bank[load.slot] = load.version
        for start in plan.starts:
            assert start.sequence_id not in self.requests, "it has started before"
            self.requests[start.sequence_id] = start.request
            self.token_ids[start.sequence_id] = list(start.request.token_ids)
        assert plan.num_tokens <= self.max_batch_tokens
        assert len({row.sequence_id for row in plan.rows}) == len(plan.rows)
        for row in plan.rows:
            self._check(row)
        written = [place for row in plan.rows for place in self._write(row)]
        assert len(set(written)) == len(written), "two rows write the same place"
        return {row.sequence_id: self._answer(row) for row in plan.rows}

    def _check(self, row: Row) -> None:
        request, known = self.requests[row.sequence_id], self.token_ids[row.sequence_id]
        end = row.start + len(row.token_ids) - row.num_drafts
        assert row.start < end <= len(known)
        assert list(row.token_ids[: end - row.start]) == known[row.start : end]
        assert row.num_drafts == 0 or row.samples
        if not request.embeds:
            answer = request.params.max_tokens or math.inf
            longest = min(self.context_length, len(request.token_ids) + answer)
            assert end + row.num_drafts < longest, "the last token need not be computed"
        assert row.samples == (end == len(known) and not request.embeds)
        assert self.bank[row.slot] == request.adapter, "another adapter is in the slot"
        assert len(set(row.blocks)) == len(row.blocks)
        for position in range(row.start):
            content = (request.adapter, request.salt, tuple(known[: position + 1]))
            assert self.memory.get(self._place(row, position)) == content

    def _place(self, row: Row, position: int) -> Place:
        return row.blocks[position // self.block_tokens], position % self.block_tokens

    def _write(self, row: Row) -> list[Place]:
        request = self.requests[row.sequence_id]
        known = [*self.token_ids[row.sequence_id][: row.start], *row.token_ids]
        places = [self._place(row, position) for position in range(row.start, len(known))]
        for position, place in enumerate(places, start=row.start):
            content = (request.adapter, request.salt, tuple(known[: position + 1]))
            self.memory[place] = content
        return places

    def _answer(self, row: Row) -> Sampled:
        request, index = self.requests[row.sequence_id], row.sequence_id.answer
        end = row.start + len(row.token_ids)
        if request.embeds:
            is_last = end == len(request.token_ids)
            return Sampled(embedding=(float(sum(request.token_ids)),) if is_last else None)
        scores: tuple[TokenLogprobs, ...] = ()
        if request.prompt_logprobs is not None:
            scores = tuple(scores_alone(request)[row.start : end])
        return Sampled(
            events=tuple(self._choose(row, request, index)) if row.samples else (),
            prompt_logprobs=scores,
        )

    def _choose(self, row: Row, request: Request, index: int) -> list[TokenEvent]:
        known = self.token_ids[row.sequence_id]
        drafts = row.token_ids[len(row.token_ids) - row.num_drafts :]
        events: list[TokenEvent] = []
        for draft in (*drafts, None):
            token = next_token(request, index, known)
            known.append(token)
            num_generated = len(known) - len(request.token_ids)
            finish = finish_of(request, token, num_generated, self.context_length - len(known))
            events.append(TokenEvent(token_id=token, finish=finish))
            if finish is not None or token != draft:
                break
        return events
