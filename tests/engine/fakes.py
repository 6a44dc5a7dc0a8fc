"""A runner that computes in plain Python, a clock that is told, a trainer that counts."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.core import EngineCore
from hyprstream.engine.engine import Engine
from hyprstream.engine.plan import Plan, Row, Sampled, SequenceId
from hyprstream.engine.request import Request, TokenEvent
from hyprstream.engine.scheduler import Scheduler
from hyprstream.engine.versions import HostVersions
from hyprstream.refs import VersionId

Entry = tuple[int, VersionId | None]


def next_token(context: Sequence[Entry], vocab_size: int) -> int:
    """The fake model: each token follows from all before it and from what computed them."""
    return zlib.crc32(repr(list(context)).encode()) % vocab_size


def answer_alone(
    request: Request, index: int = 0, *, vocab_size: int = 5, context_length: int = 64
) -> list[int]:
    """What the fake model answers when it has nothing else to do."""
    prompt: list[Entry] = [(token, request.adapter) for token in request.token_ids]
    answer: list[Entry] = []
    room = context_length - len(prompt)
    for _ in range(min(request.params.max_tokens or room, room)):
        token = next_token([*prompt, (index, request.adapter), *answer], vocab_size)
        answer.append((token, request.adapter))
    return [token for token, _ in answer]


@dataclass
class FakeClock:
    """Time that passes when it is told to."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeRunner:
    """A `Runner` whose KV memory holds the tokens themselves and the version of each.

    Whatever the scheduler mixes up (a block of another sequence, a stale slot, a token left
    out) changes the tokens that come out.
    """

    block_tokens: int = 4
    vocab_size: int = 5
    context_length: int = 64
    on_step: Callable[[Plan], None] = lambda _plan: None
    slots: dict[int, VersionId | None] = field(default_factory=lambda: {0: None})
    memory: dict[tuple[int, int], Entry] = field(default_factory=dict)
    requests: dict[SequenceId, Request] = field(default_factory=dict)
    num_generated: dict[SequenceId, int] = field(default_factory=dict)
    num_tokens: int = 0
    num_steps: int = 0

    def run(self, plan: Plan) -> Mapping[SequenceId, Sampled]:
        self.on_step(plan)
        self.num_steps += 1
        self.num_tokens += plan.num_tokens
        for sequence_id in plan.ended:
            self.requests.pop(sequence_id, None)
            self.num_generated.pop(sequence_id, None)
        for load in plan.loads:
            self.slots[load.slot] = load.version
        for start in plan.starts:
            self.requests[start.sequence_id] = start.request
            self.num_generated[start.sequence_id] = 0
        return {row.sequence_id: self._run_row(row) for row in plan.rows}

    def _run_row(self, row: Row) -> Sampled:
        places = [
            (row.blocks[position // self.block_tokens], position % self.block_tokens)
            for position in range(row.start + len(row.token_ids))
        ]
        version = self.slots[row.slot]
        for place, token in zip(places[row.start :], row.token_ids, strict=True):
            self.memory[place] = (token, version)
        if not row.samples:
            return Sampled()
        context = [self.memory[place] for place in places]
        events: list[TokenEvent] = []
        for num_drafts in range(row.num_drafts, -1, -1):
            known = len(context) - num_drafts
            event = self._choose(row.sequence_id, context[:known])
            events.append(event)
            if event.finish or num_drafts == 0 or event.token_id != context[known][0]:
                break
        return Sampled(events=tuple(events))

    def _choose(self, sequence_id: SequenceId, context: Sequence[Entry]) -> TokenEvent:
        request = self.requests[sequence_id]
        prompt = len(request.token_ids)
        salted = [*context[:prompt], (sequence_id.answer, request.adapter), *context[prompt:]]
        token = next_token(salted, self.vocab_size)
        self.num_generated[sequence_id] += 1
        is_last = (
            self.num_generated[sequence_id] == request.params.max_tokens
            or len(context) + 1 >= self.context_length
        )
        return TokenEvent(token_id=token, finish="length" if is_last else None)


class Parts:
    """A core over a fake runner, and the parts to look into."""

    def __init__(
        self,
        config: EngineConfig | None = None,
        *,
        num_blocks: int = 64,
        clock: FakeClock | None = None,
        on_step: Callable[[Plan], None] = lambda _plan: None,
        versions: HostVersions | None = None,
        check: Callable[[Request], object] = lambda _request: None,
    ) -> None:
        self.config = EngineConfig(block_tokens=4) if config is None else config
        self.clock = FakeClock() if clock is None else clock
        self.num_blocks = num_blocks
        self.runner = FakeRunner(block_tokens=self.config.block_tokens, on_step=on_step)
        self.versions = HostVersions(1 << 20) if versions is None else versions
        self.scheduler = Scheduler(
            self.config,
            num_blocks=num_blocks,
            context_length=self.runner.context_length,
            clock=self.clock,
        )
        self.core = EngineCore(self.scheduler, self.runner, self.versions, check=check)

    def engine(self) -> Engine:
        return Engine(self.core, self.config, clock=self.clock)

    def assert_clean(self) -> None:
        """Nothing is left of any request, on any side."""
        while self.core.has_work:  # what has ended is told to the runner with the next step
            assert self.core.step() == []
        self.core.check_integrity()
        assert self.core.open_requests == []
        assert self.scheduler.num_free_blocks == self.num_blocks
        assert self.versions.num_pinned == 0
        assert self.runner.requests == {}


@dataclass
class FakeTrainer:
    """Background work that takes a fixed time per slice."""

    clock: FakeClock
    slice_s: float
    num_slices: int = 0
    limit: int | None = None
    on_slice: Callable[[int], None] = lambda _number: None

    def ready(self) -> bool:
        return self.limit is None or self.num_slices < self.limit

    def run_slice(self) -> None:
        self.num_slices += 1
        self.clock.now += self.slice_s
        self.on_slice(self.num_slices)
