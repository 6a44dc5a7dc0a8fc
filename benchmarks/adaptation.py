"""What an answer's reader notices of learning: gaps between tokens, idle beside learning.

The default model as stored, one thread. A request answers with a few hundred tokens; during
every other run of some tokens, an adapter of rank 16 on all linear layers is trained in the
background, within the engine's default share. Runs take turns within one process, so that
both see the same machine; other work on it makes all gaps longer and some much longer, which
is why the same gaps are also given in processor time of the process.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from benchmarks.engine_worker import core_of, load, request
from benchmarks.models import default_model
from benchmarks.training_worker import TARGETS
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.engine import Engine
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.models.decoder import Decoder
from hyprstream.refs import AdapterName
from hyprstream.runtime.device import settle_memory
from hyprstream.train.config import TrainConfig
from hyprstream.train.sample import Sample
from hyprstream.train.stepwise import StepwisePass
from hyprstream.train.trainer import Trainer

RANK = 16
SAMPLE_TOKENS = 128
NEW_TOKENS = 144
A = AdapterName("a")


@dataclass
class Learning:
    """Trains one adapter on the same sample for ever, while it is switched on."""

    trainer: Trainer
    is_on: bool = False
    slices: list[float] = field(default_factory=list)
    num_steps: int = 0
    _pass: StepwisePass | None = None

    def ready(self) -> bool:
        return self.is_on

    def run_slice(self) -> None:
        began = time.process_time()
        if self._pass is None:
            tokens = [(7 * i) % 1000 + 20 for i in range(SAMPLE_TOKENS + 1)]
            self._pass = self.trainer.begin(A, [Sample.text(tokens)])
        if self._pass.advance():
            is_step = self._pass.result() is not None
            self.num_steps += is_step
            self._pass = None if is_step else self.trainer.begin_apply(A)
        self.slices.append(time.process_time() - began)


@dataclass
class Gaps:
    """Times between two tokens of an answer, in seconds of the wall and of the processor."""

    wall: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)

    def row(self, name: str) -> str:
        cells = []
        for gaps in (self.wall, self.processor):
            ordered = sorted(1000 * gap for gap in gaps)
            cells += [f"{_at(ordered, share):.1f}" for share in (0.5, 0.95)]
            cells += [f"{ordered[-1]:.1f}"]
        return f"| {name} | {' | '.join(cells)} |"


def _at(ordered: Sequence[float], share: float) -> float:
    return ordered[round(share * (len(ordered) - 1))]


def open_trainer(model: Decoder) -> Trainer:
    trainer = Trainer(model)
    spec = LoraSpec(rank=RANK, alpha=2 * RANK, targets=TARGETS)
    trainer.open(A, create(spec, model.linears), spec=spec, config=TrainConfig())
    return trainer


async def measure(model: Decoder, learning: Learning, rounds: int) -> tuple[Gaps, Gaps]:
    """Answer in turns without and with learning."""
    idle, busy = Gaps(), Gaps()
    engine = Engine(core_of(model), EngineConfig())
    engine.start(learning)
    try:
        for number in range(2 * rounds):
            learning.is_on = number % 2 == 1
            gaps = busy if learning.is_on else idle
            stream = engine.submit(request(number, range(20, 52), NEW_TOKENS))
            await anext(stream)
            wall, processor = time.perf_counter(), time.process_time()
            async for _ in stream:
                now = time.perf_counter(), time.process_time()
                gaps.wall.append(now[0] - wall)
                gaps.processor.append(now[1] - processor)
                wall, processor = now
            learning.is_on = False
    finally:
        await engine.stop()
    return idle, busy


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    model = load(default_model(), "stored")
    settle_memory()
    learning = Learning(open_trainer(model))
    while not learning.num_steps:  # what allocates is not measured
        learning.run_slice()
    learning.slices.clear()
    idle, busy = asyncio.run(measure(model, learning, rounds))
    print(f"\n{rounds} rounds of two answers of {NEW_TOKENS} tokens, in ms")
    print("| | p50 | p95 | longest | p50, processor | p95, processor | longest, processor |")
    print("|---|---|---|---|---|---|---|")
    print(idle.row("idle"))
    print(busy.row("learning"))
    ordered = sorted(1000 * slice_s for slice_s in learning.slices)
    total = sum(busy.processor)
    print(f"slices: {len(ordered)}, p50 {statistics.median(ordered):.1f} ms, "
          f"p95 {_at(ordered, 0.95):.1f}, longest {ordered[-1]:.1f}, of processor time; "
          f"share of the time while answering {sum(learning.slices) / total:.2f}")  # fmt: skip
