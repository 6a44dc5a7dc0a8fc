"""Whether a new version does worse than the one before, by what users say. Plain Python."""

import math
import threading
from dataclasses import dataclass

from hyprstream.errors import InvalidSettingsError
from hyprstream.refs import AdapterName, VersionId


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchConfig:
    """When a version is taken back by itself."""

    min_opinions: int = 8
    """Fewest opinions on the new version."""
    alpha: float = 0.01
    """How often chance alone may take back a version that is as good as its parent, at each
    look; every opinion is a look."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        if self.min_opinions < 1 or not 0 < self.alpha < 1:
            raise InvalidSettingsError(
                f"min_opinions is {self.min_opinions}, alpha {self.alpha}",
                hint="Make them 1 or more, and between 0 and 1.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Worse:
    """A version that users like less than its parent.

    Attributes:
        adapter: Whose version it is.
        version: The version.
        parent: Its parent.
        numbers: Opinions on both, and how likely they are by chance.
    """

    adapter: AdapterName
    version: VersionId
    parent: VersionId
    numbers: dict[str, float]


@dataclass(slots=True)
class _Opinions:
    good: int = 0
    bad: int = 0


class FeedbackWatch:
    """Opinions on the newest version of each adapter and on its parent. For any thread."""

    def __init__(self, config: WatchConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._newest: dict[AdapterName, tuple[VersionId, VersionId]] = {}
        self._opinions: dict[AdapterName, dict[VersionId, _Opinions]] = {}
        self._worse: dict[AdapterName, Worse] = {}

    def published(self, adapter: AdapterName, version: VersionId, parent: VersionId) -> None:
        """Watch a version from now on; what was said of its parent still counts."""
        with self._lock:
            before = self._opinions.get(adapter, {}).get(parent, _Opinions())
            self._newest[adapter] = (version, parent)
            self._opinions[adapter] = {parent: before, version: _Opinions()}
            self._worse.pop(adapter, None)

    def forget(self, adapter: AdapterName) -> None:
        """Watch an adapter no longer."""
        with self._lock:
            self._newest.pop(adapter, None)
            self._worse.pop(adapter, None)

    def observe(
        self, adapter: AdapterName, version: VersionId, *, is_bad: bool, was_bad: bool | None = None
    ) -> None:
        """Note an opinion on an answer of a version; `was_bad` is the one before on the same."""
        with self._lock:
            known = self._opinions.setdefault(adapter, {})
            watched = self._newest.get(adapter)
            if watched is None:
                if version not in known:  # only of the version that serves now
                    known.clear()
                known.setdefault(version, _Opinions())
            opinions = known.get(version)
            if opinions is None:
                return
            if was_bad is not None:  # by one answer nobody counts twice
                opinions.bad = max(0, opinions.bad - was_bad)
                opinions.good = max(0, opinions.good - (not was_bad))
            if is_bad:
                opinions.bad += 1
            else:
                opinions.good += 1
            if watched is not None:
                self._look(adapter, *watched)

    def worse(self) -> Worse | None:
        """Return a version that is to be taken back, if there is one."""
        with self._lock:
            return next(iter(self._worse.values()), None)

    def _look(self, adapter: AdapterName, version: VersionId, parent: VersionId) -> None:
        new, old = self._opinions[adapter][version], self._opinions[adapter][parent]
        if new.good + new.bad < self._config.min_opinions:
            return
        chance = fisher(new.bad, new.good, old.bad, old.good)
        if chance < self._config.alpha:
            numbers = {
                "bad": float(new.bad), "good": float(new.good),
                "parent_bad": float(old.bad), "parent_good": float(old.good), "chance": chance,
            }  # fmt: skip
            self._worse[adapter] = Worse(
                adapter=adapter, version=version, parent=parent, numbers=numbers
            )


def fisher(bad: int, good: int, other_bad: int, other_good: int) -> float:
    """Return how likely so many bad ones or more are, if both have the same share.

    Fisher's exact test, one-sided: the tail of the hypergeometric distribution. In logarithms,
    since every opinion is a look, and there may be a hundred thousand of them.

    Example:
        >>> round(fisher(8, 2, 1, 9), 4)  # scipy.stats.fisher_exact says the same
        0.0027
    """
    number, other = bad + good, other_bad + other_good
    all_bad = bad + other_bad
    all_ways = _log_ways(number + other, all_bad)
    terms = (
        math.exp(_log_ways(number, k) + _log_ways(other, all_bad - k) - all_ways)
        for k in range(max(bad, all_bad - other), min(number, all_bad) + 1)
    )
    return min(1.0, math.fsum(terms))


def _log_ways(number: int, chosen: int) -> float:
    """Return the logarithm of how many ways there are to choose some of a number of things."""
    return math.lgamma(number + 1) - math.lgamma(chosen + 1) - math.lgamma(number - chosen + 1)
