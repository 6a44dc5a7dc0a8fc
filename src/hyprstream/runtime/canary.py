"""Whether a canary may answer everybody: what users say of it, how long it was tried. No torch.

A canary is withdrawn when users like it less than its parent, and else tried until it has given
so many answers, or for so long: silence has an end too. What was said of the parent before the
canary began counts as well, since it is about the same version.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from hyprstream.errors import InvalidSettingsError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.watch import fisher
from hyprstream.store.records import Canary

COMPLETE = frozenset({"stop", "length", "stop_string"})
"""How answers end that count: not those that were broken off."""

Why = Literal["worse", "answers", "time", "gone"]
"""Users like it less; it has given enough answers, or was tried for long enough; it is not to be
found any more."""

ENDED_ELSEWHERE = "the name or its tag was moved, or the process ended meanwhile"
"""Why a canary is not to be found any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryConfig:
    """How long a canary is tried, and when it is withdrawn."""

    max_answers: int = 200
    """Answers of a canary after which it is promoted, if nothing speaks against it."""
    max_hours: float = 24.0
    """Hours after which it is promoted with fewer answers."""
    min_answers: int = 20
    """Fewest answers with which it is; until then it is tried on."""
    min_opinions: int = 8
    """Fewest opinions of users on a canary that is withdrawn for them."""
    alpha: float = 0.01
    """How often chance alone may withdraw one that is as good as its parent, at each look; every
    opinion is a look."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        for name in ("max_answers", "min_answers", "min_opinions"):
            if getattr(self, name) < 1:
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint="Make it 1 or more."
                )
        if not (0 < self.alpha < 1 and 0 < self.max_hours < math.inf):
            raise InvalidSettingsError(
                f"alpha is {self.alpha}, max_hours {self.max_hours}",
                hint="Make them a number between 0 and 1, and one above 0.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What is known of one version.

    Attributes:
        answers: That it gave since the canary began.
        good: Answers that users liked, at any time.
        bad: Answers that they disliked or corrected.
    """

    answers: int = 0
    good: int = 0
    bad: int = 0

    @property
    def num_opinions(self) -> int:
        """Answers of which something was said."""
        return self.good + self.bad

    def heard(self, *, is_bad: bool, was_bad: bool | None) -> "Side":
        """Add an opinion on an answer, instead of an earlier one on the same answer."""
        good, bad = self.good, self.bad
        if was_bad is not None:
            good, bad = max(0, good - (not was_bad)), max(0, bad - was_bad)
        return replace(self, good=good + (not is_bad), bad=bad + is_bad)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """How a canary stands.

    Attributes:
        canary: The canary.
        own: What is known of it.
        others: What is known of its parent.
    """

    canary: Canary
    own: Side = Side()
    others: Side = Side()

    @property
    def since(self) -> float:
        """When it began, in seconds since 1970."""
        return self.canary.since.timestamp()

    def chance(self, min_opinions: int) -> float:
        """Return how likely so many dislikes are if users like it as much as its parent.

        Of a parent of which too few said something it is assumed that they like it as often as
        not.
        """
        own, others = self.own, self.others
        if others.num_opinions >= min_opinions:
            return fisher(own.bad, own.good, others.bad, others.good)
        number = own.num_opinions
        ways = sum(math.comb(number, bad) for bad in range(own.bad, number + 1))
        return ways / (1 << number)

    def end(self, config: CanaryConfig) -> Why | None:
        """Tell why it is to be decided about, whatever the time; None lets it go on."""
        own = self.own
        if own.num_opinions >= config.min_opinions and (
            self.chance(config.min_opinions) < config.alpha
        ):
            return "worse"
        return "answers" if own.answers >= config.max_answers else None

    def is_over(self, config: CanaryConfig, now: float) -> bool:
        """Tell whether it was tried for as long as it shall be."""
        is_old = now >= self.since + 3600 * config.max_hours
        return is_old and self.own.answers >= config.min_answers

    def numbers(self, config: CanaryConfig, now: float) -> dict[str, float]:
        """Return all that was looked at, for the journal."""
        own, others = self.own, self.others
        return {
            "share": self.canary.share,
            "answers": float(own.answers), "good": float(own.good), "bad": float(own.bad),
            "parent_answers": float(others.answers),
            "parent_good": float(others.good), "parent_bad": float(others.bad),
            "chance": self.chance(config.min_opinions),
            "hours": max(0.0, now - self.since) / 3600,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A canary that is to be decided about.

    Attributes:
        adapter: Whose it is.
        trial: How it stands.
        why: Why now.
        numbers: What was looked at.
    """

    adapter: AdapterName
    trial: Trial
    why: Why
    numbers: Mapping[str, float]


class CanaryWatch:
    """The canaries that are out. For any thread.

    Attributes:
        config: When they are decided about.
    """

    def __init__(self, config: CanaryConfig) -> None:
        self.config = config
        self._lock = threading.Lock()
        self._trials: dict[AdapterName, Trial] = {}
        self._ends: dict[AdapterName, Why | None] = {}  # but for the time

    def begin(self, adapter: AdapterName, trial: Trial) -> None:
        """Watch a canary from now on, with what is known of it and its parent already."""
        with self._lock:
            self._trials[adapter] = trial
            self._ends[adapter] = trial.end(self.config)

    def end(self, adapter: AdapterName) -> None:
        """Watch it no longer."""
        with self._lock:
            self._trials.pop(adapter, None)
            self._ends.pop(adapter, None)

    def of(self, adapter: AdapterName) -> Trial | None:
        """Return how the canary of an adapter stands, if one is out."""
        with self._lock:
            return self._trials.get(adapter)

    def compare(
        self,
        out: Mapping[AdapterName, Canary],
        trial_of: Callable[[AdapterName, Canary], Trial],
    ) -> None:
        """Watch all that are out by the store; what became of others is to be found out."""
        with self._lock:
            for adapter, trial in self._trials.items():
                if out.get(adapter) != trial.canary:
                    self._ends[adapter] = "gone"
            new = [one for one in out.items() if one[0] not in self._trials]
        for adapter, canary in new:
            self.begin(adapter, trial_of(adapter, canary))

    def doubt(self, adapter: AdapterName) -> None:
        """Note that the canary of an adapter, if one was out, may have been ended."""
        with self._lock:
            if adapter in self._trials:
                self._ends[adapter] = "gone"

    def answered(self, adapter: AdapterName, version: VersionId) -> None:
        """Count an answer that was given to its end."""
        with self._lock:
            self._change(adapter, version, lambda side: replace(side, answers=side.answers + 1))
            trial = self._trials.get(adapter)
            # It comes often and tells nothing of what users think: only the number is looked at.
            if trial is not None and trial.own.answers >= self.config.max_answers:
                self._look(adapter, trial)

    def observe(
        self, adapter: AdapterName, version: VersionId, *, is_bad: bool, was_bad: bool | None = None
    ) -> None:
        """Note an opinion on an answer; `was_bad` is the one before on the same answer."""
        with self._lock:
            self._change(adapter, version, lambda side: side.heard(is_bad=is_bad, was_bad=was_bad))
            trial = self._trials.get(adapter)
            if trial is not None:
                self._look(adapter, trial)

    def due(self, now: float) -> Iterator[Due]:
        """Give those that are to be decided about; `now` is in seconds since 1970."""
        config = self.config
        with self._lock:
            known = [(name, trial, self._ends[name]) for name, trial in self._trials.items()]
        for adapter, trial, end in known:
            why: Why | None = end or ("time" if trial.is_over(config, now) else None)
            if why is not None:
                numbers = trial.numbers(config, now)
                yield Due(adapter=adapter, trial=trial, why=why, numbers=numbers)

    def _change(
        self, adapter: AdapterName, version: VersionId, change: Callable[[Side], Side]
    ) -> None:
        trial = self._trials.get(adapter)
        if trial is None:
            return
        if version == trial.canary.parent:
            self._trials[adapter] = replace(trial, others=change(trial.others))
        elif version == trial.canary.version:
            self._trials[adapter] = replace(trial, own=change(trial.own))

    def _look(self, adapter: AdapterName, trial: Trial) -> None:
        if self._ends[adapter] != "gone":
            self._ends[adapter] = trial.end(self.config)
