import pytest

from hyprstream.engine.slots import BASE_SLOT, Lease, SlotTable
from hyprstream.refs import VersionId

A, B, C = VersionId("a"), VersionId("b"), VersionId("c")


def test_the_base_model_needs_no_slot_of_its_own():
    table = SlotTable(0)
    assert table.lease(None) == Lease(BASE_SLOT, must_load=False)
    table.release(None)
    assert table.pins == {}


def test_a_version_is_loaded_once_and_stays_where_it_is():
    table = SlotTable(2)
    assert table.lease(A) == Lease(1, must_load=True)
    assert table.lease(A) == Lease(1, must_load=False)
    table.release(A)
    table.release(A)
    assert table.lease(A) == Lease(1, must_load=False)


def test_the_version_used_longest_ago_gives_way():
    table = SlotTable(2)
    for version in (A, B, A):
        table.lease(version)
        table.release(version)
    assert table.lease(C) == Lease(2, must_load=True)
    assert table.lease(A) == Lease(1, must_load=False)


def test_a_pinned_version_does_not_give_way():
    table = SlotTable(1)
    table.lease(A)
    assert not table.has_room(B)
    assert table.lease(B) is None
    assert table.has_room(A)
    assert table.has_room(None)
    table.release(A)
    assert table.has_room(B)
    assert table.lease(B) == Lease(1, must_load=True)


def test_a_version_is_not_released_more_often_than_leased():
    table = SlotTable(1)
    table.lease(A)
    table.release(A)
    with pytest.raises(AssertionError, match="more often"):
        table.release(A)
