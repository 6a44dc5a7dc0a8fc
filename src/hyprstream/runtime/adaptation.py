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
import random
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Generic

from hyprstream.errors import HyprstreamError, StaleParentError, UnavailableError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.journal_rows import Action, Decision
from hyprstream.runtime.learners import Learner, LoopParts, Spent, Weights
from hyprstream.runtime.lesson import Lesson, Pieces, Result, losses, pair, run
from hyprstream.runtime.watch import FeedbackWatch, Worse
from hyprstream.train.buffer import Fate, Kept
from hyprstream.train.gate import Evidence, Pairs, Verdict
from hyprstream.train.sample import Sample
from hyprstream.train.screen import counted, rotated, screen, unlikely, with_prompts

log = logging.getLogger(__name__)

PAUSE_S = 60.0
"""How long an adapter does not learn after a disk, or the engine, refused."""

_ASSOCIATED = 64  # samples that are tried with the prompts of others


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
    """

    def __init__(
        self, parts: LoopParts[Weights], learners: Iterable[Learner], watch: FeedbackWatch
    ) -> None:
        self._parts = parts
        self._learners = {learner.name: learner for learner in learners}
        self._watch = watch
        self._spent = {name: Spent() for name in self._learners}
        self._paused_until: dict[AdapterName, float] = {}
        self._origin: dict[AdapterName, dict[str, list[float]]] = {}
        self._cycle: Generator[None, None, None] | None = None
        self._learning: AdapterName | None = None
        self._awaited: Future[Any] | None = None
        self._failure: Exception | None = None

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
        return self._spent[name].today(self._parts.clock())

    def observe(self, name: AdapterName, version: VersionId, *, is_bad: bool) -> None:
        """Note what a user said of an answer of a version."""
        self._watch.observe(name, version, is_bad=is_bad)

    def ready(self) -> bool:
        """Tell whether there is a slice to run."""
        if self._failure is not None:
            return False
        if self._awaited is not None:
            return self._awaited.done()
        return (
            self._cycle is not None or self._watch.worse() is not None or self._next() is not None
        )

    def run_slice(self) -> None:
        """Do one piece of work."""
        began = self._parts.clock()
        try:
            if self._cycle is None:
                self._cycle = self._begin()
            next(self._cycle)
        except StopIteration:
            self._cycle, self._learning = None, None
        except Exception as error:
            # Whatever went wrong, it is not the requests' concern: learning ends, serving goes on.
            log.exception("learning has failed and is switched off")
            self._failure = error
        if self._learning is not None:
            self.spent(self._learning).seconds += self._parts.clock() - began

    # What comes next ------------------------------------------------------------------

    def _begin(self) -> Generator[None, None, None]:
        worse = self._watch.worse()
        if worse is not None:
            return self._take_back(worse)
        learner = self._next()
        assert learner is not None, "the loop was not ready"
        self._learning = learner.name
        return self._learn(learner)

    def _next(self) -> Learner | None:
        """Return who has samples, may spend more today, and has spent least."""
        due = [learner for learner in self._learners.values() if self._is_due(learner)]
        return min(due, key=lambda learner: self.spent(learner.name).seconds, default=None)

    def _is_due(self, learner: Learner) -> bool:
        config, buffer = learner.config, self._parts.buffer
        return (
            buffer.num_waiting(learner.name) >= config.min_waiting
            and buffer.num_held_out(learner.name) >= config.min_held_out
            and self.spent(learner.name).is_within(config.budget)
            and self._parts.clock() >= self._paused_until.get(learner.name, 0.0)
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
        lesson = Lesson(learner=learner, parent=parent, start=start, kept=kept)
        try:
            yield from self._collect(lesson)
            doubts = self._doubts(lesson)
            if doubts:
                yield from self._drop(lesson, "rejected", doubts)
                return
            yield from self._step(lesson)
            candidate = yield from run(parts.trainer.begin_snapshot(name))
            verdict = yield from self._judge(lesson, candidate)
            if verdict.accepted:
                yield from self._publish(lesson, candidate)
            else:
                yield from self._drop(lesson, "rejected", verdict.reasons)
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
        self._paused_until[name] = self._parts.clock() + PAUSE_S

    def _collect(self, lesson: Lesson[Weights]) -> Pieces[None]:
        """Choose what is worth learning from, and measure it under the parent."""
        trainer = self._parts.trainer
        samples = [kept.sample for kept in lesson.kept]
        suspects = screen(samples)
        plausible = [kept for i, kept in enumerate(lesson.kept) if i not in suspects]
        found = yield from losses(trainer, lesson, lesson.start, [k.sample for k in plausible])
        noise = unlikely(found, lesson.learner.uniform_loss)
        lesson.learnt = [kept for i, kept in enumerate(plausible) if i not in noise]
        lesson.losses = found
        numbers = {f"suspect/{kind}": n for kind, n in counted({**suspects}).items()}
        numbers["suspect/unlikely"] = len(noise)
        lesson.numbers = {
            "samples": len(samples),
            "suspects": len(suspects) + len(noise),
            **numbers,
        }
        asked = with_prompts([kept.sample for kept in lesson.learnt])[:_ASSOCIATED]
        if len(asked) > 1:
            own = yield from losses(trainer, lesson, lesson.start, asked)
            others = yield from losses(trainer, lesson, lesson.start, rotated(asked))
            lesson.association = Pairs(before=own, after=others)

    def _doubts(self, lesson: Lesson[Weights]) -> tuple[str, ...]:
        """Return why no time shall be spent on these samples."""
        found = self._parts.gate.doubts(lesson.material)
        lesson.numbers |= found.numbers
        nothing = () if lesson.learnt else ("no sample is worth learning from",)
        return (*found.reasons, *nothing)

    def _step(self, lesson: Lesson[Weights]) -> Pieces[None]:
        """Take optimizer steps over what was chosen, in an order that follows from the seed."""
        learner, trainer = lesson.learner, self._parts.trainer
        config, name = learner.config, learner.name
        trainer.open(name, lesson.start, spec=learner.spec, config=learner.training)
        chance = random.Random(config.seed)  # noqa: S311 - an order, no secret
        num_steps = max(1, round(config.epochs * len(lesson.learnt) / config.samples_per_step))
        order: list[Kept] = []
        for _ in range(num_steps):
            if not self.spent(name).is_within(config.budget):
                break
            while len(order) < config.samples_per_step:
                order += chance.sample(lesson.learnt, len(lesson.learnt))
            chosen, order = order[: config.samples_per_step], order[config.samples_per_step :]
            samples = [kept.sample for kept in chosen if self._is_wanted(kept)]
            if samples:
                anchors = self._anchors(learner, chance, len(samples))
                yield from run(trainer.begin(name, samples, anchors=anchors))
                report = yield from run(trainer.begin_apply(name))
                lesson.gradient_norms.append(report.grad_norm)
                self.spent(name).steps += 1
                self.spent(name).tokens += report.num_tokens
        lesson.numbers["steps"] = len(lesson.gradient_norms)

    def _judge(self, lesson: Lesson[Weights], candidate: Weights) -> Pieces[Verdict]:
        """Measure parent and candidate, and ask the gate."""
        learner, parts = lesson.learner, self._parts
        held_out = [kept.sample for kept in parts.buffer.held_out(learner.name)]
        trusted = {}
        own = yield from pair(parts.trainer, lesson, candidate, held_out)
        for name, samples in learner.trusted.items():
            trusted[name] = yield from pair(parts.trainer, lesson, candidate, samples)
        origin = yield from self._base_losses(lesson)
        verdict = parts.gate.verdict(
            Evidence(
                held_out=own,
                trusted=trusted,
                origin=origin,
                material=lesson.material,
                gradient_norms=lesson.gradient_norms,
                norms=(parts.norm_of(lesson.start), parts.norm_of(candidate)),
            )
        )
        lesson.numbers |= verdict.numbers
        return verdict

    def _publish(self, lesson: Lesson[Weights], candidate: Weights) -> Pieces[None]:
        """Commit, install, promote; the journal knows of it before the name moves."""
        parts, name, parent = self._parts, lesson.learner.name, lesson.parent
        fresh = self._wanted(lesson)

        def publish() -> VersionId:
            rows: list[int] = []

            def committed(version: VersionId) -> None:
                decision = Decision(
                    adapter=name,
                    action="publishing",
                    parent=parent,
                    version=version,
                    numbers=lesson.numbers,
                    samples=fresh,
                )
                rows.append(parts.journal.decide(decision))

            try:
                version = parts.versions.publish(
                    name, candidate, parent=parent, numbers=lesson.numbers, committed=committed
                )
            except HyprstreamError:
                for row in rows:
                    parts.journal.resolve(row, "abandoned")
                raise
            for row in rows:
                parts.journal.resolve(row, "published", "used")
            return version

        version = yield from self._wait(publish)
        parts.buffer.settled(name, fresh, "used")
        parts.buffer.settle(name, lesson.ids, "dropped")  # what was not worth learning from
        self._watch.published(name, version, parent)

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

    # Pieces of those ------------------------------------------------------------------

    def _wait(self, work: Callable[[], Result]) -> Pieces[Result]:
        """Do work on a thread that may wait for a disk."""
        future: Future[Result] = self._parts.io.submit(work)
        self._awaited = future
        while not future.done():
            yield
        self._awaited = None
        return future.result()

    def _base_losses(self, lesson: Lesson[Weights]) -> Pieces[Mapping[str, list[float]]]:
        """Measure the base model on the trusted sets, once for all versions."""
        learner = lesson.learner
        known = self._origin.setdefault(learner.name, {})
        for name, samples in learner.trusted.items():
            if name not in known:
                known[name] = yield from losses(self._parts.trainer, lesson, None, samples)
        return known

    def _anchors(
        self, learner: Learner, chance: random.Random, number: int
    ) -> Sequence[Sample] | None:
        if not learner.anchors:
            return None
        return chance.sample(learner.anchors, min(number, len(learner.anchors)))

    def _is_wanted(self, kept: Kept) -> bool:
        """Tell whether a sample was not withdrawn meanwhile."""
        return self._parts.buffer.is_wanted(kept)

    def _wanted(self, lesson: Lesson[Weights]) -> tuple[int, ...]:
        """Return the samples that were learnt from for the first time."""
        buffer, name = self._parts.buffer, lesson.learner.name
        return tuple(kept.id for kept in lesson.learnt if buffer.is_taken(name, kept.id))

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
