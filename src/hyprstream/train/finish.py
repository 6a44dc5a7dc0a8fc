"""The last steps of an adapter before it is stored: training through rounding.

The factors of low-rank adapters are held in units of the steps that the learned code rounds
to, and are rounded in the forward pass (`train/rounded.py`). Beside the loss stands the rate,
so that integers become small where the loss allows. What comes out are integers and scales,
which a stream holds as they are (docs/design/codec.md).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hyprstream.errors import InvalidAdapterError, InvalidRequestError, UnsupportedError
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights, pack
from hyprstream.models.decoder import Decoder
from hyprstream.train.backward import Objective, backward, learning
from hyprstream.train.collate import collate, packs
from hyprstream.train.config import FinishConfig
from hyprstream.train.optim import AdapterOptimizer
from hyprstream.train.rounded import RoundedLora
from hyprstream.train.sample import Sample
from hyprstream.train.step import PendingStep
from hyprstream.vdb.learned import Quantised
from hyprstream.vdb.learned.source import PairSource, read_source

_UNIT_VALUES = 200  # coarseness counts in root mean square sizes by the root of this


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
        self._view = RoundedLora(source, _step(source, config.coarseness), model.device)
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
        return Quantised(parts=parts, step_code=self._view.step_code)


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
