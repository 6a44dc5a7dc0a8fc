"""The last steps of an adapter before it is stored: training through rounding.

The factors of low-rank adapters are held in units of the steps that the learned code rounds
to, and are rounded in the forward pass; gradients pass the rounding as if it were not there.
Beside the loss stands the rate, so that integers become small where the loss allows. What
comes out are integers and scales, which a stream holds as they are (docs/design/codec.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from hyprstream.errors import InvalidAdapterError, InvalidRequestError, UnsupportedError
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.ops import low_rank_product
from hyprstream.lora.weights import LoraWeights, pack
from hyprstream.models.decoder import Decoder
from hyprstream.train.backward import Objective, backward, learning
from hyprstream.train.collate import collate, packs
from hyprstream.train.config import FinishConfig
from hyprstream.train.optim import AdapterOptimizer
from hyprstream.train.sample import Sample
from hyprstream.train.step import PendingStep
from hyprstream.vdb.learned import PROXY_SLOPE, Pair, Quantised, scale_codes, scales
from hyprstream.vdb.learned.source import PairSource, read_source

_DEAD_ZONE = 0.55  # below it is 0: training through rounding wants it narrower than coding alone
_GRAIN = 8  # of the codes of scales: a quarter of a per cent, in fewer bytes
_UNIT_VALUES = 200  # coarseness counts in root mean square sizes by the root of this
_LEAST_SIZE = 1e-6  # of the largest component; below it there is no direction to speak of


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishReport:
    """What one step of the finish saw.

    Attributes:
        step: Its number, from 0.
        loss: Mean loss of the tokens that count, in nats, with rounded factors.
        bits_per_value: The rate that a gradient can follow, by the adapter's values.
    """

    step: int
    loss: float
    bits_per_value: float


class Finish:
    """A finish under way. Runs on the engine thread, a bounded piece at a time.

    A step that fails leaves everything as it was.

    Args:
        model: The base; it stays as it is.
        weights: A low-rank adapter without masks.
        config: How coarse the steps are, and how much the rate counts.

    Raises:
        UnsupportedError: The adapter is of another kind.
        InvalidAdapterError: It adds nothing, or its values have no place in the code.
    """

    @learning()
    def __init__(self, model: Decoder, weights: LoraWeights, config: FinishConfig) -> None:
        for path, delta in weights.modules.items():
            if not (isinstance(delta, LowRank) and delta.a_mask is None and delta.b_mask is None):
                raise UnsupportedError(
                    f"the adapter changes {path} as {delta.kind} or with a mask, "
                    "and only low-rank adapters without masks are trained through rounding",
                    hint="Store it as it is, in a code that needs no training.",
                )
        self._model = model
        self._config = config
        self._training = config.training()
        self._ranks = {path: delta.rank for path, delta in weights.modules.items()}
        source = {
            name.removesuffix("/low_rank"): part
            for name, part in read_source(pack(weights)).items()
            if isinstance(part, PairSource)
        }
        self._step = _step(source, config.coarseness)
        self._view = _RoundedLora(source, self._step, model.device)
        parameters = self._view.parameters()
        self._optimizer = AdapterOptimizer(parameters, self._training)
        self._pending = PendingStep(parameters)
        self._num_values = sum(delta.a.numel() + delta.b.numel() for delta in _low_rank(weights))
        self._num_steps = 0

    @learning()
    def accumulate(self, samples: Sequence[Sample]) -> None:
        """Add samples to the coming step; as `Trainer.accumulate`, with the same errors."""
        with self._pending.discarded_on_error():
            for chosen in packs(samples, self._config.batch_tokens):
                packed = collate(chosen, self._model.config, self._model.device)
                self._pending.add(backward(self._model, self._view, packed, Objective()))

    @learning()
    def apply(self) -> FinishReport:
        """Take one step along the gradient of mean loss and rate.

        Raises:
            InvalidRequestError: Nothing was accumulated, or all steps have been taken.
            NonFiniteTrainingError: The gradient is no finite number; the step is not taken.
        """
        if self._num_steps == self._config.num_steps:
            raise InvalidRequestError(
                f"all {self._num_steps} steps of the finish have been taken",
                hint="Take the result, or plan more steps.",
            )
        with self._pending.taken() as sums:
            rate = self._view.bits() / self._num_values
            (self._config.rate_weight * rate).backward()
            self._pending.check_gradients(None)
            self._optimizer.step(self._training.rate(self._num_steps))
        report = FinishReport(
            step=self._num_steps, loss=sums.loss / sums.weight, bits_per_value=rate.item()
        )
        self._num_steps += 1
        return report

    @torch.no_grad()
    def quantised(self) -> Quantised:
        """Return the integers and scales as they are now; `encode_quantised` writes them.

        Raises:
            InvalidAdapterError: An integer is too large for the code.
        """
        parts = {
            f"{path}/low_rank": layer.pair(self._ranks[path])
            for path, layer in self._view.layers.items()
        }
        return Quantised(parts=parts, step_code=int(scale_codes(np.array([self._step]), _GRAIN)[0]))


class _Layer:
    """One layer in units of its scales: p (K, I) and q (K, O), with gradients."""

    def __init__(self, part: PairSource, step: float, device: torch.device) -> None:
        used = part.sizes > _LEAST_SIZE * part.sizes.max(initial=0.0)
        roots = np.sqrt(part.sizes[used])
        self._codes: NDArray[np.int64] = scale_codes(step / roots, _GRAIN)
        factors = scales(self._codes)
        self._scales = torch.from_numpy(factors[:, None]).to(device)
        self.p, self.q = (
            torch.tensor(
                side[used] * (roots / factors)[:, None], dtype=torch.float32, device=device
            ).requires_grad_()
            for side in (part.u, part.v)
        )

    def product(self, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"]:
        """Return what the rounded factors add."""
        return low_rank_product(x, _round(self.p) * self._scales, _round(self.q) * self._scales)

    def bits(self) -> Float[Tensor, ""]:
        """Return the rate of both sides, as their squares tell it."""
        total = self.p.new_zeros(())
        for side in (self.p, self.q):
            squares = side.square().mean(dim=1)
            total = total + side.shape[1] / 2 * torch.log2(1 + PROXY_SLOPE * squares).sum()
        return total

    def pair(self, rank: int) -> Pair:
        """Return the components that are not nothing."""
        p, q = (_round(side).to("cpu", torch.int32).numpy() for side in (self.p, self.q))
        kept = p.any(axis=1) & q.any(axis=1)
        return Pair(rank=rank, codes=self._codes[kept], p=p[kept], q=q[kept])


class _RoundedLora:
    """A view of an adapter whose factors are rounded."""

    def __init__(self, source: Mapping[str, PairSource], step: float, device: torch.device) -> None:
        self.layers = {path: _Layer(part, step, device) for path, part in source.items()}

    def parameters(self) -> dict[str, Tensor]:
        """Name the leaves to optimise."""
        return {
            f"{path}/{name}": side
            for path, layer in self.layers.items()
            for name, side in (("p", layer.p), ("q", layer.q))
        }

    def bits(self) -> Float[Tensor, ""]:
        """Return the rate of all layers."""
        return torch.stack([layer.bits() for layer in self.layers.values()]).sum()

    def delta(self, path: str, x: Float[Tensor, "T I"]) -> Float[Tensor, "T O"] | None:
        """Return what to add to the output of the linear layer at `path` for input `x`."""
        layer = self.layers.get(path)
        return None if layer is None else layer.product(x)

    def select(self, rows: Int[Tensor, " N"]) -> "_RoundedLora":  # noqa: ARG002
        """Return the view of chosen rows: all rows use the one adapter."""
        return self


class _Rounding(torch.autograd.Function):
    """Rounds with a dead zone; the gradient goes straight through (arXiv:1308.3432)."""

    @staticmethod
    def forward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any,  # noqa: ARG004
        x: Tensor,
    ) -> Tensor:
        return torch.copysign(torch.floor(x.abs() + (1 - _DEAD_ZONE)), x)

    @staticmethod
    def backward(  # type: ignore[explicit-override]  # typing.override is Python 3.12
        ctx: Any,  # noqa: ARG004
        grad: Tensor,
    ) -> Tensor:
        return grad


def _round(x: Tensor) -> Tensor:
    rounded: Tensor = _Rounding.apply(x)  # type: ignore[no-untyped-call]  # torch
    return rounded


def _low_rank(weights: LoraWeights) -> list[LowRank]:
    return [delta for delta in weights.modules.values() if isinstance(delta, LowRank)]


def _step(source: Mapping[str, PairSource], coarseness: float) -> float:
    """Return the step, in units of what the adapter adds to a layer's matrix."""
    sizes = np.concatenate([part.sizes for part in source.values()] or [np.zeros(1)])
    size = float(np.sqrt(np.mean(np.square(sizes))))
    if not size:
        raise InvalidAdapterError(
            "the adapter adds nothing, so there is nothing to round", hint="Train it first."
        )
    return coarseness * size / math.sqrt(_UNIT_VALUES)
