"""Tables of vectors: what was put in comes out, by brute force and after a kill."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import (
    CorruptVectorsError,
    IncompatibleVectorsError,
    InvalidRequestError,
    TableExistsError,
    TableNotFoundError,
)
from hyprstream.vectors.search import Piece, nearest
from hyprstream.vectors.store import VectorStore
from hyprstream.vectors.table import Stamp

STAMP = Stamp(model="pypi://m", adapter="a", version="1" * 64, pooling="mean")


def rows(vectors, **columns):
    width = vectors.shape[1]
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    table = pa.table({"embedding": pa.FixedSizeListArray.from_arrays(flat, width), **columns})
    return table.schema, table.to_batches(max_chunksize=7)


def vectors(num_rows, dim=8, seed=0):
    return np.random.default_rng(seed).standard_normal((num_rows, dim)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    return VectorStore(tmp_path / "vectors")


def test_what_was_put_in_comes_out(store):
    store.create("docs", 8, STAMP)
    given_vectors = vectors(30)
    keys = [f"k{i}" for i in range(30)]
    assert store.append("docs", *rows(given_vectors, key=keys), STAMP) == 30
    assert store.append("docs", *rows(given_vectors[:5] * 2, key=keys[:5]), STAMP) == 5
    again = VectorStore(store._folder).table("docs")
    table = again.arrow()
    assert (len(again), again.stamp) == (35, STAMP)
    assert table.column("id").to_pylist() == list(range(35))
    assert table.column("key").to_pylist() == [*keys, *keys[:5]]
    out = np.stack(table.column("embedding").to_pylist())
    np.testing.assert_array_equal(out, np.concatenate([given_vectors, given_vectors[:5] * 2]))
    np.testing.assert_array_equal(again.vector("k3"), given_vectors[3] * 2)
    assert again.vector("nobody") is None
    assert again.rows([33, 2])[0] == {"id": 33, "key": "k3", "text": None, "metadata": None}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_search_finds_what_sorting_all_scores_finds(data):
    dim, k = 4, data.draw(st.integers(1, 12))
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    table = np.array(
        data.draw(
            st.lists(
                st.lists(st.integers(-3, 3), min_size=dim, max_size=dim),
                min_size=sum(sizes), max_size=sum(sizes),
            )
        ),
        np.float32,
    )  # fmt: skip
    queries = vectors(data.draw(st.integers(1, 3)), dim, seed=1)
    norms = np.linalg.norm(table, axis=1)
    pieces, first = [], 0
    for size in sizes:
        pieces.append(Piece(table[first : first + size], norms[first : first + size], first))
        first += size
    hits = nearest(pieces, queries, k)
    exact = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ table.T.astype(np.float64)
    exact = np.where(norms > 0, exact / np.where(norms > 0, norms, 1), 0)
    for i, line in enumerate(exact):
        best = np.sort(line)[::-1][:k]
        np.testing.assert_allclose(hits.scores[i], best, atol=1e-5)
        np.testing.assert_allclose(line[hits.ids[i]], best, atol=1e-5)
        assert len(set(hits.ids[i])) == len(best)


def test_vectors_of_different_makers_do_not_mix(store):
    store.create("docs", 8, STAMP)
    with pytest.raises(IncompatibleVectorsError, match="a@1111"):
        store.append("docs", *rows(vectors(3)), Stamp(model="pypi://m"))
    with pytest.raises(IncompatibleVectorsError, match="8 numbers, these have 9"):
        store.append("docs", *rows(vectors(3, 9)), STAMP)
    assert len(store.table("docs")) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_is_no_number_is_refused_and_nothing_is_kept(store, bad):
    store.create("docs", 8)
    worse = vectors(20)
    worse[15, 3] = bad
    with pytest.raises(InvalidRequestError):
        store.append("docs", *rows(worse), Stamp())
    assert len(store.table("docs")) == 0
    assert not list(store._folder.glob("docs/*.arrow"))


def test_a_list_of_doubles_becomes_vectors_and_one_of_another_length_does_not(store):
    store.create("docs", 2)
    table = pa.table({"embedding": [[1.0, 2.0], [3.0, 4.0]]})
    assert store.append("docs", table.schema, table.to_batches(), Stamp()) == 2
    ragged = pa.table({"embedding": [[1.0, 2.0], [3.0]]})
    with pytest.raises(InvalidRequestError, match="2 numbers are wanted"):
        store.append("docs", ragged.schema, ragged.to_batches(), Stamp())
    missing = pa.table({"embedding": [[1.0, None]]})
    with pytest.raises(InvalidRequestError, match="missing"):
        store.append("docs", missing.schema, missing.to_batches(), Stamp())


def test_many_small_files_become_few_and_the_rows_stay(store):
    store.create("docs", 8)
    all_vectors = vectors(80)
    seen = store.table("docs")
    for i in range(40):
        store.append("docs", *rows(all_vectors[2 * i : 2 * i + 2]), Stamp())
    table = store.table("docs")
    assert len(table.segments) <= 32
    assert store.compact("docs") > 1
    assert len(store.table("docs").segments) == 1
    for look in (table, store.table("docs")):  # what was mapped before is as it was
        out = np.stack(look.arrow().column("embedding").to_pylist())
        np.testing.assert_array_equal(out, all_vectors)
    assert len(seen) == 0


def test_damage_is_found_and_named(store):
    store.create("docs", 8)
    store.append("docs", *rows(vectors(9)), Stamp())
    file = next(store._folder.glob("docs/*.arrow"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(CorruptVectorsError, match="bytes long"):
        store.table("docs").arrow()
    (store._folder / "docs" / "table.json").write_text('{"format": 1}')
    with pytest.raises(CorruptVectorsError, match=r"table\.json"):
        store.table("docs")


def test_names_lead_nowhere_else_and_tables_can_be_dropped(store):
    for name in ("../x", "", "A", "a/b", "1a"):
        with pytest.raises(InvalidRequestError):
            store.create(name, 8)
    store.create("docs", 8)
    with pytest.raises(TableExistsError):
        store.create("docs", 8)
    assert store.names() == ["docs"]
    store.drop("docs")
    assert store.names() == []
    with pytest.raises(TableNotFoundError):
        store.table("docs")


def test_a_query_of_another_length_is_refused(store):
    store.create("docs", 8)
    store.append("docs", *rows(vectors(9)), Stamp())
    table = store.table("docs")
    assert table.search(vectors(2), 3).ids.shape == (2, 3)
    with pytest.raises(InvalidRequestError, match="8 numbers, the query has 7"):
        table.search(vectors(1, 7), 3)
    with pytest.raises(InvalidRequestError, match="k is 0"):
        table.search(vectors(1), 0)
