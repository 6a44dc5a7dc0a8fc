"""Adapters in the form in which they are rounded: float64, low-rank pairs by their directions.

The change that a pair makes to a layer is the sum over its components of size u v^T. For a
dense pair these are its singular directions, so that what counts little is rounded to
nothing first. A masked pair keeps its own components, since any other would fill its mask.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import InvalidAdapterError
from hyprstream.vdb.entropy.masks import seeded_indices
from hyprstream.vdb.learned.quantised import Mask
from hyprstream.vdb.tensors import SparseTensor

Reals = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PairSource:
    """A low-rank pair.

    Attributes:
        rank: R.
        sizes: How much each component changes, (K,).
        u: Its direction among the inputs, of length 1, (K, I).
        v: Its direction among the outputs, of length 1, (K, O).
        p_mask: Active elements of a; None if all are.
        q_mask: Active elements of b; None if all are.
    """

    rank: int
    sizes: Reals
    u: Reals
    v: Reals
    p_mask: Mask | None
    q_mask: Mask | None

    @property
    def is_masked(self) -> bool:
        """Whether its own components have to be kept."""
        return self.p_mask is not None or self.q_mask is not None

    @property
    def num_active(self) -> int:
        """How many numbers of both sides are active."""
        sides = (self.p_mask, self.u), (self.q_mask, self.v)
        return sum(side.size if mask is None else len(mask.indices) for mask, side in sides)

    def energy(self) -> float:
        """Return the sum of squares of what it adds to the layer's matrix."""
        return float(self.sizes @ ((self.u @ self.u.T) * (self.v @ self.v.T)) @ self.sizes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SingleSource:
    """A tensor by itself.

    Attributes:
        shape: Its dimensions.
        values: Its active values, (N,).
        mask: The active elements; None if all are.
    """

    shape: tuple[int, ...]
    values: Reals
    mask: Mask | None

    def energy(self) -> float:
        """Return the sum of its squares."""
        return float(self.values @ self.values)


Source = Mapping[str, PairSource | SingleSource]


def read_source(
    tensors: Mapping[str, SparseTensor], seeds: Mapping[str, int] | None = None
) -> Source:
    """Pair up what belongs together, and take it apart into directions.

    Args:
        tensors: An adapter.
        seeds: By name of a tensor, the seed its active elements were drawn from.

    Raises:
        InvalidAdapterError: A value is no finite number, or a mask not that of its seed.
    """
    source: dict[str, PairSource | SingleSource] = {}
    masks = {name: _mask(name, tensor, (seeds or {}).get(name)) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        pair = name[:-2]
        if is_paired(name, tensors):
            if name.endswith("/a"):
                source[pair] = _pair(
                    _reals(name, tensor),
                    _reals(f"{pair}/b", tensors[f"{pair}/b"]),
                    masks[name],
                    masks[f"{pair}/b"],
                )
        else:
            values = _values(name, tensor)
            source[name] = SingleSource(shape=tensor.shape, values=values, mask=masks[name])
    return source


def is_paired(name: str, tensors: Mapping[str, SparseTensor]) -> bool:
    """Whether a tensor is one side of a low-rank pair, both of which are there."""
    stem, _, side = name.rpartition("/")
    if side not in ("a", "b") or not stem.endswith("low_rank"):
        return False
    a, b = tensors.get(f"{stem}/a"), tensors.get(f"{stem}/b")
    if a is None or b is None or len(a.shape) != 2 or len(b.shape) != 2:
        return False
    return a.shape[1] == b.shape[0]


def _mask(name: str, tensor: SparseTensor, seed: int | None) -> Mask | None:
    if tensor.indices is None:
        return None
    if seed is not None and not np.array_equal(
        tensor.indices, seeded_indices(seed, tensor.size, tensor.num_active)
    ):
        raise InvalidAdapterError(
            f"the active elements of {name} are not those of seed {seed}",
            hint="Leave the seed out.",
        )
    return Mask(indices=tensor.indices, seed=seed)


def _reals(name: str, tensor: SparseTensor) -> Reals:
    """Return the whole of a tensor."""
    values = _values(name, tensor)
    if tensor.indices is None:
        return values.reshape(tensor.shape)
    dense = np.zeros(tensor.size)
    dense[tensor.indices] = values
    return dense.reshape(tensor.shape)


def _values(name: str, tensor: SparseTensor) -> Reals:
    """Return the active values of a tensor."""
    values = tensor.values
    if tensor.dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    if not np.isfinite(values).all():
        raise InvalidAdapterError(
            f"{name} holds a value that is no finite number",
            hint="Its training has diverged; use an earlier version.",
        )
    return values.astype(np.float64)


def _pair(a: Reals, b: Reals, p_mask: Mask | None, q_mask: Mask | None) -> PairSource:
    rank = a.shape[1]
    if p_mask is None and q_mask is None:
        sizes, u, v = singular(a, b)
    else:
        sizes, u, v = _own(a, b)
    return PairSource(rank=rank, sizes=sizes, u=u, v=v, p_mask=p_mask, q_mask=q_mask)


def singular(a: Reals, b: Reals) -> tuple[Reals, Reals, Reals]:
    """Decompose a b without making it: two thin QR and an SVD of R x R."""
    qa, ra = np.linalg.qr(a)
    qb, rb = np.linalg.qr(b.T)
    left, sizes, right = np.linalg.svd(ra @ rb.T, full_matrices=False)
    return sizes, (qa @ left).T, right @ qb.T


def _own(a: Reals, b: Reals) -> tuple[Reals, Reals, Reals]:
    lengths_a, lengths_b = np.linalg.norm(a, axis=0), np.linalg.norm(b, axis=1)
    u = a.T / np.where(lengths_a > 0, lengths_a, 1)[:, None]
    v = b / np.where(lengths_b > 0, lengths_b, 1)[:, None]
    return lengths_a * lengths_b, u, v
