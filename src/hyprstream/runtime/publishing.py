"""From a candidate to the version that serves, and what a killed process left of that. No torch.

The order is commit, install, promote: a name never points at what the store does not have
whole, or the engine cannot serve.
"""

import logging
import math
from collections.abc import Callable, Mapping
from typing import Generic

from hyprstream.errors import AdapterNotFoundError
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.adapters import Adapters, Tensors
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.learners import Weights
from hyprstream.store.manifest import Draft
from hyprstream.store.records import Note

log = logging.getLogger(__name__)

_BY = "adaptation"


class StoreVersions(Generic[Weights]):
    """The versions in a store, installed in an engine. Its calls wait for the disk.

    Args:
        adapters: The store.
        load: Makes weights of stored tensors.
        pack: The inverse.
        install: Lets requests use a version; returns when they can.
    """

    def __init__(
        self,
        adapters: Adapters,
        *,
        load: Callable[[Tensors], Weights],
        pack: Callable[[Weights], Tensors],
        install: Callable[[VersionId, Weights], None],
    ) -> None:
        self._adapters = adapters
        self._load = load
        self._pack = pack
        self._install = install

    def current(self, name: AdapterName) -> tuple[VersionId, Weights]:
        """Return the version that a name points at, and its weights.

        Raises:
            AdapterNotFoundError: There is no such name.
            CorruptError: It is damaged.
        """
        version = self._adapters.resolve(name)
        return version, self._load(self._adapters.tensors(version))

    def publish(
        self,
        name: AdapterName,
        weights: Weights,
        *,
        parent: VersionId,
        numbers: Mapping[str, float],
        committed: Callable[[VersionId], None],
    ) -> VersionId:
        """Commit, tell, install, promote, in this order.

        Raises:
            StaleParentError: The name does not point at the parent any more.
            StorageFullError: The disk is full.
            AdapterMemoryFullError: The engine has no room for the version.
        """
        before = self._adapters.manifest(parent)
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
        committed(version)
        self._install(version, weights)
        note = Note(by=_BY, why=f"learnt from {numbers.get('samples', 0):.0f} samples")
        self._adapters.move(name, version, expected=parent, note=note)
        return version

    def roll_back(self, name: AdapterName, *, expected: VersionId, why: str) -> VersionId:
        """Undo the promotion of a version; return the one that is back.

        Raises:
            StaleParentError: The name does not point at it any more.
        """
        parent = self._adapters.manifest(expected).parent
        if parent is not None:  # it may have left the engine meanwhile
            version = VersionId(parent)
            self._install(version, self._load(self._adapters.tensors(version)))
        return self._adapters.rollback(name, Note(by=_BY, why=why), expected=expected)


def recover(journal: Journal, adapters: Adapters) -> None:
    """Finish what a killed process was publishing: by the store, whether it had happened.

    Call it before samples are taken from the journal, while no loop runs.
    """
    for decision in journal.decisions():
        if decision.action != "publishing":
            continue
        try:
            moves = adapters.history(decision.adapter)
        except AdapterNotFoundError:
            moves = []
        happened = any(move.version == decision.version for move in moves)
        log.info(
            "the publication of %s had %s", decision.version, "happened" if happened else "not"
        )
        if happened:
            journal.resolve(decision.id, "published", "used")
        else:
            journal.resolve(decision.id, "abandoned")


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
