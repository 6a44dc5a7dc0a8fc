"""What is there to learn from, for each adapter: bounded, without duplicates, never lost.

A sample is kept on the disk before it is acknowledged, by whatever keeps the log; this module
is plain Python. Callers put samples in from any thread, the engine thread takes them; one lock
stands between the two, and nobody holds it while a disk is written to.
"""

import hashlib
import random
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from hyprstream.errors import InvalidSettingsError
from hyprstream.refs import AdapterName
from hyprstream.train.sample import Sample

Added = Literal["waiting", "held_out", "duplicate", "full", "too_long"]
"""What became of a sample: only the first two were taken."""

Fate = Literal["used", "dropped", "withdrawn"]
"""What ended the waiting of a sample."""

_TOKEN_BYTES = 9  # of a sample in memory and on disk: a token of 8 bytes, a mark of 1


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferConfig:
    """Bounds of what is kept for one adapter."""

    max_waiting: int = 2048
    """Most samples that wait to be learnt from; more are refused, none is pushed out."""
    max_waiting_bytes: int = 32 << 20
    """Most bytes of them, 9 for each token."""
    max_sample_tokens: int = 2048
    """Most tokens of one sample."""
    max_held_out: int = 128
    """Most samples that are set aside to judge by; beyond it, one by chance makes room."""
    held_out_share: float = 0.2
    """Share of prompts that are set aside."""
    max_replayed: int = 512
    """Most used samples that are kept to be learnt again: a fair choice of all that were."""
    replay_share: float = 0.25
    """Share of a batch's samples that are such."""
    seed: int = 0
    """Decides which prompts are set aside, and which used samples are kept."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        least = {"max_waiting": 1, "max_waiting_bytes": 1, "max_sample_tokens": 2,
                 "max_held_out": 1, "max_replayed": 0}  # fmt: skip
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint=f"Make it {low} or more."
                )
        for name in ("held_out_share", "replay_share"):
            if not 0 <= getattr(self, name) < 1:
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint="Make it 0 or more, and less than 1."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whose words a sample holds, so that they can be found again; empty where nobody was named.

    Attributes:
        user: As the caller named them.
        key: Id of the key that the caller had.
    """

    user: str = ""
    key: str = ""


NOBODY = Owner()


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A sample that was taken.

    Attributes:
        id: Its number in the log.
        adapter: Whose it is.
        sample: The sample.
        source: The request that it came from.
        is_held_out: It is judged by, never learnt from.
    """

    id: int
    adapter: AdapterName
    sample: Sample
    source: str
    is_held_out: bool


@runtime_checkable
class SampleLog(Protocol):
    """Where samples outlive the process."""

    def append(
        self,
        adapter: AdapterName,
        sample: Sample,
        source: str,
        *,
        held_out: bool,
        owner: Owner = NOBODY,
    ) -> int:
        """Keep a sample; it is on the disk when this returns its number."""
        ...

    def end(self, ids: Sequence[int], fate: Fate) -> None:
        """Keep what became of samples."""
        ...


@dataclass(slots=True)
class _Shelf:
    """What is kept for one adapter."""

    waiting: OrderedDict[int, Kept] = field(default_factory=OrderedDict)
    taken: dict[int, Kept] = field(default_factory=dict)
    held_out: list[Kept] = field(default_factory=list)
    replayed: list[Kept] = field(default_factory=list)
    seen: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    num_used: int = 0
    num_held_out: int = 0
    num_coming: int = 0
    """Samples on their way to the disk."""
    size_bytes: int = 0
    """Of those that wait, are taken, or are on their way."""

    def all(self) -> Iterator[Kept]:
        """Return everything that is kept."""
        yield from self.waiting.values()
        yield from self.taken.values()
        yield from self.held_out
        yield from self.replayed


class SampleBuffer:
    """The samples of all adapters.

    A sample waits until it is taken, and is taken until it is settled: used, or dropped. What
    was taken and not settled when a process ends waits again in the next.

    Invariants, checked by `test_buffer.py` against a plain model: no prompt is ever both learnt
    from and judged by; what was acknowledged is waiting, taken, held out or settled; bounds
    hold at all times; a withdrawn sample is never taken again.
    """

    def __init__(self, config: BufferConfig, log: SampleLog) -> None:
        self._config = config
        self._log = log
        self._lock = threading.Lock()
        self._shelves: dict[AdapterName, _Shelf] = {}
        self._random = random.Random(config.seed)  # noqa: S311 - a choice, no secret

    def restore(self, waiting: Iterable[Kept], used: Iterable[Kept]) -> None:
        """Take up what the log kept: samples that were never settled, and used ones in order."""
        with self._lock:
            for kept in waiting:
                shelf = self._shelf(kept.adapter)
                self._remember(shelf, digest(kept.sample))
                self._place(shelf, kept)
                if not kept.is_held_out:
                    shelf.size_bytes += size_bytes(kept.sample)
            for kept in used:
                shelf = self._shelf(kept.adapter)
                self._remember(shelf, digest(kept.sample))
                self._reserve(shelf, kept)

    def add(
        self, adapter: AdapterName, sample: Sample, source: str, owner: Owner = NOBODY
    ) -> Added:
        """Keep a sample, if there is room and it is new; it is on the disk then.

        Raises:
            UnavailableError: The log cannot be written; the sample was not taken.
        """
        key, held_out = digest(sample), self.holds_out(sample)
        with self._lock:
            shelf = self._shelf(adapter)
            refused = self._refusal(shelf, sample, key, held_out=held_out)
            if refused is not None:
                return refused
            self._remember(shelf, key)
            room = 0 if held_out else 1
            shelf.num_coming += room
            shelf.size_bytes += room * size_bytes(sample)
        try:
            number = self._log.append(adapter, sample, source, held_out=held_out, owner=owner)
        except BaseException:
            with self._lock:
                shelf.seen.pop(key, None)
                shelf.num_coming -= room
                shelf.size_bytes -= room * size_bytes(sample)
            raise
        with self._lock:
            shelf.num_coming -= room
            kept = Kept(
                id=number, adapter=adapter, sample=sample, source=source, is_held_out=held_out
            )
            self._place(shelf, kept)
        return "held_out" if held_out else "waiting"

    def take(self, adapter: AdapterName, num_samples: int) -> list[Kept]:
        """Take samples to learn from, those that wait longest first.

        Returns:
            Up to so many that waited, and beside them the share of used ones to learn again.
        """
        with self._lock:
            shelf = self._shelf(adapter)
            share = self._config.replay_share
            num_again = min(round(num_samples * share), len(shelf.replayed))
            again = self._random.sample(shelf.replayed, num_again)
            fresh: list[Kept] = []
            while shelf.waiting and len(fresh) < num_samples - num_again:
                number, kept = shelf.waiting.popitem(last=False)
                shelf.taken[number] = kept
                fresh.append(kept)
            return [*fresh, *again] if fresh else []

    def settle(self, adapter: AdapterName, ids: Iterable[int], fate: Fate) -> None:
        """Say what became of samples that were taken; the log is told first.

        Numbers of samples that are learnt again, or were withdrawn meanwhile, are passed over.
        """
        with self._lock:
            shelf = self._shelf(adapter)
            chosen = [number for number in ids if number in shelf.taken]
        self._log.end(chosen, fate)
        self.settled(adapter, chosen, fate)

    def settled(self, adapter: AdapterName, ids: Iterable[int], fate: Fate) -> None:
        """Take note of a fate that the log already knows."""
        with self._lock:
            shelf = self._shelf(adapter)
            for number in ids:
                kept = shelf.taken.pop(number, None)
                if kept is None:
                    continue
                shelf.size_bytes -= size_bytes(kept.sample)
                if fate == "used":
                    self._reserve(shelf, kept)

    def give_back(self, adapter: AdapterName) -> None:
        """Let all samples that were taken wait again, before the others."""
        with self._lock:
            shelf = self._shelf(adapter)
            back = sorted(shelf.taken.values(), key=lambda kept: kept.id)
            shelf.taken.clear()
            for kept in reversed(back):
                self._place(shelf, kept)
                shelf.waiting.move_to_end(kept.id, last=False)

    def withdraw(self, source: str) -> int:
        """Forget the samples of a request; return how many.

        What was learnt from them already stays learnt, and is not learnt again.
        """
        with self._lock:
            found = [
                kept
                for shelf in self._shelves.values()
                for kept in shelf.all()
                if kept.source == source
            ]
        if found:
            self._log.end([kept.id for kept in found], "withdrawn")
        with self._lock:
            for kept in found:
                self._forget(self._shelf(kept.adapter), kept)
        return len(found)

    def discard(self, removed: Iterable[Kept]) -> None:
        """Let go of samples that the log does not have any more; they may be sent again."""
        with self._lock:
            for kept in removed:
                shelf = self._shelf(kept.adapter)
                self._forget(shelf, kept)
                shelf.seen.pop(digest(kept.sample), None)

    def held_out(self, adapter: AdapterName) -> list[Kept]:
        """Return the samples to judge by."""
        with self._lock:
            return list(self._shelf(adapter).held_out)

    def num_waiting(self, adapter: AdapterName) -> int:
        """Count the samples that wait."""
        with self._lock:
            return len(self._shelf(adapter).waiting)

    def num_held_out(self, adapter: AdapterName) -> int:
        """Count the samples to judge by."""
        with self._lock:
            return len(self._shelf(adapter).held_out)

    def is_wanted(self, kept: Kept) -> bool:
        """Tell whether a sample that was taken, for the first time or again, may be learnt."""
        with self._lock:
            shelf = self._shelf(kept.adapter)
            return kept.id in shelf.taken or any(kept.id == other.id for other in shelf.replayed)

    def is_taken(self, adapter: AdapterName, number: int) -> bool:
        """Tell whether a sample that was taken is still to be learnt from."""
        with self._lock:
            return number in self._shelf(adapter).taken

    def counts(self) -> Mapping[AdapterName, Mapping[str, int]]:
        """Count what is kept of each adapter."""
        with self._lock:
            return {
                adapter: {
                    "waiting": len(shelf.waiting),
                    "taken": len(shelf.taken),
                    "held_out": len(shelf.held_out),
                    "replayed": len(shelf.replayed),
                    "size_bytes": shelf.size_bytes,
                }
                for adapter, shelf in self._shelves.items()
            }

    def holds_out(self, sample: Sample) -> bool:
        """Tell whether a prompt is one to judge by: the same for every answer to it."""
        hashed = hashlib.sha256(f"{self._config.seed}/".encode() + prompt_digest(sample)).digest()
        return int.from_bytes(hashed[:8]) < self._config.held_out_share * 2.0**64

    def _refusal(
        self, shelf: _Shelf, sample: Sample, key: bytes, *, held_out: bool
    ) -> Added | None:
        config = self._config
        if len(sample.token_ids) > config.max_sample_tokens:
            return "too_long"
        if key in shelf.seen:
            return "duplicate"
        num_waiting = len(shelf.waiting) + len(shelf.taken) + shelf.num_coming
        num_bytes = shelf.size_bytes + size_bytes(sample)
        if not held_out and (
            num_waiting >= config.max_waiting or num_bytes > config.max_waiting_bytes
        ):
            return "full"
        return None

    def _shelf(self, adapter: AdapterName) -> _Shelf:
        return self._shelves.setdefault(adapter, _Shelf())

    def _remember(self, shelf: _Shelf, key: bytes) -> None:
        """Note a sample as seen; the oldest notes go when there are very many."""
        shelf.seen[key] = None
        config = self._config
        most = 4 * (config.max_waiting + config.max_held_out + config.max_replayed)
        while len(shelf.seen) > most:
            shelf.seen.popitem(last=False)

    def _place(self, shelf: _Shelf, kept: Kept) -> None:
        if not kept.is_held_out:
            shelf.waiting[kept.id] = kept
            return
        shelf.num_held_out += 1
        _reservoir(
            shelf.held_out, kept, self._config.max_held_out, shelf.num_held_out, self._random
        )

    def _reserve(self, shelf: _Shelf, kept: Kept) -> None:
        shelf.num_used += 1
        _reservoir(shelf.replayed, kept, self._config.max_replayed, shelf.num_used, self._random)

    def _forget(self, shelf: _Shelf, kept: Kept) -> None:
        for pending in (shelf.waiting, shelf.taken):
            if pending.pop(kept.id, None) is not None:
                shelf.size_bytes -= size_bytes(kept.sample)
        for chosen in (shelf.held_out, shelf.replayed):
            chosen[:] = [other for other in chosen if other.id != kept.id]


def _reservoir(
    chosen: list[Kept], kept: Kept, most: int, num_seen: int, chance: random.Random
) -> None:
    """Keep a fair choice of all that came by (Vitter's algorithm R, 1985)."""
    if len(chosen) < most:
        chosen.append(kept)
        return
    place = chance.randrange(num_seen)
    if place < most:
        chosen[place] = kept


def digest(sample: Sample) -> bytes:
    """Hash what makes two samples the same: tokens and marks; their weights may differ."""
    return hashlib.sha256(repr((sample.token_ids, sample.counts)).encode()).digest()


def prompt_digest(sample: Sample) -> bytes:
    """Hash the tokens before the first that counts; of a text without a prompt, all of it."""
    first = sample.counts.index(True, 1)
    prompt = sample.token_ids[:first] if first > 1 else sample.token_ids
    return hashlib.sha256(repr(prompt).encode()).digest()


def size_bytes(sample: Sample) -> int:
    """Return what a sample takes, about."""
    return _TOKEN_BYTES * len(sample.token_ids)
