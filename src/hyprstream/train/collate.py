"""Samples to packed batches, with the rows whose predictions count."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.errors import ContextTooLongError, InvalidRequestError
from hyprstream.models.attention import PackedAttention
from hyprstream.models.config import ModelConfig
from hyprstream.models.forward import ForwardBatch, LoraView
from hyprstream.train.sample import Judged, Pair, Sample

_Computed = TypeVar("_Computed", bound=Sample | Pair | Judged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Samples end to end. Tokens after the last that counts are left out: they change nothing.

    Attributes:
        token_ids: The tokens that are computed.
        positions: Position of each within its sample.
        lengths: Tokens of each sample.
        rows: Rows of the batch whose next token counts.
        targets: That token.
        weights: How much it counts.
        samples: Number of the sample that it belongs to.
    """

    token_ids: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    lengths: tuple[int, ...]
    rows: Int[Tensor, " N"]
    targets: Int[Tensor, " N"]
    weights: Float[Tensor, " N"]
    samples: Int[Tensor, " N"]

    @property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(self.weights.double().sum())

    def batch(
        self, config: ModelConfig, lora: LoraView | None, *, recompute: bool = False
    ) -> ForwardBatch:
        """Return what the model's forward pass takes; no sample sees another."""
        return ForwardBatch(
            token_ids=self.token_ids,
            positions=self.positions,
            attention=PackedAttention(config.attention, self.lengths),
            lora=lora,
            recompute=recompute,
        )


def collate(samples: Sequence[Sample], config: ModelConfig, device: torch.device) -> Packed:
    """Pack samples, in their order.

    Raises:
        InvalidRequestError: There are none, or a token id is not of the model.
        ContextTooLongError: A sample is longer than the model's context.
    """
    if not samples:
        raise InvalidRequestError("there are no samples", hint="Give at least one.")
    lengths = [sample.num_computed for sample in samples]
    for sample, length in zip(samples, lengths, strict=True):
        if length > config.context_length:
            raise ContextTooLongError(num_tokens=length, max_tokens=config.context_length)
        if max(sample.token_ids) >= config.vocab_size:
            raise InvalidRequestError(
                f"a token id is {max(sample.token_ids)}, the model has {config.vocab_size} tokens",
                hint="Make samples with the model's own tokenizer.",
            )
    tokens: list[int] = []
    positions: list[int] = []
    rows, targets, weights, numbers = [], [], [], []
    for number, (sample, length) in enumerate(zip(samples, lengths, strict=True)):
        counted = [i for i in range(length) if sample.counts[i + 1]]
        rows += [len(tokens) + i for i in counted]
        targets += [sample.token_ids[i + 1] for i in counted]
        weights += [sample.weight] * len(counted)
        numbers += [number] * len(counted)
        tokens += sample.token_ids[:length]
        positions += range(length)
    integers = [
        torch.tensor(values, dtype=torch.int64, device=device)
        for values in (tokens, positions, rows, targets, numbers)
    ]
    return Packed(
        token_ids=integers[0],
        positions=integers[1],
        lengths=tuple(lengths),
        rows=integers[2],
        targets=integers[3],
        weights=torch.tensor(weights, dtype=torch.float32, device=device),
        samples=integers[4],
    )


def packs(samples: Sequence[_Computed], max_tokens: int) -> Iterator[list[_Computed]]:
    """Cut samples, or pairs of them, into runs of at most `max_tokens` computed tokens.

    Raises:
        InvalidRequestError: One sample alone has more.
    """
    pack: list[_Computed] = []
    num_tokens = 0
    for sample in samples:
        length = sample.num_computed
        if length > max_tokens:
            raise InvalidRequestError(
                f"a sample has {length} tokens, a batch takes {max_tokens}",
                hint="Shorten the sample, or raise batch_tokens.",
            )
        if pack and num_tokens + length > max_tokens:
            yield pack
            pack, num_tokens = [], 0
        pack.append(sample)
        num_tokens += length
    if pack:
        yield pack
