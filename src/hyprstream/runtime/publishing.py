"""From a candidate to the version that serves, and what a killed process left of that. No torch.

The order is commit, install, promote: a name never points at what the store does not have
whole, or the engine cannot serve.
"""

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Generic

from hyprstream.errors import AdapterNotFoundError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.adapters import Adapters, Tensors
from hyprstream.runtime.canary import ENDED_ELSEWHERE, CanaryConfig
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.journal_rows import Decision
from hyprstream.runtime.learners import Published, Weights
from hyprstream.store.manifest import Draft
from hyprstream.store.records import Canary, Note

log = logging.getLogger(__name__)

_BY = "adaptation"


class StoreVersions(Generic[Weights]):
    """The versions in a store, installed in an engine. Its calls wait for the disk.

    Args:
        adapters: The store.
        load: Makes weights of stored tensors.
        pack: The inverse.
        install: Lets requests use a version; returns when they can.
        share_of: The share of requests that a new version of an adapter answers at first; 0: it
            answers all.
    """

    def __init__(
        self,
        adapters: Adapters,
        *,
        load: Callable[[Tensors], Weights],
        pack: Callable[[Weights], Tensors],
        install: Callable[[VersionId, Weights], None],
        share_of: Callable[[AdapterName], float] = lambda _name: 0.0,
    ) -> None:
        self._adapters = adapters
        self._load = load
        self._pack = pack
        self._install = install
        self._share_of = share_of

    def current(self, name: AdapterName) -> tuple[VersionId, Weights]:
        """Return the version that a name points at, and its weights.

        Raises:
            AdapterNotFoundError: There is no such name.
            CorruptError: It is damaged.
        """
        version = self._adapters.resolve(name)
        return version, self.load(version)

    def load(self, version: VersionId) -> Weights:
        """Return the weights of a version.

        Raises:
            VersionNotFoundError: There is no such version.
            CorruptError: It is damaged.
        """
        return self._load(self._adapters.tensors(version))

    def publish(
        self,
        name: AdapterName,
        weights: Weights,
        *,
        parent: VersionId,
        numbers: Mapping[str, float],
        committed: Callable[[VersionId, float], None],
    ) -> Published:
        """Commit, tell, install, promote, in this order; or let it be a canary.

        Raises:
            StaleParentError: The name does not point at the parent any more.
            StorageFullError: The disk is full.
            AdapterMemoryFullError: The engine has no room for the version.
        """
        share, before = self._share_of(name), self._adapters.manifest(parent)
        draft = Draft(
            base=before.base.fingerprint,
            kinds=before.kinds,
            spec=before.spec,
            codec=before.codec,
            parent=parent,
            metrics={key.replace(" ", "_"): float(value) for key, value in numbers.items()},
        )
        seed = before.spec.get("seed")
        version = self._adapters.commit(
            self._pack(weights), draft, seed=seed if type(seed) is int else None
        ).version
        committed(version, share or 1.0)
        self._install(version, weights)
        if share:
            canary = self._adapters.canaries.begin(name, version, parent=parent, share=share)
            return Published(version=version, canary=canary)
        note = Note(by=_BY, why=f"learnt from {numbers.get('samples', 0):.0f} samples")
        self._adapters.move(name, version, expected=parent, note=note)
        return Published(version=version)

    def canary(self, name: AdapterName) -> Canary | None:
        """Return the canary of a name, if one is out."""
        return self._adapters.canaries.of(name)

    def promote_canary(self, name: AdapterName, canary: Canary, why: str) -> None:
        """Let a canary answer everybody.

        Raises:
            StaleParentError: It is not out any more.
            AdapterMemoryFullError: The engine has no room for it.
        """
        self._install(canary.version, self.load(canary.version))  # it may have left the engine
        self._adapters.canaries.promote(name, canary.version, Note(by=_BY, why=why))

    def withdraw_canary(self, name: AdapterName, canary: Canary) -> None:
        """Take a canary back; the name stays where it is.

        Raises:
            StaleParentError: It is not out any more.
        """
        self._adapters.canaries.withdraw(name, canary.version)

    def has_served(self, name: AdapterName, canary: Canary) -> bool:
        """Tell whether a name was moved to what had been its canary."""
        return was_moved(self._adapters, name, canary.version)

    def roll_back(self, name: AdapterName, *, expected: VersionId, why: str) -> VersionId:
        """Undo the promotion of a version; return the one that is back.

        Raises:
            StaleParentError: The name does not point at it any more.
        """
        parent = self._adapters.manifest(expected).parent
        if parent is not None:  # it may have left the engine meanwhile
            version = VersionId(parent)
            self._install(version, self.load(version))
        return self._adapters.rollback(name, Note(by=_BY, why=why), expected=expected)


def recover(
    journal: Journal,
    adapters: Adapters,
    config: CanaryConfig = CanaryConfig(),  # noqa: B008 - frozen
) -> None:
    """Finish what a killed process was publishing: by the store, whether it had happened.

    Canaries that are out go on; of others the store says what became of them. Call it before
    samples are taken from the journal, while no loop runs.
    """
    out = {canary.version for canary in adapters.canaries.all().values()}
    for decision in journal.decisions():
        if decision.action == "publishing":
            is_out = decision.version in out
            happened = is_out or was_moved(adapters, decision.adapter, decision.version)
            log.info(
                "the publication of %s had %s", decision.version, "happened" if happened else "not"
            )
            if happened:
                journal.resolve(decision.id, "canary" if is_out else "published", "used")
            else:
                journal.resolve(decision.id, "abandoned")
    for decision in _undecided(journal.decisions()):
        if decision.version not in out:
            served = was_moved(adapters, decision.adapter, decision.version)
            ended = replace(
                decision,
                action="promoted" if served else "withdrawn",
                reasons=(ENDED_ELSEWHERE,),
                numbers=_numbers(journal, decision, config),
                samples=(),
            )
            journal.decide(ended)


def _numbers(journal: Journal, begun: Decision, config: CanaryConfig) -> Mapping[str, float]:
    """Return how a canary stood that is not out any more."""
    assert begun.version is not None
    assert begun.parent is not None
    since = datetime.fromtimestamp(begun.at, UTC)
    canary = Canary(
        version=begun.version, parent=begun.parent, share=begun.numbers["share"], since=since
    )
    return journal.trial(begun.adapter, canary).numbers(config, time.time())


def _undecided(decisions: Iterable[Decision]) -> Iterable[Decision]:
    """Return those by which a canary began of which nothing came yet."""
    begun: dict[VersionId | None, Decision] = {}
    for decision in decisions:
        if decision.action == "canary":
            begun[decision.version] = decision
        elif decision.action in ("promoted", "withdrawn"):
            begun.pop(decision.version, None)
    return begun.values()


def was_moved(adapters: Adapters, name: AdapterName, version: VersionId | None) -> bool:
    """Tell whether a name was ever moved to a version."""
    try:
        return any(move.version == version for move in adapters.history(name))
    except AdapterNotFoundError:
        return False


def forget_deleted(journal: Journal, adapters: Adapters) -> None:
    """Withdraw the samples of adapters that were deleted; one that has its name now starts anew.

    Call it before samples are taken from the journal.
    """
    for name in journal.adapters():
        try:
            born = adapters.history(name)[0].at.timestamp()
        except AdapterNotFoundError:
            born = math.inf
        journal.forget(name, before=born)
