"""Vectors as encoders make them: clusters of very different sizes, in few of the directions."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

DIM = 384
_DIRECTIONS = 64  # in which vectors of one cluster differ
_CLUSTERS = 5_000
_BATCH = 8_192


def vectors(num_rows: int, seed: int) -> NDArray[np.float32]:
    """Draw vectors of length 1: 5,000 clusters of sizes by Zipf's law, 64 directions and noise."""
    fixed = np.random.default_rng(1)
    centres = fixed.standard_normal((_CLUSTERS, _DIRECTIONS), np.float32)
    basis = fixed.standard_normal((_DIRECTIONS, DIM), np.float32)
    shares = 1 / np.arange(1, _CLUSTERS + 1) ** 0.7
    random = np.random.default_rng(seed)
    who = random.choice(_CLUSTERS, num_rows, p=shares / shares.sum())
    near = centres[who] + 0.7 * random.standard_normal((num_rows, _DIRECTIONS), np.float32)
    found: NDArray[np.float32] = near @ basis
    found += 0.5 * random.standard_normal(found.shape, np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def batches(num_rows: int, seed: int) -> Iterator[pa.RecordBatch]:
    """Draw them as a client sends them."""
    kind = pa.list_(pa.field("item", pa.float32(), nullable=False), DIM)
    for start in range(0, num_rows, 16 * _BATCH):
        rows = vectors(min(16 * _BATCH, num_rows - start), seed + start)
        for at in range(0, len(rows), _BATCH):
            flat = pa.array(rows[at : at + _BATCH].reshape(-1))
            column = pa.FixedSizeListArray.from_arrays(flat, type=kind)
            yield pa.record_batch([column], names=["embedding"])
