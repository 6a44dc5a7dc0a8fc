from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.errors import InvalidAdapterError
from hyprstream.vdb.tensors import SparseTensor


@given(
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
    seed=st.integers(0, 1000),
    masked=st.booleans(),
)
def test_a_dense_array_comes_back_with_zeros_outside_its_mask(shape, seed, masked):
    rng = np.random.default_rng(seed)
    array = rng.standard_normal(shape).astype(np.float32)
    mask = np.asarray(rng.random(shape) < 0.5) if masked else None
    tensor = SparseTensor.from_dense(array, "float32", mask)
    expected = array if mask is None else np.where(mask, array, np.float32(0))
    np.testing.assert_array_equal(tensor.to_dense(), expected)
    assert tensor.num_active == (array.size if mask is None else mask.sum())
    assert tensor.size == array.size


def test_density_is_the_share_of_active_elements():
    array = np.ones((2, 4), np.float16)
    mask = np.array([[True, False, False, False], [True, False, False, False]])
    assert SparseTensor.from_dense(array, "float16", mask).density == 0.25
    assert SparseTensor.from_dense(np.ones((0, 3), np.float16), "float16").density == 1


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"dtype": "bfloat16"}, "values are float32"),
        ({"shape": (-1,)}, "the shape is"),
        ({"indices": None}, "fill no shape"),
        ({"indices": np.array([0], np.int64)}, "int64"),
        ({"indices": np.array([1, 1], np.int64)}, "repeat"),
        ({"indices": np.array([2, 1], np.int64)}, "fall"),
        ({"indices": np.array([-1, 1], np.int64)}, "outside"),
        ({"indices": np.array([1, 6], np.int64)}, "outside"),
    ],
)
def test_parts_that_contradict_one_another_are_refused(changes, problem):
    parts: dict[str, Any] = {
        "shape": (2, 3),
        "dtype": "float32",
        "values": np.ones(2, np.float32),
        "indices": np.array([0, 5], np.int64),
    }
    SparseTensor(**parts)
    with pytest.raises(InvalidAdapterError, match=problem):
        SparseTensor(**(parts | changes))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(InvalidAdapterError, match="mask"):
        SparseTensor.from_dense(np.ones(3, np.float32), "float32", np.ones(4, bool))


def test_bfloat16_lies_as_its_bits():
    array = np.array([0x3F80, 0], np.uint16)
    tensor = SparseTensor.from_dense(array, "bfloat16", array != 0)
    assert tensor.to_dense().tolist() == [0x3F80, 0]
