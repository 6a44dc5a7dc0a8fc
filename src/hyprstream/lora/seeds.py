"""Random numbers that follow from a seed and a name alone, on every machine and version.

Number i of a stream is SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) at position i + 1,
started from the first eight bytes, little-endian, of SHA-256("SEED:NAME"). Integer
arithmetic only, and any number of a stream costs the same to get.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)


def words(seed: int, name: str, positions: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the numbers of a stream at some positions; no two positions have the same.

    Example:
        >>> [hex(word) for word in words(0, "mask", np.arange(2)).tolist()]
        ['0x15e190add0a7e0b0', '0x52be1e9daf8eddd5']
    """
    start = np.uint64(stream_start(seed, name))
    state = start + (positions.astype(np.uint64) + np.uint64(1)) * _STEP  # modulo 2**64
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def stream_start(seed: int, name: str) -> int:
    """Return where a stream starts, 0 to 2**64 - 1."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def uniform(seed: int, name: str, num_values: int) -> NDArray[np.float32]:
    """Return the first numbers of a stream as multiples of 2**-23 in [-1, 1)."""
    high = words(seed, name, np.arange(num_values)) >> np.uint64(40)
    # 24 bits, less 2**23: both steps are exact in float32.
    return (high.astype(np.float32) - np.float32(2**23)) * np.float32(2**-23)
