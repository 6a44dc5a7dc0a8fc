"""What the scheduler knows of one sequence: an answer from its prompt to its last token.

Plain Python, on the engine thread.
"""

from collections.abc import Sequence
from typing import Self

from hyprstream.engine.blocks import block_key, root_key
from hyprstream.engine.drafts import Drafter
from hyprstream.engine.plan import Sampled, SequenceEvent, SequenceId
from hyprstream.engine.request import Request, TokenEvent, TokenLogprobs


class SequenceState:
    """A sequence, waiting or running. The scheduler changes it; nobody else does.

    Attributes:
        id: Its name.
        request: What was asked for.
        arrival: Counts the requests; a lower one came earlier.
        leader: The first answer to the same prompt, whose blocks this one means to share;
            None for the first itself, and where nothing is shared.
        overdue_at: Number of starts, of any sequences, at which it becomes urgent.
        max_tokens: Length at which it ends, prompt included.
        token_ids: The prompt and the answer so far.
        num_computed: Of how many of them keys and values are in `blocks`.
        blocks: The blocks that it holds; none while it waits.
        num_registered: How many of the blocks are known by their key.
        slot: Row of the LoraBank; of no meaning while it waits.
        drafter: Guesses for it.
        is_running: It holds blocks and a slot.
        is_started: It has been in a plan.
        is_over: It has ended, whether well or not.
        is_urgent: It has been overtaken often enough and goes before all that are not.
    """

    __slots__ = (
        "_keys",
        "_num_reported",
        "_num_scored",
        "arrival",
        "blocks",
        "drafter",
        "id",
        "is_over",
        "is_running",
        "is_started",
        "is_urgent",
        "leader",
        "max_tokens",
        "num_computed",
        "num_registered",
        "overdue_at",
        "request",
        "slot",
        "token_ids",
    )

    def __init__(
        self,
        sequence_id: SequenceId,
        request: Request,
        *,
        arrival: int,
        max_tokens: int,
        overdue_at: int,
        drafter: Drafter,
        leader: Self | None = None,
    ) -> None:
        self.id = sequence_id
        self.request = request
        self.arrival = arrival
        self.leader = leader
        self.overdue_at = overdue_at
        self.max_tokens = max_tokens
        self.token_ids = list(request.token_ids)
        self.num_computed = 0
        self.blocks: tuple[int, ...] = ()
        self.num_registered = 0
        self.slot = 0
        self.drafter = drafter
        self.is_running = False
        self.is_started = False
        self.is_over = False
        self.is_urgent = False
        self._keys = [root_key(request.adapter, request.salt)]  # then one for each full block
        self._num_scored = 0  # prompt logprobs that came since it last began
        self._num_reported = 0  # ... and that were passed on

    @property
    def rank(self) -> tuple[bool, int, int, int]:
        """What decides who goes first and, from the other end, who is preempted."""
        priority = 0 if self.is_urgent else self.request.priority
        return not self.is_urgent, priority, self.arrival, self.id.answer

    @property
    def is_ready(self) -> bool:
        """Tell whether it need not wait for the first answer to compute the prompt."""
        leader = self.leader
        return leader is None or leader.is_over or leader.has_answer

    @property
    def has_answer(self) -> bool:
        """Tell whether there is a first token of the answer."""
        return len(self.token_ids) > len(self.request.token_ids)

    @property
    def num_pending(self) -> int:
        """Tokens that are known and not computed."""
        return len(self.token_ids) - self.num_computed

    @property
    def needs_whole_prompt(self) -> bool:
        """Tell whether shared blocks are of no use: something is wanted of every position."""
        scores = self.request.prompt_logprobs is not None and self.id.answer == 0
        return self.request.embeds or scores

    def key(self, block: int, block_tokens: int) -> bytes:
        """Return the key of one of its blocks, all of which its tokens fill."""
        keys = self._keys
        while len(keys) <= block + 1:
            first = (len(keys) - 1) * block_tokens
            keys.append(block_key(keys[-1], self.token_ids[first : first + block_tokens]))
        return keys[block + 1]

    def begin_again(self) -> None:
        """Forget what has been computed; the tokens stay."""
        self.num_computed = self.num_registered = self._num_scored = 0
        self.blocks = ()
        self.is_running = False

    def events(
        self, tokens: Sequence[TokenEvent], result: Sampled, *, is_over: bool
    ) -> list[SequenceEvent]:
        """Return what there is to tell after a step.

        Args:
            tokens: Those that were chosen.
            result: What else came of the step.
            is_over: Nothing more will come.
        """
        events = [
            SequenceEvent(self.id, token, is_last=token.finish is not None) for token in tokens
        ]
        if result.prompt_logprobs or result.embedding is not None:
            scores = self._unreported(result.prompt_logprobs)
            if scores or result.embedding is not None:
                first = SequenceEvent(
                    self.id,
                    prompt_logprobs=scores,
                    embedding=result.embedding,
                    is_last=is_over and not tokens,
                )
                events.insert(0, first)
        return events

    def _unreported(self, scores: tuple[TokenLogprobs, ...]) -> tuple[TokenLogprobs, ...]:
        """Return those of the next prompt logprobs that were not there before a preemption."""
        if not scores or self.id.answer > 0:
            return ()
        num_old = max(0, self._num_reported - self._num_scored)
        self._num_scored += len(scores)
        self._num_reported = max(self._num_reported, self._num_scored)
        return scores[num_old:]


def by_rank(state: SequenceState) -> tuple[bool, int, int, int]:
    """Sort by rank."""
    return state.rank
