"""Puts the adaptation loop together with a model, a store and an engine."""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hyprstream.engine.engine import Engine
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.weights import LoraWeights, pack, unpack
from hyprstream.models.decoder import Decoder
from hyprstream.refs import VersionId
from hyprstream.runtime.adaptation import AdaptationLoop
from hyprstream.runtime.adapters import Adapters, Tensors
from hyprstream.runtime.canary import CanaryWatch
from hyprstream.runtime.events import MOST, ToldDecisions
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.journal_rows import Decision
from hyprstream.runtime.learners import Learner, LessonProgress, LoopParts, day_start, spent_on
from hyprstream.runtime.learning_config import LearningConfig
from hyprstream.runtime.policy import Policies
from hyprstream.runtime.publishing import StoreVersions, forget_deleted, recover
from hyprstream.runtime.retention import remove_expired
from hyprstream.runtime.watch import FeedbackWatch
from hyprstream.train.buffer import SampleBuffer
from hyprstream.train.gate import Gate
from hyprstream.train.trainer import Trainer

_NUM_IO_THREADS = 1  # what the loop waits for comes one at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Learning:
    """A loop and what it works with; close it after the engine has stopped.

    Attributes:
        loop: What `Engine.start` takes.
        buffer: Takes samples.
        journal: Tells what was decided.
        io: Threads that wait for the disk.
    """

    loop: AdaptationLoop[LoraWeights]
    buffer: SampleBuffer
    journal: Journal
    io: ThreadPoolExecutor

    def close(self) -> None:
        """Wait for what is on its way to the disk, and let go of the journal."""
        self.io.shutdown(wait=True)
        self.journal.close()


def open_learning(
    model: Decoder,
    adapters: Adapters,
    journal_file: Path,
    learners: Iterable[Learner],
    *,
    install: Callable[[VersionId, LoraWeights], None],
    tell: Callable[[LessonProgress | Decision], None] = lambda _: None,
    config: LearningConfig = LearningConfig(),  # noqa: B008 - frozen
) -> Learning:
    """Take up learning where the last process left it.

    Args:
        model: The base model, which serves at the same time.
        adapters: The store.
        journal_file: Made if absent.
        learners: The adapters that learn.
        install: Lets requests use a version: `installer`.
        tell: Told how far a version is, and of each decision with the latest of former
            processes; on the threads on which that happens.
        config: Bounds and tests.

    Raises:
        CacheBusyError: Another process learns with this journal.
        CorruptStoreError: The journal is damaged.
    """
    journal, buffer = open_buffer(adapters, journal_file, config)
    base, policies = BaseLayers(model.weights), Policies(adapters)

    def load(tensors: Tensors) -> LoraWeights:
        return unpack(tensors, base)

    io = ThreadPoolExecutor(_NUM_IO_THREADS, thread_name_prefix="hyprstream-learning")
    parts = LoopParts(
        trainer=Trainer(model),
        buffer=buffer,
        gate=Gate(config.gate),
        versions=StoreVersions(
            adapters,
            load=load,
            pack=pack,
            install=install,
            share_of=lambda name: policies.of(name).canary,
        ),
        journal=ToldDecisions(journal, tell),
        io=io,
        norm_of=norm,
        clock=time.time,
        tell=tell,
        arrived=lambda name, since: journal.others_words(name, since, config.buffer.max_held_out),
        trial=journal.trial,
    )
    for decision in journal.decisions()[-MOST["decision"] :]:
        tell(decision)
    today = spent_on(journal.decisions(since=day_start(time.time())), time.time())
    canaries = CanaryWatch(config.canary)
    for name, canary in adapters.canaries.all().items():
        canaries.begin(name, journal.trial(name, canary))
    loop = AdaptationLoop(parts, learners, FeedbackWatch(config.watch), today, canaries=canaries)
    return Learning(loop=loop, buffer=buffer, journal=journal, io=io)


def open_buffer(
    adapters: Adapters, journal_file: Path, config: LearningConfig
) -> tuple[Journal, SampleBuffer]:
    """Take up the samples that the last process left; the caller closes the journal.

    Raises:
        CacheBusyError: Another process learns with this journal.
        CorruptStoreError: The journal is damaged.
    """
    journal = Journal(journal_file)
    try:
        recover(journal, adapters, config.canary)
        forget_deleted(journal, adapters)
        remove_expired(journal, adapters, config.retention, time.time())
        buffer = SampleBuffer(config.buffer, journal)
        buffer.restore(journal.waiting(), journal.used())
    except BaseException:
        journal.close()
        raise
    return journal, buffer


def installer(
    engine: Engine, event_loop: asyncio.AbstractEventLoop
) -> Callable[[VersionId, LoraWeights], None]:
    """Return what installs a version from any thread but the engine's, and waits for that."""

    def install(version: VersionId, weights: LoraWeights) -> None:
        asyncio.run_coroutine_threadsafe(engine.install(version, weights), event_loop).result()

    return install


def norm(weights: LoraWeights) -> float:
    """Return the norm of all parameters together."""
    squares = (
        tensor.float().norm().item() ** 2
        for delta in weights.modules.values()
        for tensor in delta.tensors().values()
    )
    return math.sqrt(math.fsum(squares))
