"""Low-rank pairs as files hold them, to and from an adapter's weights.

Files keep A as (R, I), B as (O, R) and a scale beside them; here A and B are transposed and
the scale is folded into B. Folding is exact where the scale is a power of two. Where it is
not, the products are rounded once, to float32.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError, UnsupportedError
from hyprstream.lora.delta import Delta
from hyprstream.lora.exchange.coverage import ModuleReport
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.kinds.tiny import Tiny
from hyprstream.lora.packing import check_values
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """What a file holds for one linear layer.

    Attributes:
        a: (R, I).
        b: (O, R).
        scale: What the product is multiplied with.
    """

    # Without shape annotations: they come from outside.
    a: Tensor
    b: Tensor
    scale: float

    def __post_init__(self) -> None:
        """Reject what is no pair of matrices.

        Raises:
            InvalidAdapterError: Shapes, dtypes or values are wrong.
        """
        a, b = self.a, self.b
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1] or 0 in (*a.shape, *b.shape):
            raise InvalidAdapterError(
                f"lora_A has shape {tuple(a.shape)} and lora_B {tuple(b.shape)}",
                hint="They must be (rank, inputs) and (outputs, rank).",
            )
        check_values("lora_A", a)
        check_values("lora_B", b)

    @property
    def rank(self) -> int:
        """Height of A and width of B."""
        return self.a.shape[0]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (O, I) of the layer."""
        return self.b.shape[0], self.a.shape[1]

    def report(self, path: str) -> ModuleReport:
        """Describe what it adds to a layer."""
        # The norm of a product from products of rank by rank.
        a, b = self.a.double(), self.b.double()
        square = float(((a @ a.T) * (b.T @ b)).sum())
        zeros = [name for name, x in (("lora_A", a), ("lora_B", b)) if not x.any()]
        return ModuleReport(
            path=path,
            rank=self.rank,
            scale=self.scale,
            norm=abs(self.scale) * math.sqrt(max(square, 0.0)),
            zeros=tuple(zeros),
        )


def weights_of(pairs: Mapping[str, Pair], linears: Mapping[str, tuple[int, int]]) -> LoraWeights:
    """Make an adapter of pairs by path.

    It keeps the dtype of the file if all tensors have one dtype and folding rounds nothing;
    otherwise it is float32.

    Raises:
        IncompatibleAdapterError: A layer of the model has another shape.
        InvalidAdapterError: A product with the scale is no finite number.
    """
    for path, pair in pairs.items():
        if pair.shape != linears[path]:
            raise IncompatibleAdapterError(
                f"the adapter changes a linear layer of shape {pair.shape} at {path}, "
                f"the model has {linears[path]} there",
                hint="Use the adapter with the base model that it was trained on.",
            )
    dtypes = {tensor.dtype for pair in pairs.values() for tensor in (pair.a, pair.b)}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    # In double, one layer at a time: all of them would take twice the memory of the adapter.
    if not all(_folds(pair, dtype) for pair in pairs.values()):
        dtype = torch.float32
    return LoraWeights(
        {
            path: LowRank(pair.a.to(dtype).T, (pair.b.double() * pair.scale).to(dtype).T)
            for path, pair in pairs.items()
        }
    )


def _folds(pair: Pair, dtype: torch.dtype) -> bool:
    """Tell whether B times the scale is in the dtype without rounding."""
    folded = pair.b.double() * pair.scale
    return torch.equal(folded, folded.to(dtype).double())


def pairs_of(
    weights: LoraWeights, spec: LoraSpec | None, dtype: torch.dtype | None
) -> dict[str, Pair]:
    """Return an adapter as pairs by path.

    The scales of `spec` are taken out of B again if that is exact everywhere; otherwise, and
    without a spec, every scale is 1.

    Args:
        weights: The adapter.
        spec: What it was made from.
        dtype: Of the values; None keeps those of low-rank deltas, and gives tiny ones in
            float32.

    Raises:
        UnsupportedError: The adapter has a delta that is no product of narrow matrices.
        InvalidAdapterError: A value does not fit into the dtype.
    """
    folded = {path: _factors(path, delta) for path, delta in weights.modules.items()}
    scales = _exact_scales(folded, spec)
    pairs = {}
    for path, (a, b) in folded.items():
        target = dtype or a.dtype
        scale = scales[path]
        pairs[path] = Pair(
            a.to(target).T.contiguous(), (b / scale).to(target).T.contiguous(), scale
        )
    return pairs


def _factors(path: str, delta: Delta) -> tuple[Tensor, Tensor]:
    """Return A (I, R) and B (R, O) of one dtype, whose product the delta is."""
    if isinstance(delta, LowRank):
        same = delta.a.dtype == delta.b.dtype
        return (delta.a, delta.b) if same else (delta.a.float(), delta.b.float())
    if isinstance(delta, Tiny):
        up = delta.core.double() @ delta.basis.up.double()
        return delta.basis.down.float(), up.float()
    raise UnsupportedError(
        f"the {delta.kind} adapter's change of {path} is no product of two narrow matrices, "
        "and this format holds nothing else",
        hint="Fuse the adapter into its base model instead.",
    )


def _exact_scales(
    folded: Mapping[str, tuple[Tensor, Tensor]], spec: LoraSpec | None
) -> dict[str, float]:
    ones = dict.fromkeys(folded, 1.0)
    if spec is None:
        return ones
    scales = {path: spec.scale_of(path) for path in folded}
    for path, (a, b) in folded.items():
        scale = scales[path]
        is_power_of_two = math.frexp(scale)[0] == 0.5
        if not is_power_of_two or a.shape[1] != spec.rank_of(path):
            return ones
        # Powers of two still round among the smallest numbers, and overflow.
        if not torch.equal(b / scale * scale, b):
            return ones
    return scales
