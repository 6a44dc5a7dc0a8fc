"""What every code has to do. A new file under `vdb/codecs` is tested here without a change."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream import lookup
from hyprstream.errors import CorruptGridError, UnsupportedCodecError, UnsupportedError
from hyprstream.vdb.codecs import Codec, load
from hyprstream.vdb.tensors import SparseTensor
from tests.vdb.adapters import assert_same, mixed, relative_error

NAMES = lookup.names("hyprstream.vdb.codecs")


@pytest.fixture(params=NAMES)
def codec(request) -> Codec:
    return load(request.param)


def test_a_module_of_the_package_is_a_code(codec):
    assert isinstance(codec, Codec)


def test_a_name_without_a_module_is_an_error():
    with pytest.raises(UnsupportedCodecError, match="'os' is not a code"):
        load("os")


def test_an_adapter_comes_back(codec):
    tensors = mixed(1)
    encoded = codec.encode(tensors)
    decoded = codec.decode(encoded.data)
    if codec.LOSSLESS:
        assert_same(decoded, tensors)
        assert encoded.report.relative_error == 0
    else:
        assert relative_error(tensors, decoded) == pytest.approx(
            encoded.report.relative_error, abs=1e-6
        )
        assert all(tensor.dtype == "float32" for tensor in decoded.values())
        assert {n: t.shape for n, t in decoded.items()} == {n: t.shape for n, t in tensors.items()}


def test_active_elements_stay_exactly_those(codec):
    tensors = mixed(2)
    decoded = codec.decode(codec.encode(tensors).data)
    for name, tensor in tensors.items():
        assert (decoded[name].indices is None) == (tensor.indices is None)
        if tensor.indices is not None:
            np.testing.assert_array_equal(decoded[name].indices, tensor.indices)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_taken(codec, dtype):
    values = np.random.default_rng(0).standard_normal((70, 70)).astype(np.float32)
    if dtype == "float16":
        stored, true = values.astype(np.float16), values.astype(np.float16).astype(np.float32)
    else:
        stored = (values.view(np.uint32) >> 16).astype(np.uint16)
        true = (stored.astype(np.uint32) << 16).view(np.float32)
    tensors = {"x": SparseTensor.from_dense(stored, dtype)}
    decoded = codec.decode(codec.encode(tensors).data)
    if codec.LOSSLESS:
        assert_same(decoded, tensors)
    else:
        exact = {"x": SparseTensor.from_dense(true, "float32")}
        assert relative_error(exact, decoded) < 0.2


def test_an_adapter_without_tensors_comes_back(codec):
    assert codec.decode(codec.encode({}).data) == {}


def test_the_same_adapter_gives_the_same_stream(codec):
    assert codec.encode(mixed(3)).data == codec.encode(mixed(3)).data


def test_a_report_counts_the_bytes(codec):
    tensors = mixed(4)
    encoded = codec.encode(tensors)
    assert encoded.report.size_bytes == len(encoded.data)
    assert encoded.report.num_values == sum(tensor.size for tensor in tensors.values())
    ratio = 4 * encoded.report.num_values / len(encoded.data)
    assert encoded.report.ratio_float32 == ratio == 2 * encoded.report.ratio_float16


@pytest.fixture(scope="module")
def streams() -> dict[str, bytes]:
    return {name: load(name).encode(mixed(5)).data for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_stream_that_was_cut_is_an_error(streams, name, cut):
    data = streams[name]
    with pytest.raises(CorruptGridError):
        load(name).decode(data[: int(cut * len(data))])


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=100, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error_or_changes_nothing_that_has_a_checksum(
    streams, name, place, bit
):
    data = bytearray(streams[name])
    data[int(place * len(data))] ^= 1 << bit
    try:
        decoded = load(name).decode(bytes(data))
    except (CorruptGridError, UnsupportedError):
        return
    if name != "raw":  # the others have checksums of their content; a few bits do not touch it
        assert_same(decoded, load(name).decode(streams[name]))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(data=st.binary(max_size=100))
def test_bytes_that_are_no_stream_are_an_error(streams, name, data):
    for start in (b"", streams[name][:8]):
        with pytest.raises((CorruptGridError, UnsupportedError)):
            load(name).decode(start + data)
