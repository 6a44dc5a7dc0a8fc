"""Preferences against the published formulas in float64, computed one sample at a time."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.errors import InvalidRequestError
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.trainable import TrainableLora
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.attention import PackedAttention
from hyprstream.models.forward import ForwardBatch
from hyprstream.refs import AdapterName
from hyprstream.train import loss as loss_module
from hyprstream.train.config import TrainConfig
from hyprstream.train.lessons import preferences_of
from hyprstream.train.preference import outcomes, prefer, referenced, samples_of
from hyprstream.train.run import Run, RunConfig
from hyprstream.train.sample import Judged, Pair, Sample
from hyprstream.train.trainer import Trainer
from tests.lora.adapters import CPU, random_adapter
from tests.models.reference import load_decoder, make_model, variants

A = AdapterName("a")
TARGETS = ("q_proj", "down_proj", "lm_head")
BETA = 0.3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("preference")
    make_model(variants("llama")["plain"]).save_pretrained(folder)
    return load_decoder(folder)


def answer(seed: int, length: int, weight: float = 1.0) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(97, (length,), generator=generator).tolist()
    return Sample(tuple(ids), tuple(i > 2 for i in range(length)), weight)


PAIRS = [
    Pair(chosen=answer(1, 9), rejected=answer(2, 6), reference=0.7),
    Pair(chosen=answer(3, 5, 2.0), rejected=answer(4, 14, 2.0), reference=-2.0),
    Pair(chosen=answer(5, 7), rejected=answer(6, 7)),
]
JUDGED = [
    Judged(sample=answer(n, 5 + n, 1.0 + n), liked=n % 2 == 0, reference=-20.0 - 3 * n)
    for n in range(4)
]


def adapter(model) -> LoraWeights:
    linears = {path: model.linears[path] for path in LoraSpec(
        rank=3, alpha=3, targets=TARGETS).targeted(model.linears)}  # fmt: skip
    return random_adapter(linears, [3], seed=4)


def log_probability(model, sample: Sample, view) -> torch.Tensor:
    """Of all tokens that count, differentiable, of one sample by itself."""
    ids = torch.tensor(sample.token_ids)
    batch = ForwardBatch(
        token_ids=ids,
        positions=torch.arange(len(ids)),
        attention=PackedAttention(model.config.attention, [len(ids)]),
        lora=view,
    )
    logits = model.logits(model.forward(batch), view)[:-1]
    picked = logits.double().log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return picked[torch.tensor(sample.counts[1:])].sum()


def dpo(model, pairs, view) -> torch.Tensor:
    """Equation 7 of arXiv:2305.18290, with the reference's two terms as one number."""
    total = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        chosen, rejected = (log_probability(model, s, view) for s in (pair.chosen, pair.rejected))
        inner = BETA * (chosen - rejected - pair.reference)
        total = total - pair.chosen.weight * torch.log(torch.sigmoid(inner))
    return total


def apo_zero(model, judged, view) -> torch.Tensor:
    """The unpaired losses of arXiv:2408.06266: 1 - sigmoid for liked, sigmoid for disliked."""
    total = torch.zeros((), dtype=torch.float64)
    for one in judged:
        ratio = BETA * (log_probability(model, one.sample, view) - one.reference)
        loss = 1 - torch.sigmoid(ratio) if one.liked else torch.sigmoid(ratio)
        total = total + one.sample.weight * loss
    return total


@pytest.mark.parametrize(("choices", "formula"), [(PAIRS, dpo), (JUDGED, apo_zero)],
                         ids=["dpo", "apo zero"])  # fmt: skip
@pytest.mark.parametrize("recompute", [False, True])
def test_loss_and_gradients_are_those_of_the_formula(
    model, choices, formula, recompute, monkeypatch
):
    monkeypatch.setattr(loss_module, "_CHUNK_VALUES", 97 * 5)  # rows come in many pieces
    ours, theirs = (TrainableLora(adapter(model), device=CPU) for _ in range(2))
    expected = formula(model, choices, theirs)
    expected.backward()
    sums = prefer(model, ours, choices, BETA, recompute=recompute)
    assert sums.loss == pytest.approx(expected.item(), rel=1e-5)
    assert sums.weight == sum(choice.weight for choice in choices)
    assert sums.num_tokens == sum(choice.num_computed for choice in choices)
    for name, parameter in theirs.parameters().items():
        found = ours.parameters()[name].grad
        assert found is not None
        torch.testing.assert_close(found, parameter.grad, atol=2e-6, rtol=1e-3, msg=name)


def test_portions_make_no_difference(model):
    config = TrainConfig(learning_rate=1e-2, preference_beta=BETA)
    spec = LoraSpec(rank=3, alpha=3, targets=TARGETS)
    found = []
    for portions in ([PAIRS], [[pair] for pair in PAIRS]):
        trainer = Trainer(model)
        trainer.open(A, adapter(model), spec=spec, config=config)
        for portion in portions:
            trainer.prefer(A, portion)
        found.append((trainer.apply(A), trainer.snapshot(A)))
    (one, whole), (other, parts) = found
    assert other.loss == pytest.approx(one.loss, rel=1e-5)
    assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-4)
    for path, delta in whole.modules.items():
        torch.testing.assert_close(parts.modules[path].dense(), delta.dense(), atol=1e-4, rtol=1e-3)


def test_a_pair_that_is_longer_than_a_batch_gives_up_the_step(model):
    trainer = Trainer(model)
    config = TrainConfig(batch_tokens=16)
    trainer.open(A, adapter(model), spec=LoraSpec(rank=3, alpha=3, targets=TARGETS), config=config)
    with pytest.raises(InvalidRequestError, match="a batch takes 16"):
        trainer.prefer(A, PAIRS[::2] + PAIRS[1:2])
    with pytest.raises(InvalidRequestError, match="no samples"):
        trainer.apply(A)


FINITE = st.floats(-1e6, 1e6)


@given(chosen=FINITE, rejected=FINITE, reference=FINITE, beta=st.floats(1e-3, 100))
def test_outcomes_are_finite_and_fall_where_they_should(chosen, rejected, reference, beta):
    pair = dataclasses.replace(PAIRS[0], reference=reference)
    liked = Judged(sample=PAIRS[0].chosen, liked=True, reference=reference)
    disliked = dataclasses.replace(liked, liked=False)
    [of_pair] = outcomes([pair], [chosen, rejected], beta)
    of_liked, of_disliked = outcomes([liked, disliked], [chosen, chosen], beta)
    for outcome in (of_pair, of_liked, of_disliked):
        assert math.isfinite(outcome.loss)
        assert all(map(math.isfinite, outcome.slopes))
    assert of_pair.slopes[0] <= 0 <= of_pair.slopes[1]
    assert of_liked.slopes[0] <= 0 <= of_disliked.slopes[0]
    assert of_liked.loss + of_disliked.loss == pytest.approx(1)
    assert of_pair.is_right == (chosen - rejected > reference) or chosen - rejected == reference


def test_references_are_what_the_reference_model_finds(model):
    trainer = Trainer(model)
    before = adapter(model)
    scores = trainer.score(before, samples_of(PAIRS))
    found = referenced(PAIRS, [score.log_probability for score in scores])
    view = TrainableLora(before, device=CPU)
    for pair, expected in zip(found, PAIRS, strict=True):
        chosen, rejected = (log_probability(model, s, view) for s in expected.samples)
        assert pair.reference == pytest.approx((chosen - rejected).item(), rel=1e-4, abs=1e-4)
    probabilities = [score.log_probability for score in scores]
    assert [o.loss for o in outcomes(found, probabilities, BETA)] == pytest.approx(
        [math.log(2)] * 3
    )


@pytest.mark.parametrize("choices", [PAIRS, JUDGED], ids=["pairs", "thumbs"])
def test_a_run_moves_answers_to_where_they_should_be(model, choices):
    spec = LoraSpec(rank=3, alpha=6, targets=TARGETS)
    config = TrainConfig(learning_rate=1e-2, preference_beta=BETA)
    trainer = Trainer(model)
    start = create(spec, model.linears)
    trainer.open(A, start, spec=spec, config=config)
    lessons = preferences_of(trainer, A, choices, choices, reference=None)
    run = Run(trainer, A, lessons, RunConfig(num_steps=12, evaluate_every=4))
    list(run.steps())
    assert run.start is not None
    assert run.start.loss == pytest.approx(math.log(2) if choices is PAIRS else 0.5, rel=1e-3)
    assert run.best.held_out is not None
    assert run.best.held_out.loss < 0.6 * run.start.loss
