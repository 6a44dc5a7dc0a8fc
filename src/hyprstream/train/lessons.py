"""What a run learns from, made of samples: batches without end, and held-out ones to judge by."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from typing import TypeVar

from hyprstream.lora.weights import LoraWeights
from hyprstream.refs import AdapterName
from hyprstream.train.evaluate import Evaluation
from hyprstream.train.fit import Order, batches
from hyprstream.train.preference import outcomes, referenced, samples_of
from hyprstream.train.run import HeldOut, Lessons, Portion
from hyprstream.train.sample import Judged, Pair, Sample
from hyprstream.train.trainer import Trainer

_Choice = TypeVar("_Choice", Pair, Judged)


def lessons_of(
    trainer: Trainer,
    name: AdapterName,
    samples: Sequence[Sample],
    held_out: Sequence[Sample],
    *,
    order: Order | None = None,
    anchors: Sequence[Sample] = (),
) -> Lessons:
    """Learn samples as they stand; judge by the mean loss of held-out tokens.

    Args:
        trainer: Where the adapter is open.
        name: Of the adapter.
        samples: To learn.
        held_out: To judge by; may be empty.
        order: In which samples come; None shuffles them.
        anchors: Text on which the adapter stays close to the base model, if its training has
            a pull; without any that is measured on the samples themselves.

    Raises:
        InvalidRequestError: A sample is longer than a batch.
    """
    config = trainer.config(name)

    def portions() -> Iterator[Portion]:
        held: Iterator[list[Sample] | None] = repeat(None)
        if anchors and config.base_pull:
            held = batches(anchors, replace(config, batch_tokens=config.anchor_tokens))
        for batch in batches(samples, config, order):
            yield partial(trainer.accumulate, name, batch, anchors=next(held))

    def judge(weights: LoraWeights | None) -> HeldOut:
        scores = trainer.score(weights, held_out, batch_tokens=config.batch_tokens)
        losses = tuple(score.loss for score in scores)
        return HeldOut(loss=Evaluation.of(scores).loss, losses=losses)

    return Lessons(portions=portions(), judge=judge if held_out else None)


def preferences_of(
    trainer: Trainer,
    name: AdapterName,
    choices: Sequence[_Choice],
    held_out: Sequence[_Choice],
    *,
    reference: LoraWeights | None,
) -> Lessons:
    """Learn which answers are better; judge by the mean loss of held-out choices.

    Args:
        trainer: Where the adapter is open.
        name: Of the adapter.
        choices: To learn.
        held_out: To judge by; may be empty.
        reference: What the adapter is compared with; None for the base model.

    Raises:
        InvalidRequestError: There are no choices, or one is longer than a batch.
    """
    config = trainer.config(name)

    def likely(weights: LoraWeights | None, of: Sequence[_Choice]) -> list[float]:
        scores = trainer.score(weights, samples_of(of), batch_tokens=config.batch_tokens)
        return [score.log_probability for score in scores]

    to_learn = referenced(choices, likely(reference, choices))
    to_judge = referenced(held_out, likely(reference, held_out))

    def portions() -> Iterator[Portion]:
        for batch in batches(to_learn, config):
            yield partial(trainer.prefer, name, batch)

    def judge(weights: LoraWeights | None) -> HeldOut:
        found = outcomes(to_judge, likely(weights, to_judge), config.preference_beta)
        losses = tuple(outcome.loss for outcome in found)
        return HeldOut(loss=sum(losses) / len(losses), losses=losses)

    return Lessons(portions=portions(), judge=judge if to_judge else None)
