"""What adapters may ask of the base model: a layer's weight, and the singular basis of it.

A basis is computed from the weight alone, in float64, with every freedom that the singular
value decomposition leaves settled by rule. Two machines get the same one up to rounding, so
an adapter need not carry it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakValueDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.lora.packing import check_values
from hyprstream.models.quant import Weight

# Written into the digest: another rule would be another basis.
_RULE = "svd-1"
# Singular values as close as this, relative to the largest, share a subspace. Rounding in
# float64 moves them by about 1e-15; those of trained weights lie 1e-5 and more apart.
_TIE = 1e-10
# Above this, relative to the largest, singular values come from squares.
_CONDITION = 1e-4


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Basis:
    """The first singular vectors of a layer's W, those of larger singular values first.

    One object serves all adapters that are written in it.

    Attributes:
        down: (I, R), the right vectors as columns.
        up: (R, O), the left vectors as rows.
        digest: Says which W they are of, 16 hexadecimal digits.
    """

    # Without shape annotations: they may come from outside.
    down: Tensor
    up: Tensor
    digest: str

    def __post_init__(self) -> None:
        """Reject matrices that do not belong together.

        Raises:
            InvalidAdapterError: Shapes, dtypes or values are wrong.
        """
        down, up = self.down, self.up
        if down.ndim != 2 or up.ndim != 2 or down.shape[1] != up.shape[0] or 0 in down.shape:
            raise InvalidAdapterError(
                f"a basis goes down by {tuple(down.shape)} and up by {tuple(up.shape)}",
                hint="They must be (inputs, rank) and (rank, outputs).",
            )
        check_values("the basis", down)
        check_values("the basis", up)

    @property
    def rank(self) -> int:
        """Number of vectors on each side."""
        return self.up.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (O, I) of the layer."""
        return self.up.shape[1], self.down.shape[0]

    @property
    def size_bytes(self) -> int:
        """Bytes on the host."""
        return self.down.nbytes + self.up.nbytes


class BaseLayers:
    """The linear layers of the base model, as what makes and reads adapters sees them.

    A basis that some adapter is written in is the basis of all of its layer and rank; one that
    no adapter needs any more is let go, so that their memory is that of adapters.

    Args:
        weights: W of each layer by path, as in `Decoder.weights`.
    """

    def __init__(self, weights: Mapping[str, Weight]) -> None:
        self._weights = weights
        self._bases: WeakValueDictionary[tuple[str, int], Basis] = WeakValueDictionary()

    @property
    def size_bytes(self) -> int:
        """Bytes of the bases on the host."""
        return sum(basis.size_bytes for basis in self._bases.values())

    def weight(self, path: str) -> Float[Tensor, "O I"]:
        """Return W of a layer in float32, on the host.

        Raises:
            IncompatibleAdapterError: The model has no such layer.
        """
        if path not in self._weights:
            raise IncompatibleAdapterError(
                f"the model has no linear layer at {path}",
                hint="Use the adapter with the base model that it was trained on.",
            )
        return self._weights[path].dequantize(torch.float32).detach().cpu()

    def basis(self, path: str, rank: int) -> Basis:
        """Return the first singular vectors of a layer's W.

        Raises:
            InvalidAdapterError: The layer has fewer.
            IncompatibleAdapterError: The model has no such layer.
        """
        basis = self._bases.get((path, rank))
        if basis is None:
            basis = self._bases[path, rank] = singular_basis(self.weight(path), rank)
        return basis


def singular_basis(weight: Float[Tensor, "O I"], rank: int) -> Basis:
    """Compute the first singular vectors of W.

    Singular values that are equal (to 1e-10 of the largest) share a subspace, of which one
    orthonormal basis is chosen by rule (`_settled`); for a single vector that makes its
    largest component positive. Left vectors follow from the right ones, but those of zero.

    Raises:
        InvalidAdapterError: W has fewer than `rank`.
    """
    if not 1 <= rank <= min(weight.shape):
        raise InvalidAdapterError(
            f"a layer of shape {tuple(weight.shape)} has no singular basis of rank {rank}",
            hint=f"Use a rank from 1 to {min(weight.shape)}.",
        )
    exact = weight.double()
    values, right = _decomposed(exact, rank)
    tie = float(values[0]) * _TIE
    num_directed = int((values > tie).sum())  # the others are zero
    down = exact.new_zeros(exact.shape[1], 0)
    start = 0
    while start < min(rank, num_directed):
        stop = start + 1
        while stop < num_directed and values[stop - 1] - values[stop] <= tie:
            stop += 1
        settled = _settled(right[:, start:stop], min(stop, rank) - start)
        down = torch.cat([down, settled], 1)
        start = stop
    up = exact @ down
    up = up / torch.linalg.vector_norm(up, dim=0)
    down, up = _filled(down, rank), _filled(up, rank)
    return Basis(down.float(), up.T.float().contiguous(), digest(weight))


def digest(weight: Float[Tensor, "O I"]) -> str:
    """Return what identifies the bases of W: its values in float32 and the rule."""
    header = json.dumps([_RULE, list(weight.shape)]).encode()
    values = weight.detach().to("cpu", torch.float32).contiguous()
    return hashlib.sha256(header + values.numpy().tobytes()).hexdigest()[:16]


def _decomposed(
    exact: Float[Tensor, "O I"], rank: int
) -> tuple[Float[Tensor, " K"], Float[Tensor, "I K"]]:
    """Return singular values, falling, and the right vectors; exact for the first `rank`."""
    outputs, inputs = exact.shape
    is_tall = outputs >= inputs
    # 2 to 7 times as fast as the decomposition itself (576 to 2048 wide, one core), and as
    # good where squares do not drown in the rounding of the largest.
    squares, vectors = torch.linalg.eigh(exact.T @ exact if is_tall else exact @ exact.T)
    values, vectors = squares.clamp(min=0).sqrt().flip(0), vectors.flip(1)
    if values[rank - 1] > values[0] * _CONDITION:
        return values, vectors if is_tall else (exact.T @ vectors) / values
    _, values, right_t = torch.linalg.svd(exact, full_matrices=False)
    return values, right_t.T


def _settled(vectors: Float[Tensor, "I K"], num_vectors: int) -> Float[Tensor, "I R"]:
    """Choose an orthonormal basis of a subspace that does not depend on the one given.

    Vector by vector: the projection of the unit vector that is nearest to what is left of
    the subspace (the first of those equally near, to 1e-6).
    """
    chosen = []
    for _ in range(num_vectors):
        nearness = vectors.square().sum(1)
        place = int((nearness >= nearness.max() - 1e-6).nonzero()[0])
        direction = vectors[place] / torch.linalg.vector_norm(vectors[place])
        chosen.append(vectors @ direction)
        vectors = vectors - torch.outer(chosen[-1], direction)
    return torch.stack(chosen, 1)


def _filled(vectors: Float[Tensor, "I K"], num_vectors: int) -> Float[Tensor, "I R"]:
    """Complete orthonormal vectors with those of the space that they leave, by the same rule."""
    while vectors.shape[1] < num_vectors:
        nearness = 1 - vectors.square().sum(1)
        place = int((nearness >= nearness.max() - 1e-6).nonzero()[0])
        rest = -vectors @ vectors[place]
        rest[place] += 1
        vectors = torch.cat([vectors, (rest / torch.linalg.vector_norm(rest))[:, None]], 1)
    return vectors
