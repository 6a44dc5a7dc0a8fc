"""An adapter's tensors come out of a grid bit for bit, and a wrong table is found out."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import CorruptGridError, InvalidAdapterError
from hyprstream.vdb.grid import SparseGrid
from hyprstream.vdb.layout import TABLE, pack_tensors, unpack_tensors
from hyprstream.vdb.nanovdb.files import read_bytes, write_bytes
from hyprstream.vdb.tensors import ARRAY_DTYPES, DType, SparseTensor
from tests.vdb.lattice import DTYPES, scattered_grid


def tensor(seed: int, shape: tuple[int, ...], dtype: DType, density: float | None) -> SparseTensor:
    """Random bits as values, so that NaNs, infinities and both zeros are among them."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 256, (math.prod(shape), np.dtype(ARRAY_DTYPES[dtype]).itemsize))
    array = bits.astype(np.uint8).reshape(-1).view(ARRAY_DTYPES[dtype]).reshape(shape)
    mask = None if density is None else np.asarray(rng.random(shape) < density)
    return SparseTensor.from_dense(array, dtype, mask)


SHAPES = st.lists(st.sampled_from([0, 1, 3, 7, 16, 31]), max_size=3).map(tuple)
TENSORS = st.tuples(st.integers(0, 99), SHAPES, DTYPES, st.sampled_from([None, 0.0, 0.1, 1.0]))


def assert_same(found: dict[str, SparseTensor], expected: dict[str, SparseTensor]) -> None:
    assert list(found) == list(expected)
    for name, one in expected.items():
        other = found[name]
        assert (other.shape, other.dtype) == (one.shape, one.dtype)
        assert other.values.tobytes() == one.values.tobytes()
        np.testing.assert_equal(other.indices, one.indices)


@settings(max_examples=40, deadline=None)
@given(drawn=st.dictionaries(st.text(max_size=5), TENSORS, max_size=4))
def test_tensors_survive_a_file_bit_for_bit(drawn):
    tensors = {name: tensor(*parts) for name, parts in drawn.items()}
    (view,) = read_bytes(write_bytes([pack_tensors(tensors, name="adapter").buffer]))
    assert_same(unpack_tensors(SparseGrid.of_view(view)), tensors)


def adapter(dtype: DType = "float32", density: float | None = 0.1) -> dict[str, SparseTensor]:
    shapes = {"q/a": (64, 16), "q/b": (16, 100), "v/a": (64, 16)}
    return {
        name: tensor(seed, shape, dtype, density)
        for seed, (name, shape) in enumerate(shapes.items())
    }


def test_each_leaf_holds_one_tensor():
    grid = pack_tensors(adapter(density=None))
    assert len(grid.view.leaves) == sum(-(-size // 512) for size in (1024, 1600, 1024))


def test_values_are_views_of_the_grid():
    grid = pack_tensors(adapter())
    first = unpack_tensors(grid)["q/a"]
    grid.values[0] = 123
    assert first.values[0] == 123


def test_order_of_values_is_that_of_the_tensors():
    tensors = adapter()
    expected = np.concatenate([one.values for one in tensors.values()])
    assert pack_tensors(tensors).values.tobytes() == expected.tobytes()


def test_too_many_elements_for_one_grid_are_refused():
    huge = SparseTensor(
        shape=(2**36 + 1,),
        dtype="float32",
        values=np.zeros(0, np.float32),
        indices=np.zeros(0, np.int64),
    )
    with pytest.raises(InvalidAdapterError, match="2\\^36"):
        pack_tensors({"x": huge})


def test_a_table_that_would_not_be_read_is_not_written():
    nothing = tensor(0, (0,), "float32", None)
    with pytest.raises(InvalidAdapterError, match="a table of"):
        pack_tensors({f"{number}/{'x' * 10_000}": nothing for number in range(1700)})


def test_a_grid_without_a_table_holds_no_tensors():
    with pytest.raises(CorruptGridError, match="no table"):
        unpack_tensors(scattered_grid())


def with_table(table: bytes) -> SparseGrid:
    """The grid of a good adapter, with another table."""
    grid = pack_tensors(adapter())
    return SparseGrid.of_keys(grid.view.keys(), grid.values, blind={TABLE: table})


def changed(**fields) -> bytes:
    rows = json.loads(pack_tensors(adapter()).blind[TABLE])
    return json.dumps([rows[0], rows[1] | fields, rows[2]]).encode()


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (b"", "cannot be read"),
        (b" " * (17 << 20), "far too long"),
        (b"\xff", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"[" + b"9" * 10_000 + b"]", "cannot be read"),
        (b"{}", "not a list"),
        (b"[1]", "is none"),
        (b"[]", "belong to no tensor"),
        (changed(name="q/a"), "not a list of different"),
        (changed(name=1), "is none"),
        (changed(dtype="int8"), "is none"),
        (changed(dtype="float16", shape=[3]), "belong to no tensor|lies where"),
        (changed(shape=[-1]), "is none"),
        (changed(shape=[True]), "is none"),
        (changed(shape=[1] * 99), "is none"),
        (changed(shape=[2**36, 2**36]), "lies where it cannot"),
        (changed(shape=[16, 10]), "lies where it cannot"),
        (changed(base=2048), "lies where it cannot"),
        (changed(base=-512), "lies where it cannot"),
        (changed(dense=True), "are missing"),
        (changed(dense=0), "is none"),
    ],
)
def test_a_table_that_is_not_the_grids_is_found_out(table, problem):
    with pytest.raises(CorruptGridError, match=problem):
        unpack_tensors(with_table(table))


def test_a_dtype_that_the_channel_cannot_hold_is_found_out():
    grid = pack_tensors(adapter("float16"))
    table = grid.blind[TABLE].replace(b"float16", b"float32", 1)
    other = SparseGrid.of_keys(grid.view.keys(), grid.values, "float16", blind={TABLE: table})
    with pytest.raises(CorruptGridError, match="not of the grid's dtype"):
        unpack_tensors(other)


def test_voxels_elsewhere_are_found_out():
    grid = pack_tensors(adapter())
    moved = SparseGrid.of_coordinates(
        grid.coordinates() + np.int32(4096), grid.values, blind=grid.blind
    )
    with pytest.raises(CorruptGridError, match="in a line"):
        unpack_tensors(moved)
