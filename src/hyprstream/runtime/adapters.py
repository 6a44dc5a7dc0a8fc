"""The adapters of this machine: what there is, where names point, what versions are made of.

Works on stored tensors and needs no torch. What brings an adapter to a model is in
`runtime/adapted.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self

import numpy as np

from hyprstream.errors import AdapterExistsError, AdapterNotFoundError, InvalidRequestError
from hyprstream.lora.seeds import stream_start
from hyprstream.lora.summary import compare, summarise
from hyprstream.refs import AdapterName, AdapterRef, VersionId, adapter_name
from hyprstream.runtime.adapter_records import AdapterDiff, AdapterInfo, Committed
from hyprstream.runtime.recorded_training import recorded
from hyprstream.runtime.settings import Settings
from hyprstream.store import layout
from hyprstream.store.belongings import Belongings
from hyprstream.store.canaries import Canaries
from hyprstream.store.manifest import Draft, Manifest, SpecValue
from hyprstream.store.records import Adapter, Collected, Move, Note
from hyprstream.store.store import GRACE, AdapterStore
from hyprstream.vdb import codecs
from hyprstream.vdb.entropy.masks import seeded_indices
from hyprstream.vdb.layout import pack_tensors
from hyprstream.vdb.learned.quantised import Quantised
from hyprstream.vdb.learned.rate import Target
from hyprstream.vdb.statistics import GridStatistics, statistics
from hyprstream.vdb.tensors import SparseTensor

Tensors = Mapping[str, SparseTensor]

EXACT = "zstd"
"""The code of adapters that have to be stored exactly."""

_NOTHING = Note()


class Adapters:
    """The adapters below one folder.

    References are text as people type it: `name`, `name:tag` or `name@version`.
    """

    def __init__(self, store: AdapterStore) -> None:
        self._store = store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files."""
        self._store.close()

    @property
    def belongings(self) -> Belongings:
        """What is kept with names rather than with versions."""
        return self._store.belongings

    @property
    def canaries(self) -> Canaries:
        """Versions that answer a share of the requests."""
        return self._store.canaries

    def resolve(self, ref: str, key: str | None = None) -> VersionId:
        """Tell which version a reference means.

        Args:
            ref: The reference.
            key: Of a request: a name alone may mean its canary then; see `Canary.takes`.

        Raises:
            InvalidReferenceError: It is no reference, or means several versions.
            AdapterNotFoundError: There is no such adapter.
            VersionNotFoundError: It has no such tag or version.
        """
        return self._store.resolve(AdapterRef.parse(ref), key)

    def manifest(self, version: VersionId) -> Manifest:
        """Tell what a version is; errors as in `AdapterStore.manifest`."""
        return self._store.manifest(version)

    def tensors(self, version: VersionId) -> dict[str, SparseTensor]:
        """Return the tensors of a version; errors as in `layout.read`."""
        return layout.read(self._store, version)

    def info(self, ref: str) -> AdapterInfo:
        """Describe a version; errors as in `resolve` and `layout.read`."""
        parsed = AdapterRef.parse(ref)
        version = self._store.resolve(parsed)
        manifest = self._store.manifest(version)
        modules = tuple(summarise(self.tensors(version)))
        num_elements = sum(module.num_elements for module in modules)
        tags = self._store.tags(parsed.name).items()
        return AdapterInfo(
            ref=parsed,
            version=version,
            manifest=manifest,
            tags=tuple(tag for tag, tagged in tags if tagged == version),
            modules=modules,
            ratio=4 * num_elements / max(1, manifest.payload.size_bytes),
            training=recorded(manifest.spec),
            canary=self.canaries.of(parsed.name),
        )

    def grid(self, ref: str) -> GridStatistics:
        """Count what a version consists of as a grid, which is how `raw` stores it."""
        return statistics(pack_tensors(self.tensors(self.resolve(ref))).view)

    def commit(
        self,
        tensors: Tensors,
        draft: Draft,
        *,
        target: Target | None = None,
        seed: int | None = None,
    ) -> Committed:
        """Add a version; no name points at it yet.

        In the learned code it is written as the difference from the draft's parent if that
        is stored in this code and near enough. An adapter that adds nothing is stored
        exactly whatever the draft says, because the learned code keeps of an adapter only
        what it adds.

        Args:
            tensors: Its content, as `lora.weights.pack` gives it.
            draft: What it is; `needs_parent` and what coding came to are filled in.
            target: For the learned code, what may be lost.
            seed: The seed of its masks, if they were drawn by one; they take no room then.

        Raises:
            InvalidAdapterError: A part cannot be stored.
            UnsupportedCodecError: There is no such code.
            InvalidRequestError: The target cannot be reached.
            StorageFullError: The disk is full; nothing was added.
        """
        is_exact = codecs.load(draft.codec).LOSSLESS
        if not is_exact and _adds_nothing(tensors):
            draft, is_exact = replace(draft, codec=EXACT), True
        encoded = layout.encode(
            tensors,
            draft.codec,
            target=target,
            parent=self._quantised(draft),
            seeds=_seeds(tensors, seed) if draft.codec == layout.NEURAL else None,
        )
        report = encoded.report
        loss = {} if is_exact else {"relative_error": report.relative_error}
        draft = replace(draft, needs_parent=report.is_update, metrics={**draft.metrics, **loss})
        version = self._store.commit(encoded.payload, draft)
        return Committed(version=version, codec=draft.codec, report=report)

    def create(self, name: str, to: VersionId, note: Note = _NOTHING) -> None:
        """Give a new name to a version.

        Raises:
            InvalidReferenceError: It is no name.
            AdapterExistsError: The name is taken.
        """
        self._store.create(adapter_name(name), to, note)

    def check_free(self, name: str) -> None:
        """Make sure that a name can be given, before work is done for it.

        Raises:
            InvalidReferenceError: It is no name.
            AdapterExistsError: The name is taken.
        """
        try:
            self._store.current(adapter_name(name))
        except AdapterNotFoundError:
            return
        raise AdapterExistsError(
            f"there is an adapter {name!r} already",
            hint="Choose another name, or delete the adapter first.",
        )

    def delete(self, name: str) -> Collected:
        """Take a name away, and remove at once what nothing else leads to or reads.

        Raises:
            AdapterNotFoundError: There is no such name.
        """
        return self._store.collect(given_up=self._store.delete(adapter_name(name)))

    def collect(self, *, keep_history: int | None = None, at_once: bool = False) -> Collected:
        """Remove the versions that nothing leads to, and what killed processes left.

        Args:
            keep_history: How many rollbacks and how many of the latest moves of each name keep
                their versions; None keeps those of all moves.
            at_once: Also versions of the last day, whose name may be on the way.

        Raises:
            InvalidRequestError: The history to keep is a negative number of moves.
        """
        if keep_history is not None and keep_history < 0:
            raise InvalidRequestError(
                f"{keep_history} moves cannot be kept", hint="Keep 0 or more."
            )
        grace = timedelta(0) if at_once else GRACE
        return self._store.collect(keep_history=keep_history, grace=grace)

    def history(self, name: str) -> list[Move]:
        """List the moves of a name, the first one first."""
        return self._store.history(adapter_name(name))

    def moves_after(self, moment: datetime, most: int) -> Sequence[tuple[AdapterName, Move]]:
        """List the latest moves of all names after a moment (UTC), the first one first."""
        return self._store.moves_after(moment, most)

    def promote(self, ref: str, note: Note = _NOTHING) -> VersionId:
        """Let a name point at the version of a tag or a beginning of its id.

        Raises:
            StaleParentError: Somebody moved the name meanwhile.
        """
        parsed = AdapterRef.parse(ref)
        expected = self._store.current(parsed.name)
        version = self._store.resolve(parsed)
        self._store.promote(parsed.name, version, expected=expected, note=note)
        return version

    def move(self, name: str, to: VersionId, *, expected: VersionId, note: Note = _NOTHING) -> None:
        """Move a name to a version, if it still points where it is expected to.

        Raises:
            StaleParentError: It does not.
        """
        self._store.promote(adapter_name(name), to, expected=expected, note=note)

    def rollback(
        self, name: str, note: Note = _NOTHING, *, expected: VersionId | None = None
    ) -> VersionId:
        """Undo the last promotion that was not undone yet; return the version that is back.

        Raises:
            StaleParentError: The name does not point where it is expected to.
        """
        return self._store.rollback(adapter_name(name), note, expected=expected)

    def tag(self, ref: str, to: VersionId) -> None:
        """Let a tag, `name:tag`, stand for a version, whatever it stood for before.

        Raises:
            InvalidReferenceError: The reference has no tag.
            AdapterNotFoundError: There is no such adapter.
        """
        self._store.tag(AdapterRef.parse(ref), to)

    def untag(self, ref: str) -> None:
        """Take a tag, `name:tag`, away.

        Raises:
            VersionNotFoundError: There is no such tag.
        """
        self._store.untag(AdapterRef.parse(ref))

    def tags(self, name: str) -> dict[str, VersionId]:
        """List the tags of an adapter and the versions that they stand for.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        return self._store.tags(adapter_name(name))

    def diff(self, first: str, second: str) -> AdapterDiff:
        """Compare two versions; errors as in `resolve` and `layout.read`."""
        versions = self.resolve(first), self.resolve(second)
        before, after = (_described(self.manifest(version)) for version in versions)
        names = dict.fromkeys([*before, *after])
        modules = compare(*(self.tensors(version) for version in versions))
        return AdapterDiff(
            first=versions[0],
            second=versions[1],
            spec={
                name: (before.get(name), after.get(name))
                for name in names
                if before.get(name) != after.get(name)
            },
            modules=tuple(modules),
        )

    def compress(
        self,
        ref: str,
        codec: str,
        *,
        target: Target | None = None,
        tag: str | None = None,
        note: Note = _NOTHING,
    ) -> Committed:
        """Store a version again, in another code, and let its name point at the new version.

        Args:
            ref: The version.
            codec: The code.
            target: For the learned code, what may be lost.
            tag: Let this tag stand for the new version instead, and leave the name alone.
            note: For the history.

        Raises:
            InvalidRequestError: The adapter adds nothing yet, and the code keeps nothing else.
        """
        parsed = AdapterRef.parse(ref)
        expected = self._store.current(parsed.name)
        version = self._store.resolve(parsed)
        tensors, manifest = self.tensors(version), self.manifest(version)
        if not codecs.load(codec).LOSSLESS and _adds_nothing(tensors):
            raise InvalidRequestError(
                f"adapter {ref!r} adds nothing yet, of which {codec} would keep nothing",
                hint="Train it first; until then it is stored exactly.",
            )
        draft = Draft(
            base=manifest.base.fingerprint,
            kinds=manifest.kinds,
            spec={**manifest.spec, "codec": codec},
            codec=codec,
            parent=version,
            metrics=manifest.metrics,
            provenance=manifest.provenance,
        )
        seed = manifest.spec.get("seed")
        done = self.commit(tensors, draft, target=target, seed=seed if type(seed) is int else None)
        if tag is None:
            self._store.promote(parsed.name, done.version, expected=expected, note=note)
        else:
            self._store.tag(AdapterRef(name=parsed.name, tag=tag), done.version)
        return done

    def list(self) -> tuple[Adapter, ...]:
        """List the adapters by name."""
        return self._store.list()

    def _quantised(self, draft: Draft) -> Quantised | None:
        """Return the parent of an update, if the draft may have one."""
        if draft.codec != layout.NEURAL or draft.parent is None:
            return None
        if self._store.manifest(draft.parent).codec != layout.NEURAL:
            return None
        return layout.read_quantised(self._store, draft.parent)


def open_adapters(settings: Settings) -> Adapters:
    """Open the adapters of this machine.

    Raises:
        InvalidSettingsError: Their folder cannot be used.
        CorruptStoreError: Their database is damaged.
    """
    return Adapters(AdapterStore(settings.adapters_folder))


def _described(manifest: Manifest) -> dict[str, SpecValue]:
    """Return what a version was made to be, with its base model and its code."""
    return {
        **manifest.spec,
        "base": str(manifest.base.fingerprint),
        "stored as": manifest.codec,
    }


def _adds_nothing(tensors: Tensors) -> bool:
    return not any(module.norm for module in summarise(tensors))


def _seeds(tensors: Tensors, seed: int | None) -> dict[str, int]:
    """Find the masks that follow from a seed and the tensor's name alone, as `lora.mask` draws."""
    if seed is None:
        return {}
    found = {}
    for name, tensor in tensors.items():
        start = stream_start(seed, name)
        if tensor.indices is not None and np.array_equal(
            tensor.indices, seeded_indices(start, tensor.size, tensor.num_active)
        ):
            found[name] = start
    return found
