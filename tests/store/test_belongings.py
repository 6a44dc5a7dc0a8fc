"""What is kept with names: there when they move, gone when they are deleted."""

import pytest

from hyprstream.errors import AdapterNotFoundError, InvalidRequestError
from hyprstream.refs import AdapterName
from hyprstream.store.belongings import MAX_BYTES
from hyprstream.store.store import AdapterStore
from tests.store.fakes import draft

NAME = AdapterName("a")


@pytest.fixture
def store(tmp_path):
    store = AdapterStore(tmp_path)
    store.create(NAME, store.commit(b"one", draft()))
    yield store
    store.close()


def test_what_is_kept_stays_with_the_name_wherever_it_points(store, tmp_path):
    store.belongings.put(NAME, "learning", b"all")
    store.belongings.put(NAME, "trusted/manual.jsonl", b"{}")
    first = store.current(NAME)
    store.promote(NAME, store.commit(b"two", draft()), expected=first)
    store.belongings.put(NAME, "learning", b"off")
    again = AdapterStore(tmp_path)
    assert again.belongings.sizes(NAME) == {"learning": 3, "trusted/manual.jsonl": 2}
    assert again.belongings.get(NAME, "learning") == b"off"
    assert again.belongings.get(NAME, "other") is None
    assert again.belongings.remove(NAME, "learning")
    assert not again.belongings.remove(NAME, "learning")
    again.close()


def test_an_adapter_that_takes_a_name_finds_nothing_of_the_one_before(store):
    store.belongings.put(NAME, "learning", b"all")
    store.delete(NAME)
    with pytest.raises(AdapterNotFoundError):
        store.belongings.get(NAME, "learning")
    store.create(NAME, store.commit(b"one", draft()))
    assert store.belongings.sizes(NAME) == {}


def test_nothing_is_kept_with_a_name_that_is_not_there(store):
    other = AdapterName("b")
    for call in (store.belongings.sizes, lambda n: store.belongings.put(n, "k", b"")):
        with pytest.raises(AdapterNotFoundError):
            call(other)


@pytest.mark.parametrize("key", ["", "../x", "a/b/c", ".hidden", "a b", "x" * 201])
def test_a_key_is_one_plain_word_or_two(store, key):
    with pytest.raises(InvalidRequestError, match="cannot name"):
        store.belongings.put(NAME, key, b"")


def test_a_piece_is_bounded(store):
    with pytest.raises(InvalidRequestError, match="bytes"):
        store.belongings.put(NAME, "k", bytes(MAX_BYTES + 1))
