import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import CorruptGridError
from hyprstream.vdb.entropy.varints import VarintReader, write_signed, write_unsigned

UNSIGNED = st.lists(st.integers(0, 2**63 - 1) | st.integers(0, 300), max_size=20)
SIGNED = st.lists(st.integers(-(2**62), 2**62 - 1) | st.integers(-99, 99), max_size=20)


@settings(deadline=None)
@given(UNSIGNED, SIGNED)
def test_integers_come_back(unsigned, signed):
    data = write_unsigned(np.array(unsigned, np.int64)) + write_signed(np.array(signed, np.int64))
    reader = VarintReader(data)
    assert reader.unsigned(len(unsigned)).tolist() == unsigned
    assert reader.signed(len(signed)).tolist() == signed
    reader.finish()


def test_the_bytes_are_those_of_leb128():
    assert write_unsigned(np.array([0, 127, 128, 624485])) == b"\x00\x7f\x80\x01\xe5\x8e\x26"
    assert write_signed(np.array([0, -1, 1, -64])) == b"\x00\x01\x02\x7f"


@settings(deadline=None)
@given(st.binary(max_size=30), st.integers(0, 10))
def test_any_bytes_are_integers_or_an_error(data, count):
    reader = VarintReader(data)
    try:
        assert len(reader.unsigned(count)) == count
        assert reader.one(5) <= 5
        reader.finish()
    except CorruptGridError:
        return


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80" * 9 + b"\x01"])
def test_no_integer_is_an_error(data):
    with pytest.raises(CorruptGridError):
        VarintReader(data).one(10)
