"""Fakes for the adaptation loop: weights are two numbers, disks and people do as they are told."""

import itertools
import math
import zlib
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from typing_extensions import override

from hyprstream.errors import (
    AdapterNotFoundError,
    HyprstreamError,
    NonFiniteTrainingError,
    StaleParentError,
)
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.learners import Published
from hyprstream.store.records import Canary
from hyprstream.train.sample import Sample

POISON = 13
"""A token that harms what is trusted, however well it is learnt."""
EXPLOSIVE = 99
"""A token at which training ends in numbers that are none."""


class Skill(NamedTuple):
    """The weights: what was learnt, and what harm it did."""

    learnt: float = 0.0
    harm: float = 0.0


def lesson(number: int, *tokens: int) -> Sample:
    """A sample of its own prompt and answer."""
    prompt = (number % 50 + 100, number // 50 + 1000)
    words = (number * 7 % 83 + k + 300 for k in range(9))
    return Sample.answer(prompt, (*tokens, *words, prompt[0] + 100))


def noise(sample: Sample) -> float:
    return zlib.crc32(repr(sample.token_ids).encode()) / 2**32


@dataclass
class FakeClock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Inline(Executor):
    """Does work at once."""

    @override
    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **options))
        except Exception as error:  # noqa: BLE001 - as an executor does
            future.set_exception(error)
        return future


class Slow(Executor):
    """Does work when it is told to."""

    def __init__(self):
        self.coming: list[tuple[Future[Any], Callable[[], Any]]] = []

    @override
    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.coming.append((future, lambda: work(*args, **options)))
        return future

    def go_on(self) -> None:
        for future, work in self.coming:
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - as an executor does
                future.set_exception(error)
        self.coming.clear()


@dataclass
class Pieces:
    """Work in a few pieces."""

    work: Callable[[], Any]
    left: int = 2
    found: Any = None

    def result(self) -> Any:
        return self.found

    def advance(self) -> bool:
        self.left -= 1
        if self.left == 0:
            self.found = self.work()
        return self.left == 0


@dataclass
class Report:
    grad_norm: float
    num_tokens: int
    loss: float = 1.0


@dataclass
class FakeTrainer:
    """Every step teaches something, until it is too much; poison does harm too."""

    clock: FakeClock
    states: dict[AdapterName, list[Skill]] = field(default_factory=dict)
    pending: list[Sample] = field(default_factory=list)
    num_evaluated: int = 0
    too_much: float = math.inf
    passes: list[tuple[int, int]] = field(default_factory=list)  # samples and anchors of each

    @property
    def names(self) -> list[AdapterName]:
        return list(self.states)

    def open(self, name: AdapterName, start: Skill, *, spec: Any, config: Any) -> None:
        assert spec is None
        assert config is None
        assert not self.states, "one learns at a time"
        self.states[name] = [start]

    def close(self, name: AdapterName) -> None:
        del self.states[name]
        self.pending = []

    def begin(self, name, samples, *, anchors=None) -> Pieces:
        assert name in self.states
        assert anchors is None or anchors

        def work() -> None:
            self.clock.now += 0.01
            if any(EXPLOSIVE in sample.token_ids for sample in samples):
                raise NonFiniteTrainingError("the loss")
            self.pending += samples
            self.passes.append((len(samples), len(anchors or ())))

        return Pieces(work, left=3)

    def begin_apply(self, name) -> Pieces:
        def work() -> Report:
            skill = self.states[name][-1]
            harm = sum(POISON in sample.token_ids for sample in self.pending) / len(self.pending)
            self.states[name].append(Skill(skill.learnt + 0.05, skill.harm + 0.05 * harm))
            tokens = sum(len(sample.token_ids) for sample in self.pending)
            self.pending = []
            return Report(grad_norm=1.0, num_tokens=tokens)

        return Pieces(work)

    def begin_snapshot(self, name) -> Pieces:
        return Pieces(lambda: self.states[name][-1])

    def begin_evaluation(self, weights, samples, *, batch_tokens=2048) -> Pieces:
        assert all(len(sample.token_ids) <= batch_tokens for sample in samples)
        skill = weights or Skill()

        def loss(sample: Sample) -> float:
            known = 1.0 + 0.1 * noise(sample)
            if sample.weight != 1.0:  # a trusted one
                return known + skill.harm * (1 + 0.1 * noise(sample))
            is_foreign = sample.token_ids[-1] != sample.token_ids[0] + 100
            use = skill.learnt - 2 * max(0.0, skill.learnt - self.too_much)
            return known + is_foreign + (1 + 0.1 * noise(sample)) / (1 + use)

        def work() -> list[float]:
            self.num_evaluated += len(samples)
            return [loss(sample) for sample in samples]

        return Pieces(work)


class FakeVersions:
    """A store and an engine: names, versions, and what is installed."""

    def __init__(self) -> None:
        self.weights: dict[VersionId, Any] = {}
        self.parents: dict[VersionId, VersionId | None] = {}
        self.installed: dict[VersionId, Any] = {}
        self.names: dict[AdapterName, VersionId] = {}
        self.moves: dict[AdapterName, list[VersionId]] = {}
        self.refuses: HyprstreamError | None = None
        self.before_promotion: Callable[[], None] = lambda: None
        self.share = 0.0
        self.canaries: dict[AdapterName, Canary] = {}
        self.since = datetime.fromtimestamp(0, UTC)
        self._numbers = itertools.count()

    def create(self, name: AdapterName, weights: Any = None) -> VersionId:
        version = self._commit(weights or Skill(), None)
        self.installed[version] = self.weights[version]
        self.names[name] = version
        self.moves[name] = [version]
        return version

    def move(self, name: AdapterName, to: VersionId) -> None:
        """What people do."""
        self.names[name] = to
        self.moves[name].append(to)
        self.canaries.pop(name, None)

    def current(self, name: AdapterName) -> tuple[VersionId, Any]:
        if name not in self.names:
            raise AdapterNotFoundError(f"there is no adapter {name}")
        return self.names[name], self.weights[self.names[name]]

    def load(self, version: VersionId) -> Any:
        return self.weights[version]

    def canary(self, name: AdapterName) -> Canary | None:
        return self.canaries.get(name)

    def promote_canary(self, name: AdapterName, canary: Canary, why: str) -> None:
        assert why
        self.withdraw_canary(name, canary)
        self.installed[canary.version] = self.weights[canary.version]
        self.move(name, canary.version)

    def withdraw_canary(self, name: AdapterName, canary: Canary) -> None:
        if self.refuses is not None:
            raise self.refuses
        if self.canaries.get(name) != canary:
            raise StaleParentError(f"{name} has no such canary", hint="Decide again.")
        del self.canaries[name]

    def has_served(self, name: AdapterName, canary: Canary) -> bool:
        return canary.version in self.moves.get(name, [])

    def publish(self, name, weights, *, parent, numbers, committed) -> Published:
        assert numbers["samples"] > 0
        if self.refuses is not None:
            raise self.refuses
        version = self._commit(weights, parent)
        committed(version, self.share or 1.0)
        self.installed[version] = weights
        self.before_promotion()
        self._expect(name, parent)
        if self.share:
            assert name not in self.canaries
            self.canaries[name] = canary = Canary(
                version=version, parent=parent, share=self.share, since=self.since
            )
            return Published(version=version, canary=canary)
        self.move(name, version)
        return Published(version=version)

    def roll_back(self, name, *, expected, why) -> VersionId:
        assert why
        self._expect(name, expected)
        parent = self.parents[expected]
        assert parent is not None
        self.move(name, parent)
        return parent

    def _commit(self, weights: Any, parent: VersionId | None) -> VersionId:
        version = VersionId(f"{next(self._numbers):064x}")
        self.weights[version] = weights
        self.parents[version] = parent
        return version

    def _expect(self, name: AdapterName, version: VersionId) -> None:
        if self.names[name] != version:
            raise StaleParentError(f"{name} points at {self.names[name]}", hint="Decide again.")


def trusted(number: int) -> Sample:
    return replace(lesson(number), weight=2.0)
