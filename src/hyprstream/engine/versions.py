"""Which adapter versions may be asked for, and their weights on the host.

Three tiers: the device holds what the slots hold, the host what this file holds, the disk
everything; `fetch` reads from there. Runs on the engine thread.
"""

import hashlib
import json
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence

from hyprstream.errors import AdapterMemoryFullError, InvalidRequestError, VersionNotFoundError
from hyprstream.lora.basis import Basis
from hyprstream.lora.weights import LoraWeights, combine
from hyprstream.refs import VersionId

_MAX_MIXTURES = 4096  # callers choose factors freely; each costs some hundred bytes

Mixture = tuple[tuple[VersionId, float], ...]
"""Versions and what each is multiplied with, in order of version."""


class _Held:
    """What weights take together; a basis that several are written in counts once.

    Attributes:
        size_bytes: Bytes of all of them.
    """

    def __init__(self, size_bytes: int = 0, users: Mapping[Basis, int] | None = None) -> None:
        self.size_bytes = size_bytes
        self._users = Counter(users)

    def add(self, weights: LoraWeights) -> None:
        """Count weights too."""
        self.size_bytes += weights.size_bytes
        for basis in weights.shared:
            if basis not in self._users:
                self.size_bytes += basis.size_bytes
            self._users[basis] += 1

    def remove(self, weights: LoraWeights) -> None:
        """Count weights no more."""
        self.size_bytes -= weights.size_bytes
        for basis in weights.shared:
            self._users[basis] -= 1
            if not self._users[basis]:
                del self._users[basis]
                self.size_bytes -= basis.size_bytes

    def copy(self) -> "_Held":
        """Return the same, to be changed by itself."""
        return _Held(self.size_bytes, self._users)


class HostVersions:
    """The installed versions, in host memory of a bounded size.

    A version is pinned while a request uses it. Weights that nobody uses leave the host when
    others need the room, least recently used first, if they can be had again: fetched, or
    combined anew. A retired version admits no new pin and goes with its last one.

    Invariants, checked by `test_versions_properties.py`: the weights held never exceed the
    limit; a pinned version keeps its weights; an installed version can be pinned whenever
    there is room.
    """

    def __init__(
        self,
        limit_bytes: int,
        *,
        fetch: Callable[[VersionId], LoraWeights] | None = None,
        check: Callable[[LoraWeights], None] | None = None,
    ) -> None:
        """Start with nothing installed.

        Args:
            limit_bytes: Most bytes of weights to hold.
            fetch: Reads an installed version from disk; None where there is no disk tier:
                then weights stay until they are retired.
            check: Raises for weights that the slots could not hold: `LoraBank.check`. Later,
                in the middle of a step, they would take the engine with them.
        """
        self._limit_bytes = limit_bytes
        self._fetch = fetch
        self._check = check
        self._installed: set[VersionId] = set()
        self._mixtures: dict[VersionId, Mixture] = {}
        self._weights: OrderedDict[VersionId, LoraWeights] = OrderedDict()  # oldest use first
        self._pins: dict[VersionId, int] = {}
        self._held = _Held()

    @property
    def size_bytes(self) -> int:
        """Bytes of weights that are held; what several share counts once."""
        return self._held.size_bytes

    @property
    def num_pinned(self) -> int:
        """Versions that requests use."""
        return len(self._pins)

    def __contains__(self, version: VersionId) -> bool:
        return version in self._installed

    def install(self, version: VersionId, weights: LoraWeights | None = None) -> None:
        """Let requests use a version.

        Args:
            version: Its id; to install it again changes nothing.
            weights: What it adds; None fetches that with the first request.

        Raises:
            AdapterMemoryFullError: There is no room for the weights.
            IncompatibleAdapterError: They are not for this model.
        """
        assert weights is not None or self._fetch is not None, "there is nowhere to fetch from"
        if weights is not None and version not in self._weights:
            self._hold(version, weights)
        self._installed.add(version)

    def reader(self, version: VersionId) -> Callable[[], LoraWeights] | None:
        """Return what reads an installed version, on any thread; None if it need not be read.

        `pin` takes what it returns, and would otherwise read itself.
        """
        if version in self._weights or version not in self._installed:
            return None
        return self._reader(version)

    def sum_reader(
        self, parts: Sequence[tuple[VersionId, float]]
    ) -> Callable[[], LoraWeights] | None:
        """Return what adds up a weighted sum, on any thread; None if it is there.

        `compose` takes what it returns, and would otherwise add up itself.

        Raises:
            InvalidRequestError: As `compose`.
            VersionNotFoundError: As `compose`.
        """
        mixture = self._checked_mixture(parts)
        return None if mixture_id(mixture) in self._weights else self._sum_reader(mixture)

    def compose(
        self, parts: Sequence[tuple[VersionId, float]], weights: LoraWeights | None = None
    ) -> VersionId:
        """Install the weighted sum of versions as a version of its own.

        Its id follows from the parts, whatever their order. It is retired with any of them.

        Args:
            parts: Installed versions, each with the factor of what it adds.
            weights: The sum, if a `sum_reader` has made it.

        Raises:
            InvalidRequestError: There is no part, a part comes twice, or a factor is not a
                finite number.
            VersionNotFoundError: A part is not installed.
            AdapterMemoryFullError: There is no room for the sum.
        """
        mixture = self._checked_mixture(parts)
        version = mixture_id(mixture)
        if version not in self._installed:
            self._forget_mixtures()
            self._mixtures[version] = mixture
            try:
                self._load(version, weights)
            except BaseException:
                del self._mixtures[version]
                raise
            self._installed.add(version)
        return version

    def retire(self, version: VersionId) -> None:
        """Refuse a version to new requests; those that use it keep it to their end.

        Raises:
            VersionNotFoundError: It is not installed.
        """
        self._check_installed(version)
        leaving = [version]
        for gone in leaving:  # grows while it is walked: a mixture may be part of another
            self._installed.discard(gone)
            self._mixtures.pop(gone, None)
            if gone not in self._pins:
                self._drop(gone)
            leaving += [
                other
                for other, mixture in self._mixtures.items()
                if any(part == gone for part, _ in mixture)
            ]

    def pin(self, version: VersionId | None, weights: LoraWeights | None = None) -> None:
        """Make sure of a version's weights until `unpin`; None is the base model.

        Args:
            version: The version.
            weights: What it adds, if a `reader` has read it.

        Raises:
            VersionNotFoundError: It is not installed.
            AdapterMemoryFullError: The versions in use leave no room for it.
        """
        if version is None:
            return
        self._check_installed(version)
        self._load(version, weights)
        self._pins[version] = self._pins.get(version, 0) + 1

    def unpin(self, version: VersionId | None) -> None:
        """Undo one `pin`."""
        if version is None:
            return
        assert self._pins.get(version, 0) > 0, f"{version} is not pinned"
        self._pins[version] -= 1
        if self._pins[version] == 0:
            del self._pins[version]
            if version not in self._installed:
                self._drop(version)

    def weights_of(self, version: VersionId) -> LoraWeights:
        """Return the weights of a pinned version, to be copied into a slot."""
        assert version in self._pins, f"{version} is not pinned"
        return self._weights[version]

    def _forget_mixtures(self) -> None:
        """Retire the oldest mixtures that are not in use, so that their number is bounded."""
        excess = len(self._mixtures) + 1 - _MAX_MIXTURES
        unused = [version for version in self._mixtures if version not in self._pins]
        for version in unused[: max(excess, 0)]:
            if version in self._installed:
                self.retire(version)

    def _check_installed(self, version: VersionId) -> None:
        if version not in self._installed:
            raise VersionNotFoundError(
                f"adapter version {version} is not installed",
                hint="Install it, or ask for a version that is.",
            )

    def _checked_mixture(self, parts: Sequence[tuple[VersionId, float]]) -> Mixture:
        mixture = _parse_mixture(parts)
        for version, _ in mixture:
            self._check_installed(version)
        return mixture

    def _load(self, version: VersionId, weights: LoraWeights | None) -> None:
        if version not in self._weights:
            self._hold(version, self._reader(version)() if weights is None else weights)
        self._weights.move_to_end(version)

    def _reader(self, version: VersionId) -> Callable[[], LoraWeights]:
        """Return what reads a version, without touching anything of this object."""
        held = self._weights.get(version)
        if held is not None:
            return lambda: held
        if version in self._mixtures:
            return self._sum_reader(self._mixtures[version])
        fetch = self._fetch
        assert fetch is not None, "without a disk tier, installed weights are held"
        return lambda: fetch(version)

    def _sum_reader(self, mixture: Mixture) -> Callable[[], LoraWeights]:
        readers = [(self._reader(part), factor) for part, factor in mixture]
        return lambda: combine([(read(), factor) for read, factor in readers])

    def _hold(self, version: VersionId, weights: LoraWeights) -> None:
        """Keep weights, and let others go for them."""
        if self._check is not None:
            self._check(weights)
        leaving: list[VersionId] = []
        rest = self._held.copy()
        rest.add(weights)
        for other, held in self._weights.items():
            if rest.size_bytes <= self._limit_bytes:
                break
            if other not in self._pins and (self._fetch is not None or other in self._mixtures):
                leaving.append(other)
                rest.remove(held)
        if rest.size_bytes > self._limit_bytes:
            alone = _Held()
            alone.add(weights)
            raise AdapterMemoryFullError(
                f"adapter version {version} takes {alone.size_bytes} bytes, "
                f"{rest.size_bytes - self._limit_bytes} more than the versions in use leave of "
                f"{self._limit_bytes}",
                hint="Try again when requests have ended, or allow adapters more host memory.",
            )
        for other in leaving:
            self._drop(other)
        self._weights[version] = weights
        self._held.add(weights)

    def _drop(self, version: VersionId) -> None:
        weights = self._weights.pop(version, None)
        if weights is not None:
            self._held.remove(weights)


def mixture_id(parts: Sequence[tuple[VersionId, float]]) -> VersionId:
    """Name the weighted sum of versions by its content, whatever their order."""
    content = json.dumps(["mixture", sorted(parts)], separators=(",", ":"))
    return VersionId(hashlib.sha256(content.encode()).hexdigest())


def _parse_mixture(parts: Sequence[tuple[VersionId, float]]) -> Mixture:
    versions = {version for version, _ in parts}
    if not parts or len(versions) < len(parts):
        raise InvalidRequestError(
            f"{len(parts)} adapters of {len(versions)} versions are no composition",
            hint="Name at least one adapter, and each of them once.",
        )
    for version, factor in parts:
        if not math.isfinite(factor):
            raise InvalidRequestError(
                f"adapter version {version} has the factor {factor}", hint="Make it a number."
            )
    return tuple(sorted((version, float(factor)) for version, factor in parts))
