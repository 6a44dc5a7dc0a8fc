"""The data of a training run: files to samples, what is learnt of them, and in which order."""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

from hyprstream.errors import InvalidDatasetError, InvalidRequestError
from hyprstream.models.chat import ChatTemplate
from hyprstream.models.tokenizer import Tokenizer
from hyprstream.runtime.model import Model
from hyprstream.runtime.training_records import Method, TrainingPlan
from hyprstream.train.augment import without_tokens
from hyprstream.train.collate import packs
from hyprstream.train.config import TrainConfig
from hyprstream.train.curriculum import changed, order_of, with_replay
from hyprstream.train.dataset import Dataset, Part, read_dataset
from hyprstream.train.encode import SampleMaker
from hyprstream.train.fit import Order
from hyprstream.train.sample import Judged, Pair, Sample

_Item = Sample | Pair | Judged
_BATCHES_OF_A_PASS = 10  # few data are learnt in few passes only by steps that are small
_LEAST_BATCH = 128  # of tokens: less would not use the processor well


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What a run learns from.

    Attributes:
        dataset: What is trained on, and what is judged by.
        earlier: Samples of earlier data that are mixed in.
        method: What is learnt.
    """

    dataset: Dataset
    earlier: tuple[Sample, ...]
    method: Method

    @property
    def trained(self) -> tuple[_Item, ...]:
        """What is trained on."""
        return _learnt(self.dataset.trained, self.method)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of all samples, in order: what a resumed run has to find again."""
        digest = hashlib.sha256()
        parts = (self.dataset.trained, self.dataset.held_out)
        for items in (*(_learnt(part, self.method) for part in parts), self.earlier):
            for item in items:
                digest.update(f"{item}\n".encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def batch_tokens(self, most: int) -> int:
        """Return a size of batches of which a pass has at least ten, if the data allows."""
        size = -(-sum(item.num_computed for item in self.trained) // _BATCHES_OF_A_PASS)
        held_out = _learnt(self.dataset.held_out, self.method)
        every = (*self.trained, *held_out, *self.earlier)
        longest = max(item.num_computed for item in every)
        return max(longest, _LEAST_BATCH, min(most, size))

    def num_steps(self, config: TrainConfig, epochs: float) -> int:
        """Return how many steps so many passes take."""
        num_batches = _num_batches(self.trained, config.batch_tokens)
        return max(1, math.ceil(epochs * num_batches / config.accumulation))

    def order(
        self,
        plan: TrainingPlan,
        control_ids: frozenset[int],
        losses: Callable[[Sequence[Sample]], list[float]],
    ) -> Order:
        """Return the order that the plan asks for.

        Args:
            plan: With its curriculum and its augmentation.
            control_ids: Tokens of the model that no augmentation takes away.
            losses: Gives the base model's loss of each sample.
        """
        samples, curriculum = self.dataset.trained.samples, plan.curriculum
        by_loss = curriculum.difficulty == "loss"
        lengths = [float(sample.num_computed) for sample in samples]
        order = order_of(curriculum, losses(samples) if by_loss else lengths)
        order = with_replay(order, self.earlier, curriculum.replay_share)
        share = plan.augment.token_dropout
        if not share:
            return order
        return changed(order, partial(without_tokens, share=share, kept=control_ids))


def maker_of(model: Model, max_tokens: int) -> SampleMaker:
    """Return what makes samples of a model."""
    return maker_for(model.tokenizer, max_tokens)


def maker_for(tokenizer: Tokenizer, max_tokens: int) -> SampleMaker:
    """Return what makes samples of the model that a tokenizer is of."""
    template = None
    if tokenizer.chat_template:
        # Of thousands of chats one may have to wait for the processor: only work counts.
        template = ChatTemplate(
            tokenizer.chat_template, tokenizer.special_tokens, timer=time.thread_time
        )
    return SampleMaker(tokenizer=tokenizer, template=template, max_tokens=max_tokens)


def read_material(model: Model, plan: TrainingPlan) -> Material:
    """Read the files of a plan.

    Raises:
        InvalidDatasetError: One cannot be used.
        InvalidRequestError: They hold several sorts of things to learn, or not the one that
            is asked for.
    """
    batch_tokens = int(plan.train.get("batch_tokens", TrainConfig().batch_tokens))
    longest = min(
        model.context_length, batch_tokens if plan.max_tokens is None else plan.max_tokens
    )
    maker, config = maker_of(model, longest), plan.data_config
    seed = int(plan.train.get("seed", 0))
    augment = plan.augment if plan.augment.copies else None
    dataset = read_dataset(
        plan.data, maker, config, held_out=plan.held_out, augment=augment, seed=seed
    )
    earlier: tuple[Sample, ...] = ()
    if plan.replay:
        # Of earlier data nothing that may be judged by is learnt, either.
        earlier = read_dataset(plan.replay, maker, config, held_out=plan.held_out).trained.samples
    method = _method(dataset.trained, plan.method)
    if plan.replay and method != "answers":
        raise InvalidRequestError(
            f"earlier answers cannot be mixed with {method}", hint="Leave out the earlier data."
        )
    if not _learnt(dataset.trained, method):
        raise InvalidDatasetError(
            ", ".join(map(str, plan.data)), f"it holds no {method} to train on"
        )
    return Material(dataset=dataset, earlier=earlier, method=method)


def _method(part: Part, wanted: Method | None) -> Method:
    if wanted is not None:
        return wanted
    found = [method for method in get_args(Method) if _learnt(part, method)]
    if len(found) != 1:
        raise InvalidRequestError(
            f"the data holds {' and '.join(found)}, of which one can be learnt at a time",
            hint="Say which: answers, pairs or thumbs.",
        )
    method: Method = found[0]
    return method


def _learnt(part: Part, method: Method) -> tuple[_Item, ...]:
    if method == "answers":
        return part.samples
    return part.pairs if method == "pairs" else part.judged


def _num_batches(items: tuple[_Item, ...], batch_tokens: int) -> int:
    return sum(1 for _ in packs(items, batch_tokens))
