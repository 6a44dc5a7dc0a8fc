"""Steps over samples that are all at hand, in an order that follows from the seed."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from hyprstream.errors import InvalidRequestError
from hyprstream.refs import AdapterName
from hyprstream.train.collate import packs
from hyprstream.train.config import TrainConfig
from hyprstream.train.sample import Judged, Pair, Sample
from hyprstream.train.state import StepReport
from hyprstream.train.trainer import Trainer

_Item = TypeVar("_Item", Sample, Pair, Judged)

Order = Callable[[Sequence[Sample], int], Iterator[Sequence[Sample]]]
"""Given samples and a seed, yields runs of them without end, each to be cut into batches."""


def shuffled(samples: Sequence[_Item], seed: int) -> Iterator[list[_Item]]:
    """Yield all samples again and again, each time in another order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(samples), generator=generator).tolist()
        yield [samples[i] for i in order]


def batches(
    samples: Sequence[_Item],
    config: TrainConfig,
    order: Callable[[Sequence[_Item], int], Iterator[Sequence[_Item]]] | None = None,
) -> Iterator[list[_Item]]:
    """Yield batches for ever, in an order of which the default is `shuffled`.

    Raises:
        InvalidRequestError: There are no samples, or one is longer than a batch.
    """
    if not samples:
        raise InvalidRequestError("there are no samples", hint="Give at least one.")
    for part in (order or shuffled)(samples, config.seed):
        yield from packs(part, config.batch_tokens)


def fit(
    trainer: Trainer,
    name: AdapterName,
    samples: Sequence[Sample],
    *,
    num_steps: int,
    order: Order | None = None,
) -> Iterator[StepReport]:
    """Take steps, and report each.

    Raises:
        HyprstreamError: As `Trainer.accumulate` and `Trainer.apply` do.
    """
    config = trainer.config(name)
    coming = batches(samples, config, order)
    for _ in range(num_steps):
        for _ in range(config.accumulation):
            trainer.accumulate(name, next(coming))
        yield trainer.apply(name)
