"""What is measured of held-out samples, against logits of one sample at a time and generation."""

import math

import pytest
import torch

from hyprstream.engine.generate import next_logits
from hyprstream.engine.kv_cache import SequenceCache
from hyprstream.errors import InvalidRequestError
from hyprstream.lora.trainable import TrainableLora
from hyprstream.train.evaluate import Evaluation, SampleScore
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer
from tests.lora.adapters import CPU, packed_logits, random_adapter
from tests.models.reference import load_decoder, make_model, variants


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    make_model(variants("llama")["plain"]).save_pretrained(folder)
    return load_decoder(folder)


def greedy(model, prompt: list[int], length: int) -> list[int]:
    """What the model says, token by token, through the loop that answers."""
    cache = SequenceCache(model.config, model.dtype, model.device)
    said: list[int] = []
    coming = prompt
    for _ in range(length):
        said.append(int(next_logits(model, cache, coming, None).argmax()))
        coming = said[-1:]
    return said


def test_exact_is_what_greedy_decoding_would_say(model):
    prompts = [[3, 1, 4], [1, 5, 9, 2], [6]]
    right = [Sample.answer(prompt, greedy(model, prompt, 5)) for prompt in prompts]
    wrong = [Sample((*s.token_ids[:-1], (s.token_ids[-1] + 1) % 90), s.counts) for s in right]
    scores = Trainer(model).score(None, [*right, *wrong])
    assert [score.is_exact for score in scores] == [True] * 3 + [False] * 3
    assert [score.num_right for score in scores] == [5] * 3 + [4] * 3
    found = Evaluation.of(scores)
    assert found.exact_match == 0.5
    assert found.token_accuracy == pytest.approx(27 / 30)
    assert (found.num_samples, found.num_tokens) == (6, 30)


def test_losses_are_those_of_one_sample_at_a_time(model):
    generator = torch.Generator().manual_seed(3)
    samples = [
        Sample(tuple(torch.randint(97, (n,), generator=generator).tolist()),
               tuple(i % 3 > 0 for i in range(n)))
        for n in (7, 20, 4)
    ]  # fmt: skip
    adapter = random_adapter(model.linears, [3], seed=2)
    view = TrainableLora(adapter, device=CPU)
    scores = Trainer(model).score(adapter, samples, batch_tokens=24)
    total = 0.0
    for sample, score in zip(samples, scores, strict=True):
        ids = torch.tensor(sample.token_ids)
        [whole] = packed_logits(model, [ids], view)
        logits = whole[:-1]
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        counted = losses[torch.tensor(sample.counts[1:])]
        assert score.loss == pytest.approx(counted.mean().item(), rel=1e-5)
        assert score.log_probability == pytest.approx(-counted.sum().item(), rel=1e-5)
        total += counted.sum().item()
    found = Evaluation.of(scores)
    assert found.loss == pytest.approx(total / found.num_tokens, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(found.loss))


def test_a_loss_beyond_measure_has_a_perplexity():
    score = SampleScore(loss=5000.0, num_tokens=1, num_right=0)
    assert math.isfinite(Evaluation.of([score]).perplexity)
    with pytest.raises(InvalidRequestError, match="no samples"):
        Evaluation.of([])
