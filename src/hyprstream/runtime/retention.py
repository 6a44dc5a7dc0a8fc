"""How long, and how many, samples are kept; and what is taken out before that. No torch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hyprstream.errors import AdapterNotFoundError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.journal_rows import Decision
from hyprstream.runtime.policy import LearningPolicy, Policies
from hyprstream.runtime.publishing import recover
from hyprstream.runtime.retention_config import RetentionConfig
from hyprstream.runtime.settings import Settings
from hyprstream.train.buffer import Kept, Owner

_DAY_S = 86_400.0
_LEARNT = ("published", "canary", "publishing")  # actions that make a version of samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Erased:
    """What was deleted of somebody.

    Attributes:
        samples: How many samples of each adapter.
        num_remembered: Exchanges that had become no sample, and become none now.
        versions: Of each adapter the versions that had learnt from those samples, oldest
            first. They, and all that came after them, keep what they learnt.
    """

    samples: dict[AdapterName, int] = field(default_factory=dict)
    num_remembered: int = 0
    versions: dict[AdapterName, list[VersionId]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Write it as callers are told."""
        return {
            "deleted": sum(self.samples.values()),
            "adapters": self.samples,
            "forgotten": self.num_remembered,
            "versions": self.versions,
        }


def remove_expired(
    journal: Journal, adapters: Adapters, config: RetentionConfig, now: float
) -> list[Kept]:
    """Remove what is older, or more, than the policies of its adapters allow.

    Args:
        journal: What is kept.
        adapters: With their policies.
        config: For those whose policy says nothing.
        now: Seconds since 1970.

    Returns:
        What it was, for the buffer to let go of.
    """
    policies = Policies(adapters)
    removed: list[Kept] = []
    for name in journal.adapters():
        try:
            policy = policies.of(name)
        except AdapterNotFoundError:  # deleted, and nobody may have taken its samples away yet
            policy = LearningPolicy()
        days = config.max_age_days if policy.keep_days is None else policy.keep_days
        most = config.max_samples if policy.keep_samples is None else policy.keep_samples
        removed += journal.remove_old(name, before=now - days * _DAY_S if days else 0.0, most=most)
    return removed


def told_of(removed: Sequence[Kept], decisions: Iterable[Decision]) -> Erased:
    """Say what was deleted, and which versions had learnt from it, by what was decided."""
    ids = {kept.id for kept in removed}
    erased = Erased()
    for kept in removed:
        erased.samples[kept.adapter] = erased.samples.get(kept.adapter, 0) + 1
    for decision in decisions if ids else ():
        # One that is on its way may yet be published.
        is_there = decision.action in _LEARNT and decision.version is not None
        if is_there and not ids.isdisjoint(decision.samples):
            assert decision.version is not None
            erased.versions.setdefault(decision.adapter, []).append(decision.version)
    return erased


def erase_samples(adapters: Adapters, settings: Settings, user: str, key: str) -> Erased:
    """Remove the samples of somebody from a home in which no process learns.

    Raises:
        CacheBusyError: One does.
        UnavailableError: As `Journal.remove_of`.
    """
    journal = Journal(settings.journal_file)
    try:
        recover(journal, adapters)
        removed = journal.remove_of(Owner(user=user, key=key))
        return told_of(removed, journal.decisions())
    finally:
        journal.close()
