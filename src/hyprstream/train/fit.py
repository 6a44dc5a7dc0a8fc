"""Steps over samples that are all at hand, in an order that follows from the seed."""

from collections.abc import Iterator, Sequence

import torch

from hyprstream.errors import InvalidRequestError
from hyprstream.refs import AdapterName
from hyprstream.train.collate import packs
from hyprstream.train.config import TrainConfig
from hyprstream.train.sample import Sample
from hyprstream.train.state import StepReport
from hyprstream.train.trainer import Trainer


def batches(samples: Sequence[Sample], config: TrainConfig) -> Iterator[list[Sample]]:
    """Yield batches for ever, each sample once before any of them again.

    Raises:
        InvalidRequestError: There are no samples, or one is longer than a batch.
    """
    if not samples:
        raise InvalidRequestError("there are no samples", hint="Give at least one.")
    generator = torch.Generator().manual_seed(config.seed)
    while True:
        order = torch.randperm(len(samples), generator=generator).tolist()
        yield from packs([samples[i] for i in order], config.batch_tokens)


def fit(
    trainer: Trainer, name: AdapterName, samples: Sequence[Sample], *, num_steps: int
) -> Iterator[StepReport]:
    """Take steps, and report each.

    Raises:
        HyprstreamError: As `Trainer.accumulate` and `Trainer.apply` do.
    """
    config = trainer.config(name)
    coming = batches(samples, config)
    for _ in range(num_steps):
        for _ in range(config.accumulation):
            trainer.accumulate(name, next(coming))
        yield trainer.apply(name)
