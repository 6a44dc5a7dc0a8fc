"""Adapters as tensors: low-rank pairs, a sparse delta, a tiny core, and what has no elements."""

from collections.abc import Mapping

import numpy as np

from hyprstream.vdb.entropy.masks import seeded_indices
from hyprstream.vdb.tensors import SparseTensor

SEED = 77
SEEDS = {"layers.1.mlp.up_proj/sparse/delta": SEED}


def full(array: np.ndarray) -> SparseTensor:
    return SparseTensor.from_dense(np.asarray(array, np.float32), "float32")


def masked(array: np.ndarray, mask: np.ndarray) -> SparseTensor:
    return SparseTensor.from_dense(np.asarray(array, np.float32), "float32", mask)


def pair(rng: np.random.Generator, path: str, inputs: int, outputs: int, rank: int):
    """A pair whose directions matter ever less, as trained ones do."""
    fall = 0.7 ** np.arange(rank)
    return {
        f"{path}/low_rank/a": full(rng.standard_normal((inputs, rank)) * fall),
        f"{path}/low_rank/b": full(rng.standard_normal((rank, outputs)) * 0.05),
    }


def low_rank(seed: int, *, num_layers: int = 3, rank: int = 8) -> dict[str, SparseTensor]:
    rng = np.random.default_rng(seed)
    tensors: dict[str, SparseTensor] = {}
    for i in range(num_layers):
        tensors |= pair(rng, f"layers.{i}.self_attn.q_proj", 96, 128, rank)
        tensors |= pair(rng, f"layers.{i}.self_attn.v_proj", 96, 32, rank)
    return tensors


def mixed(seed: int) -> dict[str, SparseTensor]:
    """One of everything."""
    rng = np.random.default_rng(seed)
    tensors = pair(rng, "layers.0.self_attn.q_proj", 48, 80, 6)
    for side, shape in (("a", (48, 6)), ("b", (6, 80))):
        tensors[f"layers.1.self_attn.q_proj/low_rank/{side}"] = masked(
            rng.standard_normal(shape) * 0.3, rng.random(shape) < 0.2
        )
    drawn = seeded_indices(SEED, 40 * 50, 90)
    tensors["layers.1.mlp.up_proj/sparse/delta"] = SparseTensor(
        shape=(40, 50),
        dtype="float32",
        values=(rng.standard_normal(90) * 0.1).astype(np.float32),
        indices=drawn,
    )
    leaves = np.zeros((64, 64), np.bool_)
    leaves[8:16] = True
    tensors["layers.2.mlp.up_proj/sparse/delta"] = masked(
        rng.standard_normal((64, 64)) * 0.1, leaves
    )
    tensors["layers.2.mlp.down_proj/tiny/core"] = full(rng.standard_normal((5, 5)) * 0.4)
    tensors["layers.3.mlp.down_proj/low_rank/b"] = full(rng.standard_normal((4, 70)) * 0.2)
    tensors["layers.4.mlp.down_proj/low_rank/a"] = full(np.zeros((0, 4)))
    tensors["layers.4.mlp.down_proj/low_rank/b"] = full(np.zeros((4, 9)))
    tensors["scalar"] = full(np.array(0.5))
    tensors["nothing"] = full(np.zeros((0, 100)))
    return tensors


def moved(tensors: Mapping[str, SparseTensor], seed: int, share: float) -> dict[str, SparseTensor]:
    """The adapter after a little more training."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, tensor in tensors.items():
        values = tensor.values
        spread = float(np.sqrt(np.square(values).mean())) if values.size else 0.0
        values = values + rng.standard_normal(values.shape).astype(np.float32) * spread * share
        found[name] = SparseTensor(
            shape=tensor.shape,
            dtype="float32",
            values=values.astype(np.float32),
            indices=tensor.indices,
        )
    return found


def added(tensors: Mapping[str, SparseTensor]) -> list[np.ndarray]:
    """What an adapter adds, part by part, as plain matrices: the measure of errors."""
    parts = []
    for name, tensor in tensors.items():
        twin = tensors.get(f"{name[:-2]}/b")
        dense = tensor.to_dense().astype(np.float64)
        if name.endswith("low_rank/a") and twin is not None:
            parts.append(dense @ twin.to_dense().astype(np.float64))
        elif not (name.endswith("low_rank/b") and f"{name[:-2]}/a" in tensors):
            parts.append(dense)
    return parts


def relative_error(true: Mapping[str, SparseTensor], got: Mapping[str, SparseTensor]) -> float:
    pairs = list(zip(added(true), added(got), strict=True))
    error = sum(np.square(x - y).sum() for x, y in pairs)
    return float(np.sqrt(error / sum(np.square(x).sum() for x, _ in pairs)))


def assert_same(got: Mapping[str, SparseTensor], expected: Mapping[str, SparseTensor]) -> None:
    """All of it: order, shapes, dtypes, active elements, bits."""
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        other = got[name]
        assert (other.shape, other.dtype) == (tensor.shape, tensor.dtype)
        assert (other.indices is None) == (tensor.indices is None)
        if tensor.indices is not None:
            np.testing.assert_array_equal(other.indices, tensor.indices)
        assert other.values.dtype == tensor.values.dtype
        assert other.values.tobytes() == tensor.values.tobytes()
