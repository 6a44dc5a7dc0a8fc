"""How well a model answers samples that are given: losses, and whether it would say the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hyprstream.errors import InvalidRequestError, NonFiniteTrainingError
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import LoraView
from hyprstream.train.collate import collate, packs
from hyprstream.train.loss import row_chunks, scored
from hyprstream.train.sample import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleScore:
    """What a model makes of one sample.

    Attributes:
        loss: Mean loss of the tokens that count, in nats.
        num_tokens: How many count.
        num_right: Of them, those that the model finds most likely, given the ones before.
    """

    loss: float
    num_tokens: int
    num_right: int

    @property
    def is_exact(self) -> bool:
        """Whether every token that counts is the most likely one.

        Of a prompt with one answer that is to say: greedy decoding gives this very answer.
        """
        return self.num_right == self.num_tokens

    @property
    def log_probability(self) -> float:
        """Logarithm of how likely all tokens that count are together, in nats."""
        return -self.loss * self.num_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a model makes of many samples.

    Attributes:
        num_samples: How many.
        num_tokens: Tokens that count.
        loss: Mean loss of a token, in nats.
        perplexity: Its exponential.
        token_accuracy: Share of tokens that the model finds most likely.
        exact_match: Share of samples that greedy decoding would answer word by word.
    """

    num_samples: int
    num_tokens: int
    loss: float
    perplexity: float
    token_accuracy: float
    exact_match: float

    @classmethod
    def of(cls, scores: Sequence[SampleScore]) -> "Evaluation":
        """Sum up.

        Raises:
            InvalidRequestError: There are no scores.
        """
        if not scores:
            raise InvalidRequestError("there are no samples to evaluate", hint="Give some.")
        num_tokens = sum(score.num_tokens for score in scores)
        loss = -sum(score.log_probability for score in scores) / num_tokens
        return cls(
            num_samples=len(scores),
            num_tokens=num_tokens,
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)),  # 1e304: beyond it there is no float
            token_accuracy=sum(score.num_right for score in scores) / num_tokens,
            exact_match=sum(score.is_exact for score in scores) / len(scores),
        )


@torch.no_grad()
def sample_scores(
    model: Decoder, view: LoraView | None, samples: Sequence[Sample], max_tokens: int
) -> list[SampleScore]:
    """Return what the model makes of each sample.

    Raises:
        NonFiniteTrainingError: A loss is no finite number.
    """
    scores: list[SampleScore] = []
    for pack in packs(samples, max_tokens):
        packed = collate(pack, model.config, model.device)
        hidden = model.forward(packed.batch(model.config, view))[packed.rows]
        sums = torch.zeros(2, len(pack), dtype=torch.float64, device=model.device)
        for chunk in row_chunks(len(packed.rows), model.config.vocab_size):
            head = None if view is None else view.select(packed.rows[chunk])
            losses, right = scored(model, hidden[chunk], packed.targets[chunk], head)
            sums[0].index_add_(0, packed.samples[chunk], losses.double())
            sums[1].index_add_(0, packed.samples[chunk], right.double())
        counts = packed.samples.bincount(minlength=len(pack)).tolist()
        scores += [
            SampleScore(loss=loss / count, num_tokens=count, num_right=int(right))
            for loss, right, count in zip(*sums.tolist(), counts, strict=True)
        ]
    if not all(math.isfinite(score.loss) for score in scores):
        raise NonFiniteTrainingError("the loss of a sample")
    return scores
