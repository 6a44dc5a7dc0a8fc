"""Drive a runner without a scheduler: rows cut and mixed as a random generator likes."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from hyprstream.engine.generate import generate
from hyprstream.engine.plan import Plan, Row, Sampled, SequenceId, SlotLoad, Start
from hyprstream.engine.request import Request, SamplingParams, TokenEvent, TokenLogprobs
from hyprstream.engine.runner import ModelRunner
from hyprstream.errors import HyprstreamError
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import ForwardBatch, LoraView
from hyprstream.refs import RequestId

Adapter = Mapping[str, tuple[Tensor, Tensor]]
"""Path of a linear layer -> A and B."""


class RowByRow:
    """A `LoraView` that multiplies one row at a time."""

    def __init__(self, adapters: Mapping[int, Adapter], slots: Sequence[int]) -> None:
        self._adapters = adapters
        self._slots = list(slots)

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        assert len(x) == len(self._slots), "a slot for each row"
        outputs = [a[path][1].shape[1] for a in self._adapters.values() if path in a]
        if not outputs:
            return None
        rows = []
        for row, slot in zip(x, self._slots, strict=True):
            a, b = self._adapters.get(slot, {}).get(path, (None, None))
            rows.append(x.new_zeros(outputs[0]) if a is None or b is None else row @ a @ b)
        return torch.stack(rows)

    def select(self, rows: Tensor) -> "RowByRow":
        return RowByRow(self._adapters, [self._slots[i] for i in rows.tolist()])


class FakeBank:
    """Slots in a dictionary."""

    def __init__(self) -> None:
        self.slots: dict[int, Adapter] = {}

    def write(self, slot: int, weights: Adapter) -> None:
        self.slots[slot] = weights

    def view(self, slots: Sequence[int]) -> RowByRow:
        return RowByRow(dict(self.slots), slots)


class Adapted(Decoder):
    """A decoder with one adapter, as `generate` takes it."""

    def __init__(self, model: Decoder, adapter: Adapter) -> None:  # weights are the model's
        self._model, self._adapters = model, {1: adapter}
        self.config, self.dtype, self.device = model.config, model.dtype, model.device

    @override
    def forward(self, batch: ForwardBatch) -> Tensor:
        lora = RowByRow(self._adapters, [1] * len(batch.token_ids))
        return self._model.forward(replace(batch, lora=lora))

    @override
    def logits(
        self, hidden: Tensor, lora: LoraView | None = None, entries: slice | None = None
    ) -> Tensor:
        return self._model.logits(hidden, RowByRow(self._adapters, [1] * len(hidden)), entries)


def chance(seed: int | str) -> random.Random:
    """Where the decisions of a test come from."""
    return random.Random(seed)  # noqa: S311 - tests, not cryptography


def random_adapter(model: Decoder, seed: int) -> Adapter:
    """An adapter that changes a projection of the first layer and the head."""
    generator = torch.Generator().manual_seed(seed)
    width, heads = model.config.width, model.config.num_heads * model.config.head_width
    shapes = {
        "layers.0.self_attn.q_proj": (width, heads),
        "lm_head": (width, model.config.vocab_size),
    }
    return {
        path: (
            torch.randn(inputs, 2, generator=generator) * 0.2,
            torch.randn(2, outputs, generator=generator) * 0.2,
        )
        for path, (inputs, outputs) in shapes.items()
    }


def request(
    name: str, prompt: Sequence[int], params: SamplingParams | None = None, **options: Any
) -> Request:
    return Request(
        id=RequestId(name),
        token_ids=tuple(prompt),
        params=params or SamplingParams(temperature=0, max_tokens=8),
        **options,
    )


def alone(model: Any, wanted: Request, eos_ids: frozenset[int] = frozenset()) -> list[TokenEvent]:
    """What the plain loop answers."""
    return list(generate(model, wanted.token_ids, wanted.params, eos_ids=eos_ids))


@dataclass
class Served:
    """A sequence of the driver, and what has come of it."""

    id: SequenceId
    request: Request
    slot: int
    guesses: Sequence[int]
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0
    is_over: bool = False
    events: list[TokenEvent] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    embedding: tuple[float, ...] | None = None
    error: HyprstreamError | None = None


class Driver:
    """Serves sequences with a runner; every decision is drawn from `luck`."""

    def __init__(
        self,
        runner: ModelRunner[Adapter],
        luck: random.Random,
        *,
        num_blocks: int,
        size: int,
        context_length: int,
    ) -> None:
        self.runner = runner
        self.sequences: list[Served] = []
        self._luck = luck
        self._size = size
        self._context_length = context_length
        self._free = list(range(num_blocks))
        luck.shuffle(self._free)
        self._starts: list[Start] = []
        self._loads: list[SlotLoad] = []
        self._ended: list[SequenceId] = []

    def add(
        self, wanted: Request, *, index: int = 0, slot: int = 0, guesses: Sequence[int] = ()
    ) -> Served:
        """Let a sequence take part; `guesses` are drafts for its answer, right or wrong."""
        sequence = Served(
            SequenceId(wanted.id, index), wanted, slot, guesses, list(wanted.token_ids)
        )
        self.sequences.append(sequence)
        self._starts.append(Start(sequence_id=sequence.id, request=wanted))
        if wanted.adapter is not None:
            self._loads.append(SlotLoad(version=wanted.adapter, slot=slot))
        return sequence

    def run(self, *, preempts: bool = False) -> int:
        """Step until all sequences are over; return the number of steps."""
        num_steps = 0
        while running := [s for s in self.sequences if not s.is_over]:
            chosen = self._luck.sample(running, self._luck.randint(1, len(running)))
            if preempts and self._luck.random() < 0.2:
                self._preempt(self._luck.choice(running))
            self.step(chosen)
            num_steps += 1
        self.step([])
        return num_steps

    def step(self, chosen: Sequence[Served]) -> Mapping[SequenceId, Sampled]:
        """Compute one step of these sequences."""
        rows = {sequence.id: self._row(sequence) for sequence in chosen}
        plan = Plan(
            rows=tuple(rows.values()),
            loads=tuple(self._loads),
            starts=tuple(self._starts),
            ended=tuple(self._ended),
        )
        self._loads, self._starts, self._ended = [], [], []
        sampled = self.runner.run(plan)
        assert sampled.keys() == rows.keys()
        for sequence in chosen:
            self._take(sequence, rows[sequence.id], sampled[sequence.id])
        return sampled

    def _row(self, sequence: Served) -> Row:
        pending = sequence.tokens[sequence.num_computed :]
        share = self._luck.randint(1, len(pending))
        drafts: Sequence[int] = ()
        samples = share == len(pending) and not sequence.request.embeds
        if samples:
            done = len(sequence.tokens) - len(sequence.request.token_ids)
            room = self._context_length - len(sequence.tokens)
            num_drafts = min(self._luck.randint(0, 4), room)
            drafts = sequence.guesses[done : done + num_drafts]
        tokens = (*pending[:share], *drafts)
        needed = -(-(sequence.num_computed + len(tokens)) // self._size)
        while len(sequence.blocks) < needed:
            sequence.blocks.append(self._free.pop())
        return Row(
            sequence_id=sequence.id,
            token_ids=tokens,
            start=sequence.num_computed,
            blocks=tuple(sequence.blocks),
            slot=sequence.slot,
            num_drafts=len(drafts),
            samples=samples,
        )

    def _take(self, sequence: Served, row: Row, sampled: Sampled) -> None:
        if sampled.error is not None:
            sequence.error = sampled.error
            self._end(sequence)
            return
        assert bool(sampled.events) == row.samples
        sequence.num_computed = row.start + len(row.token_ids) - row.num_drafts
        sequence.num_computed += max(0, len(sampled.events) - 1)
        sequence.events += sampled.events
        sequence.tokens += [event.token_id for event in sampled.events]
        sequence.prompt_logprobs += sampled.prompt_logprobs
        sequence.embedding = sampled.embedding
        finished = bool(sampled.events) and sampled.events[-1].finish is not None
        if finished or sampled.embedding is not None:
            self._end(sequence)

    def _end(self, sequence: Served) -> None:
        sequence.is_over = True
        self._ended.append(sequence.id)
        self._release(sequence)

    def _preempt(self, sequence: Served) -> None:
        sequence.num_computed = 0
        self._release(sequence)

    def _release(self, sequence: Served) -> None:
        self._free += sequence.blocks
        sequence.blocks = []
        self._luck.shuffle(self._free)
