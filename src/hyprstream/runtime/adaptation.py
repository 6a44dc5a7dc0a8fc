"""The loop by which adapters learn while they serve: background work of the engine. No torch.

    collect   samples that wait are taken and screened, and measured under the parent
    step      optimizer steps, a piece at a time
    judge     parent and candidate on what was set aside and on what is trusted; the gate
    publish   commit, install, promote; or drop the candidate and say why

One adapter learns at a time, for one version; then whoever has spent least today. Each state is
a method that yields between pieces, and each piece is one slice. What waits for a disk runs on
other threads, and the loop is not ready meanwhile.
"""

import logging
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import Future, wait
from typing import Any, Generic

from hyprstream.errors import HyprstreamError, StaleParentError, UnavailableError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.canary import CanaryConfig, CanaryWatch, Due, Trial
from hyprstream.runtime.canary_trials import CanaryTrials
from hyprstream.runtime.journal_rows import Action, Decision
from hyprstream.runtime.learners import Learner, LoopParts, Published, Spent, Weights
from hyprstream.runtime.lesson import Lesson, Pieces, Result
from hyprstream.runtime.teaching import Teaching
from hyprstream.runtime.watch import FeedbackWatch, Worse
from hyprstream.store.records import Canary
from hyprstream.train.buffer import Fate

log = logging.getLogger(__name__)

PAUSE_S = 60.0
"""How long an adapter does not learn after a disk, or the engine, refused."""


class AdaptationLoop(Generic[Weights]):
    """Learns, judges and publishes. `BackgroundWork` of the engine.

    `ready` and `run_slice` belong to the engine thread; `observe` may be called from any.

    Invariants, checked by `test_adaptation.py`: a name points at no version that was not
    accepted, committed and installed; whatever happens, samples are waiting or settled; if
    people move a name, the loop drops its candidate; a failure ends learning, never serving.

    Args:
        parts: What it joins.
        learners: The adapters that learn.
        watch: What users say of versions.
        spent: What their learning took today before, in other processes.
        canaries: Those that are out.
    """

    def __init__(
        self,
        parts: LoopParts[Weights],
        learners: Iterable[Learner],
        watch: FeedbackWatch,
        spent: Mapping[AdapterName, Spent] | None = None,
        *,
        canaries: CanaryWatch | None = None,
    ) -> None:
        self._parts = parts
        self._learners = {learner.name: learner for learner in learners}
        self._watch = watch
        self._spent = dict(spent or {})
        self._teaching = Teaching(parts, self.spent)
        self._canaries = canaries or CanaryWatch(CanaryConfig())
        self._trials = CanaryTrials(parts, self._canaries, watch)
        self._pauses: dict[AdapterName, tuple[float, HyprstreamError]] = {}
        self._cycle: Generator[None, None, None] | None = None
        self._learning: AdapterName | None = None
        self._lesson: Lesson[Weights] | None = None
        self._awaited: Future[Any] | None = None
        self._failure: Exception | None = None
        self._abandoned: AdapterName | None = None

    @property
    def failure(self) -> Exception | None:
        """What ended learning; None while it goes on."""
        return self._failure

    @property
    def learning(self) -> AdapterName | None:
        """The adapter whose version is being made."""
        return self._learning

    def spent(self, name: AdapterName) -> Spent:
        """Tell what the learning of an adapter took today."""
        return self._spent.setdefault(name, Spent()).today(self._parts.clock())

    def enrol(self, learner: Learner) -> None:
        """Let an adapter learn from its next version on, or in another way; from any thread."""
        self._learners = {**self._learners, learner.name: learner}

    def dismiss(self, name: AdapterName) -> None:
        """Let an adapter learn no more; from any thread.

        A version that is being made is given up with the next slice, its samples wait again.
        """
        self._learners = {n: learner for n, learner in self._learners.items() if n != name}

    def abandon(self, name: AdapterName) -> None:
        """Give up the version that is being made of an adapter, if there is one; from any thread.

        It happens with the next slice; a version that is on its way to the disk gets there.
        """
        if self._learning == name:
            self._abandoned = name

    def give_up(self) -> None:
        """Give up the version that is being made; its samples wait again.

        What is on its way to the disk gets there first: a publication that has begun ends.
        """
        while self._awaited is not None:
            self.wait()
            self.run_slice()
        if self._cycle is not None:
            self._cycle.close()
        if self._learning is not None:
            self._parts.buffer.give_back(self._learning)
        self._cycle, self._learning, self._lesson = None, None, None

    def pause(self, name: AdapterName) -> HyprstreamError | None:
        """Return why an adapter does not learn for a while; None if nothing stands against it."""
        until, why = self._pauses.get(name, (0.0, None))
        return why if self._parts.clock() < until else None

    def wait(self) -> None:
        """Return when what the loop waits for is there; from any thread."""
        awaited = self._awaited
        if awaited is not None:
            wait([awaited])

    def observe(
        self, name: AdapterName, version: VersionId, *, is_bad: bool, was_bad: bool | None = None
    ) -> None:
        """Note what a user said of an answer of a version, and had said of it before."""
        self._canaries.observe(name, version, is_bad=is_bad, was_bad=was_bad)
        trial = self._canaries.of(name)
        if trial is None or trial.canary.version != version:
            self._watch.observe(name, version, is_bad=is_bad, was_bad=was_bad)

    def answered(self, name: AdapterName, version: VersionId) -> None:
        """Note that a version gave an answer to its end."""
        self._canaries.answered(name, version)

    def compare(self, canaries: Mapping[AdapterName, Canary]) -> None:
        """Note which canaries are out by the store: people may have ended one.

        On the threads of `LoopParts.io`, so that none is just being ended by the loop.
        """
        self._canaries.compare(canaries, self._parts.trial)

    def ready(self) -> bool:
        """Tell whether there is a slice to run."""
        if self._failure is not None:
            return False
        if self._awaited is not None:
            return self._awaited.done()
        abandoned, self._abandoned = self._abandoned, None
        if self._learning is not None and (
            self._learning not in self._learners or self._learning == abandoned
        ):
            self.give_up()
        return (
            self._cycle is not None
            or self._watch.worse() is not None
            or self._due() is not None
            or self._next() is not None
        )

    def run_slice(self) -> None:
        """Do one piece of work."""
        began = self._parts.clock()
        try:
            if self._cycle is None:
                self._cycle = self._begin()
            next(self._cycle)
        except StopIteration:
            self._cycle, self._learning, self._lesson = None, None, None
        except Exception as error:
            # Whatever went wrong, it is not the requests' concern: learning ends, serving goes on.
            log.exception("learning has failed and is switched off")
            self._failure = error
        if self._learning is not None:
            self.spent(self._learning).seconds += self._parts.clock() - began
        if self._lesson is not None:
            self._lesson.seconds += self._parts.clock() - began

    # What comes next ------------------------------------------------------------------

    def _begin(self) -> Generator[None, None, None]:
        worse = self._watch.worse()
        if worse is not None:
            return self._take_back(worse)
        due = self._due()
        if due is not None:
            return self._settle(due)
        learner = self._next()
        assert learner is not None, "the loop was not ready"
        self._learning = learner.name
        return self._learn(learner)

    def _next(self) -> Learner | None:
        """Return who has samples, may spend more today, and has spent least."""
        due = [learner for learner in self._learners.values() if self._is_due(learner)]
        return min(due, key=lambda learner: self.spent(learner.name).seconds, default=None)

    def _due(self) -> Due | None:
        """Return a canary that is to be decided about, if there is one."""
        due = self._canaries.due(self._parts.clock())
        return next((one for one in due if self.pause(one.adapter) is None), None)

    def _is_due(self, learner: Learner) -> bool:
        config, buffer = learner.config, self._parts.buffer
        return (
            buffer.num_waiting(learner.name) >= config.min_waiting
            and buffer.num_held_out(learner.name) >= config.min_held_out
            and self.spent(learner.name).is_within(config.budget)
            and self.pause(learner.name) is None
            # What is learnt meanwhile would begin with the parent of the canary, not with it.
            and self._canaries.of(learner.name) is None
        )

    # One version ----------------------------------------------------------------------

    def _learn(self, learner: Learner) -> Generator[None, None, None]:
        parts, name = self._parts, learner.name
        try:
            parent, start = yield from self._wait(lambda: parts.versions.current(name))
        except HyprstreamError as error:  # deleted or damaged: others go on
            self._pause(name, error)
            return
        kept = parts.buffer.take(name, learner.config.max_samples)
        fresh = frozenset(one.id for one in kept if parts.buffer.is_taken(name, one.id))
        lesson = Lesson(learner=learner, parent=parent, start=start, kept=kept, fresh=fresh)
        self._lesson, teaching = lesson, self._teaching
        try:
            yield from teaching.collect(lesson)
            doubts = teaching.doubts(lesson)
            if doubts:
                yield from self._drop(lesson, "rejected", doubts)
                return
            yield from teaching.step(lesson)
            candidate = yield from teaching.candidate(lesson)
            verdict = yield from teaching.judge(lesson, candidate)
            if verdict.accepted:
                yield from self._publish(lesson, candidate)
            else:
                yield from self._drop(lesson, "rejected", (*lesson.drift, *verdict.reasons))
        except StaleParentError as error:
            # People win: what was learnt is dropped, and learnt again from where they are.
            yield from self._decide(lesson, "stale", (str(error),), None)
            parts.buffer.give_back(name)
        except UnavailableError as error:
            # A disk may have room again, so the samples wait, and nobody tries before a while.
            parts.buffer.give_back(name)
            self._pause(name, error)
        except HyprstreamError as error:
            yield from self._drop(lesson, "failed", (f"{error.code}: {error}",))
        finally:
            if name in parts.trainer.names:
                parts.trainer.close(name)

    def _pause(self, name: AdapterName, error: HyprstreamError) -> None:
        log.warning("learning of %s pauses: %s", name, error)
        self._pauses[name] = (self._parts.clock() + PAUSE_S, error)

    def _publish(self, lesson: Lesson[Weights], candidate: Weights) -> Pieces[None]:
        """Commit, install, promote; the journal knows of it before the name moves."""
        parts, name, parent = self._parts, lesson.learner.name, lesson.parent
        fresh = self._wanted(lesson)
        lesson.numbers["seconds"] = lesson.seconds

        def publish() -> tuple[Published, Trial | None]:
            rows: list[int] = []

            def committed(version: VersionId, share: float) -> None:
                decision = Decision(
                    adapter=name,
                    action="publishing",
                    parent=parent,
                    version=version,
                    reasons=lesson.drift,
                    numbers=lesson.numbers if share == 1 else {**lesson.numbers, "share": share},
                    samples=fresh,
                )
                rows.append(parts.journal.decide(decision))

            try:
                published = parts.versions.publish(
                    name, candidate, parent=parent, numbers=lesson.numbers, committed=committed
                )
            except HyprstreamError:
                for row in rows:
                    parts.journal.resolve(row, "abandoned")
                raise
            canary = published.canary
            for row in rows:
                parts.journal.resolve(row, "canary" if canary else "published", "used")
            return published, parts.trial(name, canary) if canary else None

        published, trial = yield from self._wait(publish)
        parts.buffer.settled(name, fresh, "used")
        parts.buffer.settle(name, lesson.ids, "dropped")  # what was not worth learning from
        if trial is None:
            self._watch.published(name, published.version, parent)
        else:
            self._canaries.begin(name, trial)

    def _settle(self, due: Due) -> Generator[None, None, None]:
        """Promote a canary, or withdraw it."""
        try:
            yield from self._trials.settle(due, self._wait)
        except UnavailableError as error:
            self._pause(due.adapter, error)

    def _take_back(self, worse: Worse) -> Generator[None, None, None]:
        """Move a name back from a version that users like less than its parent."""
        versions, journal = self._parts.versions, self._parts.journal
        self._watch.forget(worse.adapter)
        why = f"{worse.numbers['bad']:.0f} of its answers were disliked"

        def take_back() -> None:
            action: Action = "rolled_back"
            reasons = (why,)
            try:
                versions.roll_back(worse.adapter, expected=worse.version, why=why)
            except StaleParentError as error:  # people were faster
                action, reasons = "stale", (str(error),)
            decision = Decision(
                adapter=worse.adapter,
                action=action,
                parent=worse.version,
                version=worse.parent,
                reasons=reasons,
                numbers=worse.numbers,
            )
            journal.decide(decision)

        yield from self._wait(take_back)
        self._canaries.doubt(worse.adapter)  # a move of the name ends it

    # Pieces of those ------------------------------------------------------------------

    def _wait(self, work: Callable[[], Result]) -> Pieces[Result]:
        """Do work on a thread that may wait for a disk."""
        future: Future[Result] = self._parts.io.submit(work)
        self._awaited = future
        while not future.done():
            yield
        self._awaited = None
        return future.result()

    def _wanted(self, lesson: Lesson[Weights]) -> tuple[int, ...]:
        """Return the samples that were learnt from for the first time, deleted ones as well."""
        return tuple(kept.id for kept in lesson.learnt if kept.id in lesson.fresh)

    def _drop(
        self, lesson: Lesson[Weights], action: Action, reasons: tuple[str, ...]
    ) -> Pieces[None]:
        """Drop a candidate and the samples that it was made from, and say why."""
        yield from self._decide(lesson, action, reasons, "dropped")

    def _decide(
        self,
        lesson: Lesson[Weights],
        action: Action,
        reasons: tuple[str, ...],
        fate: Fate | None,
    ) -> Pieces[None]:
        buffer, name = self._parts.buffer, lesson.learner.name
        taken = tuple(number for number in lesson.ids if buffer.is_taken(name, number))
        lesson.numbers["seconds"] = lesson.seconds
        decision = Decision(
            adapter=name,
            action=action,
            parent=lesson.parent,
            reasons=reasons,
            numbers=lesson.numbers,
            samples=taken,
        )
        yield from self._wait(lambda: self._parts.journal.decide(decision, fate))
        if fate is not None:
            buffer.settled(name, taken, fate)
