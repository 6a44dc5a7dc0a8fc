"""How one version is made of samples: collect, step, judge. No torch.

Each of these is a generator that yields between pieces of work; each piece is one slice.
"""

import math
import random
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Generic

from hyprstream.refs import AdapterName
from hyprstream.runtime.learners import (
    Learner,
    LessonProgress,
    LoopParts,
    Phase,
    Spent,
    Weights,
)
from hyprstream.runtime.lesson import Lesson, Pieces, losses, pair, run, spread
from hyprstream.train.buffer import Kept
from hyprstream.train.gate import Evidence, Pairs, Verdict
from hyprstream.train.sample import Sample
from hyprstream.train.screen import counted, rotated, screen, unlikely, with_prompts

_ASSOCIATED = 64  # samples that are tried with the prompts of others
# Of a pass: its longest slices grow with them, and are 20 ms of SmolLM2 with so many.
_PASS_TOKENS = 512


class Teaching(Generic[Weights]):
    """Makes candidates, one after the other, and measures them.

    Args:
        parts: What the loop joins.
        spent: Tells what the learning of an adapter took today; steps are added to it.
    """

    def __init__(self, parts: LoopParts[Weights], spent: Callable[[AdapterName], Spent]) -> None:
        self._parts = parts
        self._spent = spent
        self._origin: dict[AdapterName, tuple[Learner, dict[str, list[float]]]] = {}

    def collect(self, lesson: Lesson[Weights]) -> Pieces[None]:
        """Choose what is worth learning from, and measure it under the parent."""
        trainer = self._parts.trainer
        self._tell(lesson, "screening", 0)
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

    def doubts(self, lesson: Lesson[Weights]) -> tuple[str, ...]:
        """Return why no time shall be spent on these samples."""
        found = self._parts.gate.doubts(lesson.material)
        lesson.numbers |= found.numbers
        nothing = () if lesson.learnt else ("no sample is worth learning from",)
        return (*found.reasons, *nothing)

    def step(self, lesson: Lesson[Weights]) -> Pieces[None]:
        """Take optimizer steps over what was chosen, in an order that follows from the seed."""
        learner, trainer = lesson.learner, self._parts.trainer
        config, name = learner.config, learner.name
        trainer.open(name, lesson.start, spec=learner.spec, config=learner.training)
        chance = random.Random(config.seed)  # noqa: S311 - an order, no secret
        num_steps = max(1, round(config.epochs * len(lesson.learnt) / config.samples_per_step))
        self._tell(lesson, "learning", num_steps)
        order: list[Kept] = []
        for _ in range(num_steps):
            spent = self._spent(name)
            if not spent.is_within(config.budget):
                break
            while len(order) < config.samples_per_step:
                order += chance.sample(lesson.learnt, len(lesson.learnt))
            chosen, order = order[: config.samples_per_step], order[config.samples_per_step :]
            samples = [kept.sample for kept in chosen if self._is_wanted(kept)]
            if samples:
                anchors = self._anchors(learner, chance)
                for part, held_by in _parts(samples, anchors):
                    yield from run(trainer.begin(name, part, anchors=held_by))
                report = yield from run(trainer.begin_apply(name))
                lesson.gradient_norms.append(report.grad_norm)
                spent.steps += 1
                spent.tokens += report.num_tokens
                lesson.train_losses.append(report.loss)
                lesson.num_tokens += report.num_tokens
                self._tell(lesson, "learning", num_steps)
                yield from self._look(lesson, num_steps)
                if lesson.drift or lesson.num_worse >= config.patience:
                    break
        lesson.numbers["steps"] = len(lesson.gradient_norms)
        lesson.numbers["tokens"] = lesson.num_tokens

    def candidate(self, lesson: Lesson[Weights]) -> Pieces[Weights]:
        """Return what came of the steps: of those up to the best look, if there was one."""
        if lesson.best is not None:
            return lesson.best
        found: Weights = yield from run(self._parts.trainer.begin_snapshot(lesson.learner.name))
        return found

    def judge(self, lesson: Lesson[Weights], candidate: Weights) -> Pieces[Verdict]:
        """Measure parent and candidate, and ask the gate."""
        learner, parts = lesson.learner, self._parts
        self._tell(lesson, "judging", len(lesson.gradient_norms))
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
        if held_out:
            lesson.numbers["parent_held_out_loss"] = statistics.fmean(own.before)
            lesson.numbers["held_out_loss"] = statistics.fmean(own.after)
        return verdict

    def _look(self, lesson: Lesson[Weights], num_steps: int) -> Pieces[None]:
        """Find out from time to time what is of use, and whether trusted sets got worse.

        The gate measures all again, on more samples: what is chosen here is only which of a few
        candidates it is shown. The last step is looked at only if there is another to choose.
        """
        learner, parts, taken = lesson.learner, self._parts, len(lesson.gradient_norms)
        config, is_last = learner.config, taken == num_steps
        if not config.look_every:
            return
        if lesson.best is None if is_last else taken % config.look_every:
            return
        now = yield from run(parts.trainer.begin_snapshot(learner.name))
        lesson.drift = yield from self._drift(lesson, now)
        if lesson.drift:
            lesson.numbers["drifted_at_step"] = taken
            return
        if not lesson.looked_at:
            held_out = parts.buffer.held_out(learner.name)
            places = spread(len(held_out), config.look_samples)
            lesson.looked_at = [held_out[place].sample for place in places]
        found = yield from losses(parts.trainer, lesson, now, lesson.looked_at)
        loss = statistics.fmean(found) if found else math.inf
        if loss < lesson.best_loss:
            lesson.best, lesson.best_loss, lesson.num_worse = now, loss, 0
            lesson.numbers["best_at_step"] = taken
        else:
            lesson.num_worse += 1

    def _drift(self, lesson: Lesson[Weights], now: Weights) -> Pieces[tuple[str, ...]]:
        """Tell which trusted sets got worse than the gate allows."""
        learner, parts, config = lesson.learner, self._parts, lesson.learner.config
        origin = yield from self._base_losses(lesson)
        pairs, ours = {}, {}
        for name, samples in learner.trusted.items():
            places = spread(len(samples), config.look_samples)
            chosen = [samples[place] for place in places]
            if name not in lesson.trusted_losses:
                before = yield from losses(parts.trainer, lesson, lesson.start, chosen)
                lesson.trusted_losses[name] = before
            after = yield from losses(parts.trainer, lesson, now, chosen)
            pairs[name] = Pairs(before=lesson.trusted_losses[name], after=after)
            ours[name] = [origin[name][place] for place in places]
        return parts.gate.drift(pairs, ours)

    def _tell(self, lesson: Lesson[Weights], phase: Phase, num_steps: int) -> None:
        self._parts.tell(
            LessonProgress(
                adapter=lesson.learner.name,
                parent=lesson.parent,
                phase=phase,
                step=len(lesson.train_losses),
                num_steps=num_steps,
                loss=lesson.train_losses[-1] if lesson.train_losses else None,
                num_tokens=lesson.num_tokens,
            )
        )

    def _base_losses(self, lesson: Lesson[Weights]) -> Pieces[Mapping[str, list[float]]]:
        """Measure the base model on the trusted sets, once for all versions of a learner."""
        learner = lesson.learner
        whose, known = self._origin.get(learner.name, (learner, {}))
        if whose is not learner:  # it may be trusted on other samples now
            known = {}
        self._origin[learner.name] = learner, known
        for name, samples in learner.trusted.items():
            if name not in known:
                known[name] = yield from losses(self._parts.trainer, lesson, None, samples)
        return known

    def _anchors(self, learner: Learner, chance: random.Random) -> Sequence[Sample] | None:
        if not learner.anchors:
            return None
        number = min(learner.config.anchors_per_step, len(learner.anchors))
        return chance.sample(learner.anchors, number)

    def _is_wanted(self, kept: Kept) -> bool:
        """Tell whether a sample was not withdrawn meanwhile."""
        return self._parts.buffer.is_wanted(kept)


def _parts(
    samples: Sequence[Sample], anchors: Sequence[Sample] | None
) -> Iterator[tuple[Sequence[Sample], Sequence[Sample] | None]]:
    """Divide a step into passes, each held by some of the anchors and by one at least."""
    parts: list[list[Sample]] = []
    size = 0
    for sample in samples:
        if not parts or size + len(sample.token_ids) > _PASS_TOKENS:
            parts.append([])
            size = 0
        parts[-1].append(sample)
        size += len(sample.token_ids)
    for place, part in enumerate(parts):
        if not anchors:
            yield part, None
        else:
            yield part, anchors[place :: len(parts)] or anchors[place % len(anchors) :][:1]
