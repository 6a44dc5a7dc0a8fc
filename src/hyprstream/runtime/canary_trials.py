"""What becomes of canaries: measured once more, then promoted or withdrawn. No torch.

Part of the adaptation loop: each decision is a generator that yields between pieces of work.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Generic, Protocol, runtime_checkable

from hyprstream.errors import HyprstreamError, StaleParentError, UnavailableError
from hyprstream.runtime.canary import ENDED_ELSEWHERE, CanaryWatch, Due, Why
from hyprstream.runtime.journal_rows import Action, Decision
from hyprstream.runtime.learners import LearnerConfig, LoopParts, Weights
from hyprstream.runtime.lesson import Pieces, Result, measured
from hyprstream.runtime.watch import FeedbackWatch
from hyprstream.train.gate import Pairs
from hyprstream.train.paired import bound_mean

_EVAL_TOKENS = LearnerConfig().eval_tokens
_FEWEST = 8  # samples: the bounds of means are not to be trusted below

_SAID: Mapping[Why, str] = {
    "answers": "it gave enough answers, and nothing spoke against it",
    "time": "it was tried for long enough, and nothing spoke against it",
}


@runtime_checkable
class Waiting(Protocol):
    """Does work on a thread that may wait for a disk."""

    def __call__(self, work: Callable[[], Result]) -> Pieces[Result]:
        """Return what yields until it is done."""
        ...


class CanaryTrials(Generic[Weights]):
    """Decides about the canaries that are out.

    Args:
        parts: What the loop joins.
        canaries: How they stand.
        watch: Told of those that are promoted.
    """

    def __init__(
        self,
        parts: LoopParts[Weights],
        canaries: CanaryWatch,
        watch: FeedbackWatch,
    ) -> None:
        self._parts = parts
        self._canaries = canaries
        self._watch = watch

    def settle(self, due: Due, wait: Waiting) -> Pieces[None]:
        """Decide about a canary.

        Raises:
            UnavailableError: A disk, or the engine, refuses; it is out as before.
        """
        name, canary, numbers = due.adapter, due.trial.canary, dict(due.numbers)
        reasons: tuple[str, ...] = ()
        if due.why == "worse":
            reasons = (_disliked(numbers),)
        elif due.why != "gone":
            try:
                reasons = yield from self._doubts(due, numbers, wait)
            except UnavailableError:
                raise
            except HyprstreamError as error:
                reasons = (f"{error.code}: {error}",)
        action = yield from wait(lambda: self._end(due, reasons, numbers))
        if action is None:  # it is out, whatever was thought
            self._canaries.begin(name, due.trial)
            return
        self._canaries.end(name)
        if action == "promoted":
            self._watch.published(name, canary.version, canary.parent)

    def _doubts(
        self, due: Due, numbers: dict[str, float], wait: Waiting
    ) -> Pieces[tuple[str, ...]]:
        """Measure it and its parent on what people wrote since it began; say what is against it."""
        parts, canary = self._parts, due.trial.canary
        samples = yield from wait(lambda: parts.arrived(due.adapter, due.trial.since))
        numbers["arrived"] = float(len(samples))
        if len(samples) < _FEWEST:
            return ()
        losses = []
        for version in (canary.parent, canary.version):
            weights = yield from wait(partial(parts.versions.load, version))
            found = yield from measured(parts.trainer, weights, samples, _EVAL_TOKENS)
            losses.append(found)
        before, after = losses
        bounds = bound_mean(Pairs(before=before, after=after).changes, self._canaries.config.alpha)
        if not math.isfinite(bounds.low):
            return ("a loss is no finite number",)
        numbers |= {"arrived_change": bounds.mean, "arrived_low": bounds.low}
        if bounds.low > 0:
            return (f"it is worse on what came since: {bounds.mean:+.4f} ({bounds.low:+.4f})",)
        return ()

    def _end(
        self, due: Due, reasons: tuple[str, ...], numbers: Mapping[str, float]
    ) -> Action | None:
        """Promote or withdraw it, and say so; None if it is out although it was thought gone."""
        versions, name, canary = self._parts.versions, due.adapter, due.trial.canary
        action: Action = "withdrawn" if reasons else "promoted"
        if due.why == "gone" and versions.canary(name) == canary:
            return None
        try:
            if due.why == "gone":
                raise StaleParentError(ENDED_ELSEWHERE)
            if reasons:
                versions.withdraw_canary(name, canary)
            else:
                reasons = (_SAID[due.why],)
                versions.promote_canary(name, canary, reasons[0])
        except StaleParentError:  # people were faster
            action = "promoted" if versions.has_served(name, canary) else "withdrawn"
            reasons = (ENDED_ELSEWHERE,)
        self._parts.journal.decide(
            Decision(
                adapter=name,
                action=action,
                parent=canary.parent,
                version=canary.version,
                reasons=reasons,
                numbers=numbers,
            )
        )
        return action


def _disliked(numbers: Mapping[str, float]) -> str:
    own, others = (
        f"{numbers[bad]:.0f} of {numbers[bad] + numbers[good]:.0f}"
        for bad, good in (("bad", "good"), ("parent_bad", "parent_good"))
    )
    return f"{own} opinions on it are dislikes, of those on its parent {others}"
