"""Decide what each step computes: who takes part, with how many tokens, in which memory.

There are no phases. Every running sequence has tokens that are known and not computed: one
that answers has one, one that begins has its prompt. A step gives the former their token,
with guesses added, and shares what is left of `max_batch_tokens` among the latter.

Who goes first is a matter of rank: priority, then arrival. A sequence starts when there are
blocks for all its tokens, and a slot; one that cannot start waits while others overtake it,
up to a limit. When a running sequence needs one more block than there are, the last in rank
is preempted: it loses its blocks and computes its tokens again later.

A model that reads texts as a whole, an encoder, gets each in one step: what does not fit
any more waits for the next.

Plain Python, no tensors. Runs on the engine thread.
"""

from bisect import insort
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import chain

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.drafts import Drafter
from hyprstream.engine.memory import SequenceMemory
from hyprstream.engine.plan import Plan, Row, Sampled, SequenceEvent, SequenceId, SlotLoad, Start
from hyprstream.engine.request import Request
from hyprstream.engine.sequence import SequenceState, by_rank
from hyprstream.engine.stats import Counts, EngineStats
from hyprstream.engine.waiting import WaitingLine
from hyprstream.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    QueueFullError,
)
from hyprstream.refs import RequestId, VersionId


class Scheduler:
    """Makes plans and takes in what came of them: `schedule` and `update`, in turns.

    Requests may be added and aborted at any moment, between these two as well.

    Invariants, checked by `test_scheduler_properties.py`: every sequence gets the tokens that
    it would get alone; what a row reads has been written by a sequence with the same
    beginning; what is over holds nothing; nothing waits for ever.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        num_blocks: int,
        context_length: int,
        clock: Callable[[], float],
        cuts_prompts: bool = True,
    ) -> None:
        """Start empty.

        Args:
            config: Sizes and limits.
            num_blocks: Blocks of KV memory.
            context_length: Positions that the model knows.
            clock: What deadlines refer to.
            cuts_prompts: Compute a prompt in several steps where one has no room for it.
                Otherwise `context_length` must not be above `max_batch_tokens`.
        """
        assert cuts_prompts or context_length <= config.max_batch_tokens, "a text fits no step"
        self.counts = Counts()
        self._config = config
        self._clock = clock
        self._cuts_prompts = cuts_prompts
        self._left = 0  # tokens that the step being planned has room for
        self._memory = SequenceMemory(config, num_blocks=num_blocks, context_length=context_length)
        self._sequences: dict[RequestId, list[SequenceState]] = {}  # those that are not over
        self._waiting = WaitingLine(config.max_overtakes)
        self._running: list[SequenceState] = []  # by rank
        self._planned: list[SequenceState] = []  # one for each row of the last plan
        self._queued: set[RequestId] = set()  # requests of which nothing has started
        self._deadlines: dict[RequestId, float] = {}
        self._ended: list[SequenceId] = []  # to be told to the runner
        self._expired: list[SequenceEvent] = []  # to be told to whoever waits
        self._num_arrivals = 0

    @property
    def has_work(self) -> bool:
        """Tell whether a step would do anything, or tell anybody."""
        return bool(self._sequences or self._ended or self._expired)

    @property
    def num_waiting(self) -> int:
        """Sequences that wait, preempted ones included."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks and a slot."""
        return len(self._running)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self._memory.num_free_blocks

    def stats(self, adapter_bytes: int) -> EngineStats:
        """Tell what goes on; `adapter_bytes` is what the versions on the host take."""
        memory = self._memory
        resident = memory.resident
        wanted = {state.request.adapter for state in self._waiting} - {None}
        return EngineStats(
            num_waiting=self.num_waiting,
            num_running=self.num_running,
            num_blocks=memory.num_blocks,
            num_free_blocks=memory.num_free_blocks,
            num_slots=self._config.num_slots,
            resident=resident,
            waiting_for=frozenset(v for v in wanted if v is not None and v not in resident),
            adapter_bytes=adapter_bytes,
            counts=replace(self.counts),
        )

    def add(self, request: Request) -> None:
        """Let a request wait for its turn.

        Raises:
            ContextTooLongError: The prompt leaves no room for a token.
            InvalidRequestError: The id is in use, or there are no slots for adapters.
            QueueFullError: Too many requests wait.
            RequestTooLargeError: The KV memory is too small for it, even when empty.
        """
        # Also in use by a request that ran out of time, until somebody has been told.
        is_told = all(event.sequence_id.request_id != request.id for event in self._expired)
        if request.id in self._sequences or not is_told:
            raise InvalidRequestError(
                f"the request id {request.id!r} is in use", hint="Give each request its own id."
            )
        if request.adapter is not None and self._config.num_slots == 0:
            raise InvalidRequestError(
                f"the request names adapter {request.adapter!r}, the engine has no adapter slots",
                hint="Set engine.num_slots to 1 or more.",
            )
        max_tokens = self._memory.final_length(request)
        if len(self._queued) >= self._config.max_waiting:
            raise QueueFullError(max_waiting=self._config.max_waiting)

        # Other answers take over what the first has computed, where that fills a block.
        shares = self._config.prefix_caching and len(request.token_ids) > self._config.block_tokens
        group: list[SequenceState] = []
        for index in range(1 if request.embeds else request.num_answers):
            state = SequenceState(
                SequenceId(request.id, index),
                request,
                arrival=self._num_arrivals,
                max_tokens=max_tokens,
                overdue_at=self._waiting.overdue_at,
                drafter=Drafter(self._config.max_drafts),
                leader=group[0] if group and shares else None,
            )
            group.append(state)
            self._waiting.join(state)
        self._num_arrivals += 1
        self._sequences[request.id] = group
        self._queued.add(request.id)
        if request.deadline is not None:
            self._deadlines[request.id] = request.deadline

    def forget(self, version: VersionId) -> None:
        """Free the slot of a version that nobody will ask for again, unless it is in use."""
        self._memory.forget(version)

    def abort(self, request_id: RequestId, *, index: int | None = None) -> int:
        """End a request, or one of its answers; nothing happens if that is over already.

        Returns:
            How many answers will have no last event because of that.
        """
        num_ended = 0
        for state in tuple(self._sequences.get(request_id, ())):
            if index is None or state.id.answer == index:
                self._end(state)
                num_ended += 1
        left = [
            event
            for event in self._expired
            if event.sequence_id.request_id != request_id
            or index not in {None, event.sequence_id.answer}
        ]
        num_ended += len(self._expired) - len(left)
        self._expired = left
        return num_ended

    def schedule(self) -> Plan:
        """Decide what the next step computes.

        Returns:
            The plan. It may have no rows, and still say what ended.
        """
        self._expire()
        self._planned = []
        rows = self._next_tokens()
        starts: list[Start] = []
        loads: list[SlotLoad] = []
        self._left = self._config.max_batch_tokens - sum(len(row.token_ids) for row in rows)
        for state, num_tokens in self._share(starts, loads).items():
            rows.append(self._row(state, num_tokens))
        return Plan(
            rows=tuple(rows), loads=tuple(loads), starts=tuple(starts), ended=tuple(self._ended)
        )

    def update(self, plan: Plan, sampled: Mapping[SequenceId, Sampled]) -> list[SequenceEvent]:
        """Take in what came of the last plan.

        Returns:
            What there is to tell, in order for each sequence; nothing of those that were
            aborted meanwhile.
        """
        events, self._expired = self._expired, []
        del self._ended[: len(plan.ended)]
        for row, state in zip(plan.rows, self._planned, strict=True):
            if state.is_running:
                events += self._advance(state, row, sampled[row.sequence_id])
        return events

    def check_integrity(self) -> None:
        """Check what the class promises; for tests, after every step."""
        self._memory.check_integrity(self._running)
        for states in (self._running, list(self._waiting)):
            assert states == sorted(states, key=by_rank), "sequences are out of order"
        live = {id(state) for group in self._sequences.values() for state in group}
        assert live == {id(state) for state in (*self._running, *self._waiting)}
        assert len(live) == len(self._running) + len(self._waiting), "a sequence is in two places"
        for state in self._waiting:
            assert not state.is_running, f"{state.id} waits and does not know"
            assert not state.is_over, f"{state.id} outlived its end"
            assert state.blocks == (), f"{state.id} waits with blocks"
        for state in self._running:
            assert state.is_running, f"{state.id} runs and does not know"
            assert not state.is_over, f"{state.id} outlived its end"
            assert state.num_pending > 0, f"{state.id} has nothing to do"
        assert self._queued | self._deadlines.keys() <= self._sequences.keys()
        assert len(self._queued) <= self._config.max_waiting, "too many requests wait"
        assert len(self._running) <= self._config.max_sequences, "too many sequences run"

    def _expire(self) -> None:
        if not self._deadlines:
            return
        now = self._clock()
        for request_id in [name for name, time in self._deadlines.items() if time <= now]:
            for state in tuple(self._sequences[request_id]):
                error = DeadlineExceededError(
                    f"request {request_id!r} did not end before its deadline",
                    hint="Allow it more time, or try again when less is going on.",
                )
                self._expired.append(SequenceEvent(sequence_id=state.id, error=error, is_last=True))
                self._end(state)

    def _next_tokens(self) -> list[Row]:
        """Give each sequence with one pending token that token, and some guesses."""
        rows = []
        # At most half of what is left goes into guesses: prompts have to get on, too.
        num_spare = (self._config.max_batch_tokens - len(self._running)) // 2
        guesses = self._config.max_drafts > 0
        # By rank: whatever is preempted on the way comes later and has no row yet.
        for state in tuple(self._running):
            if not state.is_running or state.num_pending > 1 or not self._grow(state):
                continue
            drafts = self._drafts(state, num_spare) if guesses else ()
            num_spare -= len(drafts)
            rows.append(self._row(state, 1, drafts))
        return rows

    def _grow(self, state: SequenceState) -> bool:
        """Make sure of room for the pending token; False if `state` itself had to go."""
        while not self._memory.grow(state, len(state.token_ids)):
            last = self._running[-1]
            self._preempt(last)
            if last is state:
                return False
        return True

    def _drafts(self, state: SequenceState, num_spare: int) -> tuple[int, ...]:
        """Guess what follows, as far as there is room without preempting anybody."""
        num_known = len(state.token_ids)
        limit = min(num_spare, state.max_tokens - 1 - num_known)
        drafts = state.drafter.propose(state.token_ids, limit)
        if drafts and not self._memory.grow(state, num_known + len(drafts)):
            return drafts[: self._memory.capacity(state) - num_known]
        return drafts

    def _share(self, starts: list[Start], loads: list[SlotLoad]) -> dict[SequenceState, int]:
        """Share tokens among the sequences with more than one pending, running and new.

        Each in turn takes up to half of what is left: a long prompt neither holds back the
        short ones behind it, nor is held back by them. The rest goes round once more.
        """
        shares: dict[SequenceState, int] = {}
        begun = [state for state in self._running if state.num_pending > 1]
        for state in chain(begun, self._newcomers(starts, loads)):
            most = (self._left + 1) // 2 if self._cuts_prompts else self._left
            shares[state] = min(state.num_pending, most)
            self._left -= shares[state]
            if self._left == 0:
                break
        for state, num_tokens in shares.items():
            more = min(state.num_pending - num_tokens, self._left)
            shares[state] += more
            self._left -= more
        return shares

    def _newcomers(self, starts: list[Start], loads: list[SlotLoad]) -> Iterator[SequenceState]:
        """Start what waits and can start, one after the other."""
        if self._waiting.is_stuck or len(self._running) == self._config.max_sequences:
            return
        for state in self._waiting.in_order():
            if not state.is_ready:
                continue
            if not self._cuts_prompts and state.num_pending > self._left:
                if state.is_urgent:
                    break
                continue
            # Each running sequence should have a block to grow into, or it would soon preempt.
            lease = self._memory.take(state, num_spare=len(self._running))
            if lease is not None:
                if lease.must_load:
                    assert state.request.adapter is not None, "the base model is never loaded"
                    loads.append(SlotLoad(version=state.request.adapter, slot=lease.slot))
                self._start(state, lease.slot, starts)
                yield state
                if len(self._running) == self._config.max_sequences:
                    return
            elif state.is_urgent:
                break
        self._waiting.is_stuck = True

    def _start(self, state: SequenceState, slot: int, starts: list[Start]) -> None:
        state.slot = slot
        state.is_running = True
        self._waiting.leave(state, to_run=True)
        insort(self._running, state, key=by_rank)
        self._queued.discard(state.id.request_id)
        self.counts.begun_tokens += len(state.token_ids)
        self.counts.shared_tokens += state.num_computed
        if not state.is_started:
            state.is_started = True
            starts.append(Start(sequence_id=state.id, request=state.request))

    def _preempt(self, state: SequenceState) -> None:
        self._memory.give_back(state)
        self._running.remove(state)
        state.begin_again()
        self._waiting.join(state)
        self.counts.preemptions += 1

    def _end(self, state: SequenceState) -> None:
        if state.is_running:
            self._memory.give_back(state)
            self._running.remove(state)
        else:
            self._waiting.leave(state, to_run=False)
        state.is_running = False
        state.is_over = True
        if state.is_started:
            self._ended.append(state.id)
        request_id = state.id.request_id
        self._sequences[request_id].remove(state)
        if not self._sequences[request_id]:
            del self._sequences[request_id]
            self._queued.discard(request_id)
            self._deadlines.pop(request_id, None)
        self._waiting.is_stuck = False

    def _row(self, state: SequenceState, num_tokens: int, drafts: tuple[int, ...] = ()) -> Row:
        self._planned.append(state)
        end = state.num_computed + num_tokens
        token_ids = state.token_ids
        return Row(
            state.id,
            (*token_ids[state.num_computed : end], *drafts),
            state.num_computed,
            state.blocks,
            state.slot,
            samples=end == len(token_ids) and not state.request.embeds,
            num_drafts=len(drafts),
        )

    def _advance(self, state: SequenceState, row: Row, result: Sampled) -> list[SequenceEvent]:
        if result.error is not None:
            self._end(state)
            return [SequenceEvent(sequence_id=state.id, error=result.error, is_last=True)]
        tokens = result.events
        num_right = max(0, len(tokens) - 1)
        assert row.samples == bool(tokens), f"{state.id} has {len(tokens)} tokens for {row}"
        assert num_right <= row.num_drafts, f"{state.id} has more tokens than were computed"
        if row.num_drafts > 0:
            state.drafter.learn(row.num_drafts, num_right)
            self.counts.drafts += row.num_drafts
            self.counts.right_drafts += num_right
        if tokens and not state.has_answer:
            self._waiting.is_stuck = False  # other answers may have waited for this one
        state.num_computed += len(row.token_ids) - row.num_drafts + num_right
        state.token_ids += [token.token_id for token in tokens]
        self._memory.remember(state)

        if tokens and tokens[-1].finish is None and len(state.token_ids) >= state.max_tokens:
            tokens = (*tokens[:-1], tokens[-1]._replace(finish="length"))
        is_over = tokens[-1].finish is not None if tokens else state.num_pending == 0
        if is_over:
            self._end(state)

        return state.events(tokens, result, is_over=is_over)
