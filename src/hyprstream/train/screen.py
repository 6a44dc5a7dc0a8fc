"""Which samples are not worth learning from, before any time is spent on them. Plain Python.

What can be seen in a batch alone: an answer that repeats itself, one answer to many prompts,
different answers to one prompt. What takes a model: an answer that is less likely than noise.
"""

import itertools
import statistics
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

from hyprstream.train.buffer import prompt_digest
from hyprstream.train.sample import Sample

Suspicion = Literal["repeats", "flood", "contradiction", "unlikely"]

_LEAST_ANSWER = 8  # tokens; shorter answers may well be one word twice
_MOST_COMMON = 0.5  # share of one token in an answer
_LEAST_DISTINCT = 0.3  # share of distinct pairs among its pairs of tokens
_FLOOD_PROMPTS = 3  # that one answer may be given to
_FLOOD_SHARE = 0.1  # of the batch, at which that is a flood
_FLOOD_TIMES = 4  # as many prompts as other answers have: labels have many, and no one most
_SPREADS = 8.0  # median deviations above the median at which a loss is an outlier


def screen(samples: Sequence[Sample]) -> dict[int, Suspicion]:
    """Return the places of suspect samples in a batch, and why."""
    found: dict[int, Suspicion] = {}
    prompts: dict[bytes, set[tuple[int, ...]]] = defaultdict(set)
    answers: dict[tuple[int, ...], set[bytes]] = defaultdict(set)
    for sample in samples:
        prompts[prompt_digest(sample)].add(answer(sample))
        answers[answer(sample)].add(prompt_digest(sample))
    floods = _floods([(answer(s), len(answers[answer(s)])) for s in samples])
    for place, sample in enumerate(samples):
        if _repeats(answer(sample)):
            found[place] = "repeats"
        elif answer(sample) in floods:
            found[place] = "flood"
        elif len(prompts[prompt_digest(sample)]) > 1:
            found[place] = "contradiction"
    return found


def unlikely(losses: Sequence[float], uniform_loss: float) -> dict[int, Suspicion]:
    """Return the places of losses beyond a guess that knows nothing, or far from all others.

    Args:
        losses: Of each sample under the parent, in nats a token.
        uniform_loss: The logarithm of the vocabulary's size.
    """
    if not losses:
        return {}
    middle = statistics.median(losses)
    spread = statistics.median(abs(loss - middle) for loss in losses)
    # A batch of noise has noise for its median; the first bound does not follow it.
    bound = min(uniform_loss * 1.15, middle + _SPREADS * spread) if spread else uniform_loss * 1.15
    return {place: "unlikely" for place, loss in enumerate(losses) if loss > bound}


def rotated(samples: Sequence[Sample]) -> list[Sample]:
    """Give each sample the prompt of the one before it; samples without prompts are left out.

    What is lost by that tells how much answers have to do with their prompts. A prompt that
    is longer than the one in whose place it comes loses its beginning.
    """
    asked = with_prompts(samples)
    prompts = [prompt(sample) for sample in asked]
    return [
        Sample.answer(prompts[place - 1][-len(prompts[place]) :], answer(sample))
        for place, sample in enumerate(asked)
    ]


def with_prompts(samples: Sequence[Sample]) -> list[Sample]:
    """Return samples cut down to prompt and answer; those without a prompt are left out."""
    return [Sample.answer(prompt(sample), answer(sample)) for sample in samples if prompt(sample)]


def prompt(sample: Sample) -> tuple[int, ...]:
    """Return the tokens before the first that counts; of a text without a prompt, none."""
    first = sample.counts.index(True, 1)
    return sample.token_ids[:first] if first > 1 else ()


def answer(sample: Sample) -> tuple[int, ...]:
    """Return the tokens from the first to the last that counts."""
    first = sample.counts.index(True, 1)
    return sample.token_ids[first : sample.num_computed + 1]


def counted(found: Mapping[int, Suspicion]) -> dict[Suspicion, int]:
    """Count suspicions of each kind."""
    return dict(Counter(found.values()))


def _floods(given: Sequence[tuple[tuple[int, ...], int]]) -> set[tuple[int, ...]]:
    """Return the answers of too many prompts; given are answer and number, of each sample."""
    most = max(_FLOOD_PROMPTS, _FLOOD_SHARE * len(given))
    floods = set()
    for common, count in {each for each in given if each[1] > most}:
        others = [number for other, number in given if other != common]
        if not others or count > _FLOOD_TIMES * statistics.median(others):
            floods.add(common)
    return floods


def _repeats(tokens: Sequence[int]) -> bool:
    if len(tokens) < _LEAST_ANSWER:
        return False
    most_common = Counter(tokens).most_common(1)[0][1]
    pairs = set(itertools.pairwise(tokens))
    return most_common > _MOST_COMMON * len(tokens) or len(pairs) < _LEAST_DISTINCT * (
        len(tokens) - 1
    )
