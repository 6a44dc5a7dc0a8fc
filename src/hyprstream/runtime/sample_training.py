"""Learning from samples that wait, in the foreground: the loop that serves, without an engine.

    with SampleTraining(adapters, model, learner, settings) as training:
        for progress in training.steps():
            ...
        for decision in training.decisions:
            ...

What is learnt, judged and published is what would be while serving; only nobody else wants
the processor meanwhile.
"""

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from hyprstream.lora.weights import LoraWeights
from hyprstream.refs import VersionId
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.journal_rows import Decision
from hyprstream.runtime.learners import Learner, LessonProgress, Spent
from hyprstream.runtime.learning import Learning, open_learning
from hyprstream.runtime.model import Model
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.training_place import TrainingPlace, Working

_TELL_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shortage:
    """What is missing for a version to be made.

    Attributes:
        num_waiting: Samples that wait.
        min_waiting: Fewest that make a version.
        num_held_out: Samples to judge by.
        min_held_out: Fewest to judge by.
        spent: What learning took today.
        is_spent: That is all that it may.
    """

    num_waiting: int
    min_waiting: int
    num_held_out: int
    min_held_out: int
    spent: Spent
    is_spent: bool


class SampleTraining:
    """Holds the journal and the place of the adapter in a `with` block, against other processes.

    Args:
        adapters: The store.
        model: What the adapter is for.
        learner: The adapter.
        settings: Where things are.
    """

    def __init__(
        self, adapters: Adapters, model: Model, learner: Learner, settings: Settings
    ) -> None:
        self._adapters, self._model = adapters, model
        self._learner, self._settings = learner, settings
        self._place = TrainingPlace(settings.training_folder, learner.name)
        self._held = ExitStack()
        self._learning: Learning | None = None
        self._progress: LessonProgress | None = None
        self._curve: list[tuple[int, float | None, float | None]] = []
        self._began, self._told = time.time(), 0.0
        self._num_decided = 0

    def __enter__(self) -> Self:
        """Keep others out.

        Raises:
            CacheBusyError: Another process trains the adapter, or learns with the journal.
            CorruptStoreError: The journal is damaged.
        """
        with ExitStack() as held:
            held.enter_context(self._place.hold())
            self._learning = open_learning(
                self._model.decoder,
                self._adapters,
                self._settings.journal_file,
                [self._learner],
                install=_nowhere,
                tell=self._follow,
                config=self._settings.train,
            )
            held.callback(self._learning.close)
            self._held = held.pop_all()
        self._num_decided = len(self._learning.journal.decisions(self._learner.name))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.close()

    @property
    def shortage(self) -> Shortage | None:
        """What is missing before a version can be made; None if nothing is."""
        learning, learner = self._open, self._learner
        found = Shortage(
            num_waiting=learning.buffer.num_waiting(learner.name),
            min_waiting=learner.config.min_waiting,
            num_held_out=learning.buffer.num_held_out(learner.name),
            min_held_out=learner.config.min_held_out,
            spent=learning.loop.spent(learner.name),
            is_spent=not learning.loop.spent(learner.name).is_within(learner.config.budget),
        )
        is_enough = (
            found.num_waiting >= found.min_waiting and found.num_held_out >= found.min_held_out
        )
        return None if is_enough and not found.is_spent else found

    @property
    def decisions(self) -> list[Decision]:
        """What was decided since the block began."""
        return self._open.journal.decisions(self._learner.name)[self._num_decided :]

    @property
    def is_stop_wanted(self) -> bool:
        """Tell whether somebody asked for an end after the current step."""
        return self._place.is_stop_wanted

    def steps(self) -> Iterator[LessonProgress]:
        """Make versions until nothing is left to learn from; leaving early gives the last one up.

        Yields:
            How far it is, after each piece of work.

        Raises:
            HyprstreamError: Learning cannot go on; the samples wait.
        """
        loop = self._open.loop
        try:
            while True:
                loop.wait()
                if not loop.ready():
                    break
                loop.run_slice()
                if self._progress is not None:
                    yield self._progress
        finally:
            if loop.failure is None:
                loop.give_up()
        why = loop.failure or loop.pause(self._learner.name)
        if why is not None:
            raise why

    def _follow(self, progress: LessonProgress | Decision) -> None:
        if isinstance(progress, Decision):
            return
        if progress.step <= 1 and progress.phase == "screening":
            self._curve.clear()
        if progress.loss is not None and progress.phase == "learning":
            self._curve.append((progress.step, progress.loss, None))
        is_new = self._progress is None or progress.phase != self._progress.phase
        self._progress = progress
        if is_new or time.monotonic() - self._told >= _TELL_EVERY_S:
            self._told = time.monotonic()
            self._place.tell(
                Working(
                    pid=os.getpid(),
                    source="samples",
                    began=self._began,
                    phase=progress.phase,
                    step=progress.step,
                    num_steps=progress.num_steps,
                    loss=progress.loss,
                    curve=tuple(self._curve),
                )
            )

    @property
    def _open(self) -> Learning:
        assert self._learning is not None, "used outside of its `with` block"
        return self._learning


def _nowhere(version: VersionId, weights: LoraWeights) -> None:
    """Install a version where nothing serves it."""
    del version, weights
