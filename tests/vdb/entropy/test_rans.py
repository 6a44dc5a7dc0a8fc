import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import CorruptGridError
from hyprstream.vdb.entropy import tables as t
from hyprstream.vdb.entropy.rans import decode_symbols, encode_symbols


def draw(seed: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw symbols by tables that take turns, each as often as its table says."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, t.NUM_TABLES, length).astype(np.uint8)
    remainders = rng.integers(0, t.TOTAL, length)
    return (t.tables().lookup[numbers.astype(int) * t.TOTAL + remainders] >> 24).astype(
        np.uint8
    ), numbers


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(0, 700), st.sampled_from([1, 2, 8, 64, 256]))
def test_symbols_come_back(seed, length, num_lanes):
    symbols, numbers = draw(seed, length)
    states, words = encode_symbols(symbols, numbers, num_lanes)
    np.testing.assert_array_equal(decode_symbols(states, words, numbers), symbols)


def decode_one_by_one(states, words, numbers) -> list[int]:
    """The same as a plain reader of the format would do it."""
    frequencies = t.tables().frequencies.astype(int).tolist()
    states, words = states.tolist(), words.tolist()
    symbols = []
    for i, number in enumerate(numbers.tolist()):
        lane = i % len(states)
        remainder = start = states[lane] % t.TOTAL
        symbol = 0
        while remainder >= frequencies[number][symbol]:
            remainder -= frequencies[number][symbol]
            symbol += 1
        assert start >= remainder
        states[lane] = frequencies[number][symbol] * (states[lane] // t.TOTAL) + remainder
        if states[lane] < 1 << 16:
            states[lane] = states[lane] << 16 | words.pop(0)
        symbols.append(symbol)
    assert not words
    return symbols


def test_a_plain_reader_finds_the_same_symbols():
    symbols, numbers = draw(1, 1000)
    states, words = encode_symbols(symbols, numbers, 16)
    assert decode_one_by_one(states, words, numbers) == symbols.tolist()


def test_symbols_take_the_bits_that_their_tables_say():
    symbols, numbers = draw(2, 50_000)
    _, words = encode_symbols(symbols, numbers, 4)
    expected = t.tables().bits[numbers, symbols]
    known = symbols != t.ESCAPE  # whose bits count the value that follows elsewhere
    bits = expected[known].sum() + 12 * (~known).sum()
    assert 16 * len(words) == pytest.approx(bits, rel=0.001)


@pytest.mark.parametrize("damage", ["fewer", "more", "other"])
def test_damaged_words_are_noticed(damage):
    symbols, numbers = draw(3, 1000)
    states, words = encode_symbols(symbols, numbers, 4)
    words = {
        "fewer": words[:-1],
        "more": np.append(words, np.uint16(0)),
        "other": np.append(words[:-1], words[-1] ^ np.uint16(1)),
    }[damage]
    with pytest.raises(CorruptGridError):
        decode_symbols(states, words, numbers)


def test_symbols_without_states_are_an_error():
    with pytest.raises(CorruptGridError):
        decode_symbols(np.empty(0, np.uint32), np.empty(0, np.uint16), np.zeros(3, np.uint8))
