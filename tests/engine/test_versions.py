"""Installed versions: what may be asked for, and what stays in memory."""

import pytest
import torch

from hyprstream.engine.versions import HostVersions
from hyprstream.errors import AdapterMemoryFullError, InvalidRequestError, VersionNotFoundError
from hyprstream.lora.basis import BaseLayers, Basis
from hyprstream.lora.kinds.tiny import Tiny
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.quant import DenseWeight
from hyprstream.refs import VersionId
from tests.engine.adapters import low_rank

ONE = low_rank(seed=1).size_bytes  # every adapter of these tests is as large
A, B, C = VersionId("a"), VersionId("b"), VersionId("c")


class Disk:
    """A disk tier that counts."""

    def __init__(self):
        self.reads = []

    def __call__(self, version):
        self.reads.append(version)
        return low_rank(seed=ord(version))


def test_a_version_that_is_not_installed_cannot_be_pinned():
    versions = HostVersions(10 * ONE, fetch=Disk())
    with pytest.raises(VersionNotFoundError, match="adapter version a"):
        versions.pin(A)


def test_the_base_model_needs_no_pin():
    versions = HostVersions(0)
    versions.pin(None)
    versions.unpin(None)
    assert versions.num_pinned == 0


def test_a_retired_version_stays_with_those_that_use_it():
    versions = HostVersions(10 * ONE)
    weights = low_rank(seed=1)
    versions.install(A, weights)
    versions.pin(A)
    versions.retire(A)
    assert versions.weights_of(A) is weights
    with pytest.raises(VersionNotFoundError):
        versions.pin(A)
    versions.unpin(A)
    assert versions.size_bytes == 0


def test_a_version_can_come_back_while_it_is_still_used():
    versions = HostVersions(10 * ONE)
    weights = low_rank(seed=1)
    versions.install(A, weights)
    versions.pin(A)
    versions.retire(A)
    versions.install(A, low_rank(seed=1))
    versions.unpin(A)
    versions.pin(A)
    assert versions.weights_of(A) is weights


def test_the_version_used_longest_ago_leaves_first_and_is_fetched_again():
    disk = Disk()
    versions = HostVersions(2 * ONE, fetch=disk)
    for version in (A, B, C):
        versions.install(version)
    for version in (A, B, A, C, B):  # C drops B, B drops A
        versions.pin(version)
        versions.unpin(version)
    assert disk.reads == [A, B, C, B]
    assert versions.size_bytes == 2 * ONE


def test_versions_in_use_are_not_dropped_for_another():
    versions = HostVersions(2 * ONE, fetch=Disk())
    for version in (A, B, C):
        versions.install(version)
    versions.pin(A)
    versions.pin(B)
    with pytest.raises(AdapterMemoryFullError, match="c takes"):
        versions.pin(C)
    versions.unpin(A)
    versions.pin(C)
    assert versions.num_pinned == 2


def test_without_a_disk_nothing_is_dropped_that_could_not_be_had_again():
    versions = HostVersions(2 * ONE)
    versions.install(A, low_rank(seed=1))
    versions.install(B, low_rank(seed=2))
    with pytest.raises(AdapterMemoryFullError):
        versions.install(C, low_rank(seed=3))
    assert C not in versions
    assert A in versions


def test_what_the_slots_could_not_hold_is_refused_before_it_is_installed():
    def check(_weights: LoraWeights):
        raise InvalidRequestError("too large")

    versions = HostVersions(10 * ONE, check=check)
    with pytest.raises(InvalidRequestError):
        versions.install(A, low_rank(seed=1))
    assert A not in versions


def test_a_composition_adds_what_its_parts_add_times_their_factors():
    versions = HostVersions(10 * ONE)
    a, b = low_rank(seed=1), low_rank(seed=2)
    versions.install(A, a)
    versions.install(B, b)
    mixed = versions.compose([(A, 0.5), (B, -2.0)])
    versions.pin(mixed)
    weights = versions.weights_of(mixed)
    for path, delta in weights.modules.items():
        expected = 0.5 * dense(a.modules[path]) - 2.0 * dense(b.modules[path])
        torch.testing.assert_close(dense(delta), expected)


def dense(delta):
    tensors = delta.tensors()
    return tensors["a"] @ tensors["b"]


def test_a_composition_is_named_by_its_content_in_any_order():
    versions = HostVersions(10 * ONE)
    versions.install(A, low_rank(seed=1))
    versions.install(B, low_rank(seed=2))
    first = versions.compose([(A, 1), (B, 2)])
    assert versions.compose([(B, 2.0), (A, 1.0)]) == first
    assert versions.compose([(A, 2), (B, 1)]) != first
    assert len(first) == 64


@pytest.mark.parametrize("parts", [[], [(A, 1.0), (A, 2.0)], [(A, float("nan"))]])
def test_a_composition_that_is_none_is_refused(parts):
    versions = HostVersions(10 * ONE)
    versions.install(A, low_rank(seed=1))
    with pytest.raises(InvalidRequestError):
        versions.compose(parts)


def test_a_composition_of_an_unknown_version_is_refused():
    with pytest.raises(VersionNotFoundError):
        HostVersions(10 * ONE).compose([(A, 1.0)])


def test_retiring_a_part_retires_every_composition_of_it():
    versions = HostVersions(100 * ONE)
    for version, seed in ((A, 1), (B, 2), (C, 3)):
        versions.install(version, low_rank(seed=seed))
    inner = versions.compose([(A, 1.0), (B, 1.0)])
    outer = versions.compose([(inner, 0.5), (C, 1.0)])
    other = versions.compose([(B, 1.0), (C, 1.0)])
    versions.retire(A)
    assert [version in versions for version in (A, inner, outer, other)] == [False] * 3 + [True]


def test_a_composition_that_left_memory_is_combined_again():
    versions = HostVersions(4 * ONE)
    for version, seed in ((A, 1), (B, 2)):
        versions.install(version, low_rank(seed=seed))
    first = versions.compose([(A, 1.0), (B, 1.0)])  # twice the rank: as large as both
    second = versions.compose([(A, 1.0), (B, 2.0)])
    versions.pin(second)
    with pytest.raises(AdapterMemoryFullError):
        versions.pin(first)
    versions.unpin(second)
    versions.pin(first)
    assert versions.size_bytes == 4 * ONE


def test_compositions_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr("hyprstream.engine.versions._MAX_MIXTURES", 2)
    versions = HostVersions(100 * ONE)
    versions.install(A, low_rank(seed=1))
    mixtures = [versions.compose([(A, float(factor))]) for factor in range(4)]
    assert [mixture in versions for mixture in mixtures] == [False, False, True, True]


def tiny(basis: Basis, seed: int) -> LoraWeights:
    core = torch.randn(basis.rank, basis.rank, generator=torch.Generator().manual_seed(seed))
    return LoraWeights({"q": Tiny(core, basis)})


def test_a_basis_that_tiny_adapters_share_counts_once_and_as_long_as_one_is_held():
    base = BaseLayers({"q": DenseWeight(torch.randn(40, 30))})
    basis = base.basis("q", 4)
    core_bytes = 4 * 4 * 4
    versions = HostVersions(basis.size_bytes + 2 * core_bytes)
    versions.install(A, tiny(basis, 1))
    assert versions.size_bytes == basis.size_bytes + core_bytes
    versions.install(B, tiny(basis, 2))
    assert versions.size_bytes == basis.size_bytes + 2 * core_bytes
    with pytest.raises(AdapterMemoryFullError, match=f"takes {basis.size_bytes + core_bytes} byte"):
        versions.install(C, tiny(basis, 3))
    versions.retire(A)
    assert versions.size_bytes == basis.size_bytes + core_bytes
    versions.retire(B)
    assert versions.size_bytes == 0
    del basis
    assert base.size_bytes == 0


def test_room_for_a_basis_is_made_by_letting_adapters_of_another_one_go():
    base = BaseLayers({"q": DenseWeight(torch.randn(40, 30))})
    ranks = {A: 4, B: 4, C: 8}
    largest = tiny(base.basis("q", 8), 1)
    limit_bytes = largest.size_bytes + next(iter(largest.shared)).size_bytes
    del largest
    versions = HostVersions(limit_bytes, fetch=lambda v: tiny(base.basis("q", ranks[v]), 1))
    for version in ranks:
        versions.install(version)
        versions.pin(version)
        versions.unpin(version)
        assert versions.size_bytes == sum_of(versions) <= limit_bytes
    assert base.size_bytes == 4 * 8 * (40 + 30), "the other basis went with its adapters"


def sum_of(versions: HostVersions) -> int:
    held = list(versions._weights.values())
    bases = {basis for weights in held for basis in weights.shared}
    return sum(w.size_bytes for w in held) + sum(basis.size_bytes for basis in bases)
