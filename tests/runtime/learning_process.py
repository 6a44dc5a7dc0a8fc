"""A process that learns until it is killed: fake arithmetic, real journal and store.

Prints a line for each sample that was acknowledged. Ends by itself once it has published as
many versions as it was told to.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from hyprstream.errors import HyprstreamError
from hyprstream.refs import AdapterName, ModelFingerprint
from hyprstream.runtime.adaptation import AdaptationLoop
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.canary import CanaryConfig, CanaryWatch
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.learners import Learner, LearnerConfig, LoopParts
from hyprstream.runtime.publishing import StoreVersions, recover
from hyprstream.runtime.watch import FeedbackWatch, WatchConfig
from hyprstream.store.manifest import Draft
from hyprstream.store.store import AdapterStore
from hyprstream.train.buffer import BufferConfig, SampleBuffer
from hyprstream.train.gate import Gate, GateConfig
from hyprstream.vdb.tensors import SparseTensor
from tests.runtime.learning import FakeClock, FakeTrainer, Skill, lesson, trusted

NAME = AdapterName("a")
ENDS = ("published", "promoted", "withdrawn")
BASE = ModelFingerprint(name="fake", config_sha256="0" * 64, weights_sha256="1" * 64)


def pack(skill: Skill) -> dict[str, SparseTensor]:
    values = np.array([1.0, *skill], dtype=np.float32)
    return {"layer/sparse/values": SparseTensor.from_dense(values, "float32")}


def load(tensors) -> Skill:
    values = tensors["layer/sparse/values"].to_dense()
    return Skill(float(values[1]), float(values[2]))


def open_adapters(folder: Path) -> Adapters:
    adapters = Adapters(AdapterStore(folder / "adapters"))
    try:
        adapters.check_free(NAME)
    except HyprstreamError:
        return adapters
    draft = Draft(base=BASE, kinds=("sparse",), spec={}, codec="zstd")
    adapters.create(NAME, adapters.commit(pack(Skill()), draft).version)
    return adapters


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(folder: Path, num_versions: int, share: float) -> None:
    adapters = open_adapters(folder)
    journal = Journal(folder / "journal.db")
    recover(journal, adapters)
    buffer = SampleBuffer(BufferConfig(held_out_share=0.4), journal)
    buffer.restore(journal.waiting(), journal.used())
    learner = Learner(
        name=NAME,
        trusted={"manual": [trusted(5_000_000 + number) for number in range(8)]},
        uniform_loss=6.0,
        config=LearnerConfig(min_waiting=6, max_samples=8, samples_per_step=4, min_held_out=8),
    )
    parts = LoopParts(
        trainer=FakeTrainer(FakeClock()),
        buffer=buffer,
        gate=Gate(GateConfig(min_held_out=8, min_trusted=8, max_norm_growth=100.0)),
        versions=StoreVersions(
            adapters, load=load, pack=pack, install=lambda *_: None, share_of=lambda _: share
        ),
        journal=journal,
        io=ThreadPoolExecutor(1),
        norm_of=lambda skill: 1.0 + skill.learnt,
        clock=time.time,
        trial=journal.trial,
    )
    canaries = CanaryWatch(CanaryConfig(max_answers=6, min_opinions=3))
    canaries.compare(adapters.canaries.all(), journal.trial)
    loop = AdaptationLoop(parts, [learner], FeedbackWatch(WatchConfig()), canaries=canaries)
    number = int(time.time() * 1000) % 4_000_000  # other samples in each process
    say("ready")
    while sum(d.action in ENDS for d in journal.decisions()) < num_versions:
        number += 1
        if buffer.add(NAME, lesson(number), f"r{number}") in ("waiting", "held_out"):
            say(str(number))
        for _ in range(20):
            if loop.ready():
                loop.run_slice()
        assert loop.failure is None, loop.failure
        trial = canaries.of(NAME)
        if trial is not None:  # every other canary is disliked
            version = trial.canary.version
            loop.answered(NAME, version)
            loop.observe(NAME, trial.canary.parent, is_bad=False)
            loop.observe(NAME, version, is_bad=int(version, 16) % 2 == 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
