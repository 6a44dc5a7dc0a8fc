"""What one step computes and what comes of it: the data between decisions and arithmetic.

The scheduler writes a `Plan`, the runner computes it and answers with `Sampled`. Plain data,
no torch. What a step makes for each sequence is a tuple: of all that cannot be
changed, Python makes these fastest.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from hyprstream.engine.request import Request, TokenEvent, TokenLogprobs
from hyprstream.errors import HyprstreamError
from hyprstream.refs import RequestId, VersionId


class SequenceId(NamedTuple):
    """One answer of a request. A tuple, since it is a key of every dictionary of a step.

    Attributes:
        request_id: The request.
        answer: Which of its answers; 0 where it wants one.
    """

    request_id: RequestId
    answer: int = 0


class Row(NamedTuple):
    """One sequence's share of a step.

    Attributes:
        sequence_id: The sequence.
        token_ids: Tokens to compute, in order; the last `num_drafts` are guesses.
        start: Position of the first of them.
        blocks: KV blocks of the sequence from its beginning; they hold `start` and on.
        slot: Row of the LoraBank to add; 0 adds nothing.
        samples: The row reaches the end of what is known, so the next token is chosen.
        num_drafts: How many of the tokens the model has not chosen yet.
    """

    sequence_id: SequenceId
    token_ids: tuple[int, ...]
    start: int
    blocks: tuple[int, ...]
    slot: int
    samples: bool
    num_drafts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotLoad:
    """An adapter version to copy into a slot before the step."""

    version: VersionId
    slot: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A sequence that the runner meets for the first time."""

    sequence_id: SequenceId
    request: Request


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one step computes.

    Attributes:
        rows: The sequences that take part, in any order; a sequence at most once. There may
            be none, in a plan that only says what ended.
        loads: Adapters to copy into slots first.
        starts: Sequences that take part for the first time.
        ended: Sequences that are over; whatever is kept for them is let go, before `starts`:
            a sequence that starts may have the name of one that ended.
    """

    rows: tuple[Row, ...]
    loads: tuple[SlotLoad, ...] = ()
    starts: tuple[Start, ...] = ()
    ended: tuple[SequenceId, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(len(row.token_ids) for row in self.rows)


class Sampled(NamedTuple):
    """What came of one row.

    Attributes:
        events: The tokens that were chosen: one, or one more than the drafts that were
            right; none for a row that does not sample. Only the last may have a `finish`.
        prompt_logprobs: For the prompt tokens of the row, where the request wants them: the
            log probabilities of each token given those before it. The first token of a
            prompt has none and is left out.
        embedding: The pooled vector of a request that embeds, with its last row.
        error: What the sequence cannot go on after, alone; then there is nothing else.
    """

    events: tuple[TokenEvent, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    embedding: tuple[float, ...] | None = None
    error: HyprstreamError | None = None


class SequenceEvent(NamedTuple):
    """What a step means to whoever waits for a sequence.

    Attributes:
        sequence_id: The sequence.
        token: The next token of the answer.
        prompt_logprobs: The next ones of the prompt; each is reported once.
        embedding: The vector that was asked for.
        error: Why the sequence ended without what was asked for.
        is_last: Nothing more will come.
    """

    sequence_id: SequenceId
    token: TokenEvent | None = None
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    embedding: tuple[float, ...] | None = None
    error: HyprstreamError | None = None
    is_last: bool = False


@runtime_checkable
class Runner(Protocol):
    """Computes plans: `ModelRunner` in production, a few lines in tests."""

    def run(self, plan: Plan) -> Mapping[SequenceId, Sampled]:
        """Compute one step and answer for each of its rows."""
        ...
