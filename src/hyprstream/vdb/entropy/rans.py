"""Range coding with asymmetric numeral systems (arXiv:1311.2540), many lanes side by side.

Symbol i belongs to lane i modulo the number of lanes. A lane is a 32-bit state; what leaves
it goes, 16 bits at a time, into one sequence of words that all lanes share. Each step codes
one symbol of every lane with array operations. `decode_symbols` is where loading an adapter
spends its time, and stands alone, so that native code can take its place.
"""

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptGridError
from hyprstream.vdb.entropy.tables import ALPHABET, BITS, NOTHING, TOTAL, tables

_LOW = 1 << 16  # states are in [_LOW, 2^32) between symbols


def encode_symbols(
    symbols: NDArray[np.uint8], numbers: NDArray[np.uint8], num_lanes: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Code symbols, each by the table of its number.

    Args:
        symbols: What is coded, (N,); a table must have its symbols.
        numbers: Table of each symbol, (N,).
        num_lanes: How many states to use; each takes 4 bytes.

    Returns:
        The state of each lane and the words.
    """
    known = tables()
    flat = numbers.astype(np.intp) * ALPHABET + symbols
    frequencies = known.frequencies.reshape(-1)[flat]
    starts = known.starts.reshape(-1)[flat]
    states = np.full(num_lanes, _LOW, np.uint32)
    words: list[NDArray[np.uint16]] = []
    for first in reversed(range(0, len(symbols), max(1, num_lanes))):
        part = slice(first, first + num_lanes)
        frequency, start = frequencies[part], starts[part]
        state = states[: len(frequency)]
        full = np.flatnonzero((state >> 20) >= frequency)
        words.append(state[full].astype(np.uint16))
        state[full] >>= 16
        whole = state // frequency
        state[:] = (whole << BITS) + (state - whole * frequency) + start
    words.reverse()
    return states, np.concatenate(words) if words else np.empty(0, np.uint16)


def decode_symbols(
    states: NDArray[np.uint32], words: NDArray[np.uint16], numbers: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Return the symbols that `encode_symbols` was given.

    Raises:
        CorruptGridError: States and words are not what it returned.
    """
    num_lanes = len(states)
    if len(numbers) and not num_lanes:
        raise CorruptGridError("its coded values are missing")
    lookup = tables().lookup
    padded = np.full(-(-len(numbers) // max(1, num_lanes)) * num_lanes, NOTHING, np.uint8)
    padded[: len(numbers)] = numbers
    symbols = np.empty(len(padded), np.uint8)
    state, entry, work = (np.empty(num_lanes, np.uint32) for _ in range(3))
    state[:] = states
    index = np.empty(num_lanes, np.intp)
    low = np.empty(num_lanes, np.bool_)
    taken = 0
    for first in range(0, len(padded), max(1, num_lanes)):
        part = slice(first, first + num_lanes)
        np.bitwise_and(state, TOTAL - 1, out=work)
        np.left_shift(padded[part], BITS, out=index, dtype=np.intp)
        index |= work
        lookup.take(index, out=entry, mode="clip")
        symbols[part] = entry >> 24
        state >>= BITS
        np.bitwise_and(entry, TOTAL - 1, out=work)
        work += 1
        state *= work
        entry >>= BITS
        entry &= TOTAL - 1
        state += entry
        np.less(state, _LOW, out=low)
        lanes = low.nonzero()[0]
        word = words[taken : taken + len(lanes)]
        taken += len(lanes)
        if len(word) < len(lanes):
            raise CorruptGridError("its coded values end early")
        state[lanes] = state[lanes] << 16 | word
    if taken != len(words) or (state != _LOW).any():
        raise CorruptGridError("its coded values do not end where they should")
    return symbols[: len(numbers)]
