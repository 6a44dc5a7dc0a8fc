"""The approximate index: what it finds, that it never hides a row, and what becomes of it."""

import json

import numpy as np
import pyarrow as pa
import pytest

from hyprstream.errors import CorruptVectorsError, InvalidRequestError, TableNotFoundError
from hyprstream.vectors.store import INDEX_ROWS, VectorStore
from hyprstream.vectors.table import Stamp, stored_schema

pytest.importorskip("faiss", reason="faiss is not installed")
DIM = 16


def clustered(num_rows, seed):
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((40, DIM))
    noise = 0.3 * random.standard_normal((num_rows, DIM))
    return (centres[random.integers(0, 40, num_rows)] + noise).astype(np.float32)


def add(store, vectors, name="t"):
    flat = pa.array(vectors.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(
        flat, type=stored_schema(DIM).field("embedding").type
    )
    batch = pa.record_batch([column], names=["embedding"])
    store.append(name, batch.schema, [batch], Stamp())


@pytest.fixture
def store(tmp_path):
    store = VectorStore(tmp_path, index_rows=1000)
    store.create("t", DIM)
    return store


def recall(table, queries, k=10):
    exact, found = (table.search(queries, k, exact=how) for how in (True, False))
    same = [np.intersect1d(a, b) for a, b in zip(exact.ids, found.ids, strict=True)]
    for i, ids in enumerate(same):
        for row in ids:  # what both find has the same score
            scores = [hits.scores[i][hits.ids[i] == row][0] for hits in (exact, found)]
            assert abs(scores[0] - scores[1]) < 1e-5
    return sum(map(len, same)) / exact.ids.size


def test_it_finds_what_an_exact_search_finds_and_says_how_much_of_it(store):
    add(store, clustered(4000, 1))
    assert store.wants_index("t")
    entry = store.index("t")
    assert not store.wants_index("t")
    assert entry.num_rows == 4000
    assert entry.recall >= 0.95
    assert recall(store.table("t"), clustered(50, 2)) >= 0.95
    assert store.index("t") == entry  # there is nothing to do


def test_rows_that_came_later_are_found_at_once(store):
    add(store, clustered(2000, 1))
    store.index("t")
    new = clustered(1, 7)
    add(store, new)
    hits = store.table("t").search(new, 1)
    assert hits.ids.tolist() == [[2000]]
    assert not store.wants_index("t")
    add(store, clustered(300, 8))
    assert store.wants_index("t")
    extended = store.index("t")
    assert (extended.num_rows, extended.num_trained) == (2301, 2000)
    assert store.table("t").search(new, 1).ids.tolist() == [[2000]]
    add(store, clustered(2000, 9))
    assert store.index("t").num_trained == 4301  # twice as many: other cells
    assert recall(store.table("t"), clustered(30, 3)) >= 0.95


def test_joined_files_keep_it_and_a_new_table_of_the_name_has_none(store, tmp_path):
    add(store, clustered(900, 1))
    add(store, clustered(900, 2))
    entry = store.index("t")
    store.compact("t")
    table = store.table("t")
    assert table.index == entry
    assert recall(table, clustered(30, 3)) >= 0.95
    assert len(list(tmp_path.glob("t/*.faiss"))) == 1
    again = VectorStore(tmp_path, index_rows=1000).table("t")  # another process
    assert again.search(clustered(1, 1), 5).ids.shape == (1, 5)
    store.drop("t")
    store.create("t", DIM)
    assert store.table("t").index is None
    add(store, clustered(5, 4))
    assert store.table("t").search(clustered(1, 4)[:1], 10).ids.shape == (1, 5)


def test_small_tables_get_none(store):
    add(store, clustered(999, 1))
    assert not store.wants_index("t")
    with pytest.raises(InvalidRequestError, match="999 rows"):
        store.index("t")
    assert INDEX_ROWS == 100_000
    with pytest.raises(TableNotFoundError):
        store.index("nobody")


@pytest.mark.parametrize("damage", ["cut", "bytes", "gone", "described"])
def test_a_damaged_index_is_told_and_no_row_is_made_up(store, tmp_path, damage):
    add(store, clustered(2000, 1))
    file = tmp_path / "t" / store.index("t").file
    description = tmp_path / "t" / "table.json"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "bytes":
        file.write_bytes(b"x" * file.stat().st_size)
    elif damage == "gone":
        file.unlink()
    else:
        content = json.loads(description.read_text())
        content["index"]["file"] = "../../etc/passwd"
        description.write_text(json.dumps(content))
    again = VectorStore(tmp_path, index_rows=1000)
    if damage in {"gone", "described"}:
        with pytest.raises(CorruptVectorsError):
            again.table("t")
        return
    assert recall(again.table("t"), clustered(5, 2)) == 1
    assert again.wants_index("t")
    again.index("t")
    assert recall(again.table("t"), clustered(30, 2)) >= 0.95
    assert not again.wants_index("t")


def test_vectors_without_length_and_fewer_rows_than_wanted(store):
    vectors = clustered(1200, 1)
    vectors[::100] = 0
    add(store, vectors)
    store.index("t")
    hits = store.table("t").search(np.zeros((1, DIM), np.float32), 3)
    assert (hits.scores == 0).all()
    hits = store.table("t").search(clustered(2, 5), 10)
    assert (np.diff(hits.scores, axis=1) <= 0).all()
    for k in (100, 101, 1200):
        assert store.table("t").search(clustered(2, 5), k).ids.shape == (2, k)
