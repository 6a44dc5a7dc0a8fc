"""Passes in pieces, beside the same passes in one: gradients, losses, and what lies between."""

import dataclasses

import pytest
import torch

from hyprstream import lookup
from hyprstream.errors import (
    IncompatibleAdapterError,
    InvalidRequestError,
    InvalidSettingsError,
    NonFiniteTrainingError,
)
from hyprstream.lora.create import create
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.trainable import TrainableLora
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.refs import AdapterName
from hyprstream.train import sliced, sliced_head
from hyprstream.train.backward import Objective, backward
from hyprstream.train.collate import collate
from hyprstream.train.config import TrainConfig
from hyprstream.train.evaluate import sample_scores
from hyprstream.train.sample import Sample
from hyprstream.train.sliced import backward_pieces, loss_pieces, score_pieces
from hyprstream.train.stepwise import StepwisePass
from hyprstream.train.trainer import Trainer
from tests.lora.adapters import CPU, random_adapter, random_kinds
from tests.models.reference import load_decoder, make_model, variants
from tests.train.random_samples import SAMPLES, SPEC

FAMILIES = [family for family in lookup.names("hyprstream.models.arch") if family != "bert"]
A = AdapterName("a")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny(tmp_path_factory, "llama", "plain")


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces of few rows and few entries, as large models have them."""
    monkeypatch.setattr(sliced, "PIECE_PRODUCTS", 1)
    monkeypatch.setattr(sliced_head, "PIECE_PRODUCTS", 1)


def tiny(factory, family: str, name: str) -> Decoder:
    folder = factory.mktemp(family)
    make_model(variants(family)[name]).save_pretrained(folder)
    return load_decoder(folder)


def gradients(view: TrainableLora) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in view.parameters().items() if p.grad is not None}


def assert_same_pass(model, weights, samples, objective, *, recompute, exact=False) -> int:
    """Both passes give the same sums and gradients; return the number of pieces."""
    packed = collate(samples, model.config, CPU)
    whole, cut = (TrainableLora(weights, device=CPU) for _ in range(2))
    expected = backward(model, whole, packed, objective)
    stepwise = StepwisePass(backward_pieces(model, cut, packed, objective, recompute=recompute))
    with torch.inference_mode():  # as on a thread that serves
        sums = stepwise.finish()
    assert sums.loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-6)
    assert sums.pull == pytest.approx(expected.pull, rel=1e-4, abs=1e-6)
    assert (sums.weight, sums.num_tokens) == (expected.weight, expected.num_tokens)
    theirs, ours = gradients(whole), gradients(cut)
    assert ours.keys() == theirs.keys() == whole.parameters().keys()
    # Other runs of rows mean other sums in float32, and strong random adapters on a trained
    # model make much of that; the whole gradient is what an error is measured by.
    norm = sum(gradient.square().sum() for gradient in theirs.values()) ** 0.5
    for name, gradient in theirs.items():
        assert (ours[name] - gradient).norm() <= (1e-6 if exact else 2e-6) * norm
    return stepwise.num_pieces


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_gradients_of_the_whole_pass(tmp_path_factory, family, recompute):
    model = tiny(tmp_path_factory, family, next(iter(variants(family))))
    weights = random_adapter(model.linears, [3, 2], seed=2)
    objective = Objective(loss=0.7, pull=0.4)
    num = assert_same_pass(model, weights, SAMPLES, objective, recompute=recompute, exact=True)
    assert num >= 2 * 2 * model.config.num_layers


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("objective", [Objective(), Objective(loss=0.0, pull=2.0)])
@pytest.mark.usefixtures("small_pieces")
def test_small_pieces_add_up_to_the_same_gradients(model, recompute, objective):
    weights = random_kinds(model.linears, ["low_rank", "sparse", "tiny"], [3, 2], seed=4)
    samples = SAMPLES * 3
    num = assert_same_pass(model, weights, samples, objective, recompute=recompute)
    num_runs = -(-sum(s.num_computed for s in samples) // 16)
    assert num >= 2 * model.config.num_layers * (1 + num_runs)


@pytest.mark.parametrize("path", ["lm_head", "layers.1.mlp.down_proj", "layers.0.mlp.up_proj"])
def test_an_adapter_of_one_layer(model, path):
    """Below the first layer that is adapted, nothing has to flow back."""
    weights = random_adapter({path: model.linears[path]}, [3], seed=2)
    num = assert_same_pass(model, weights, SAMPLES, Objective(), recompute=False)
    everywhere = random_adapter(model.linears, [3], seed=2)
    most = assert_same_pass(model, everywhere, SAMPLES, Objective(), recompute=False)
    assert num < most


@pytest.mark.parametrize("quantization", ["int4", "int8"])
@pytest.mark.usefixtures("small_pieces")
def test_quantised_weights_are_cut_like_others(test_data, quantization):
    model = open_model(test_data / "stories260K" / "hf_pad256").load(
        device=CPU, dtype=torch.float32, quantization=quantization
    )
    assert isinstance(model, Decoder)
    weights = random_adapter(model.linears, [3], seed=2)
    assert_same_pass(model, weights, SAMPLES, Objective(pull=0.5), recompute=False)


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.usefixtures("small_pieces")
def test_losses_of_samples_are_those_of_the_whole_pass(model, adapted):
    view = None
    if adapted:
        view = TrainableLora(random_adapter(model.linears, [3], seed=2), device=CPU)
    stepwise = StepwisePass(loss_pieces(model, view, SAMPLES, 30))
    with torch.inference_mode():
        found = stepwise.finish()
    expected = [score.loss for score in sample_scores(model, view, SAMPLES, 2048)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert stepwise.num_pieces > 3 * 2 * model.config.num_layers


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.usefixtures("small_pieces")
def test_scores_of_samples_are_those_of_the_whole_pass(model, adapted):
    view = None
    if adapted:
        view = TrainableLora(random_adapter(model.linears, [3], seed=2), device=CPU)
    every = [Sample.answer([3, 1], [token]) for token in range(model.config.vocab_size)]
    likely = min(every, key=lambda one: sample_scores(model, view, [one], 2048)[0].loss)
    stepwise = StepwisePass(score_pieces(model, view, [*SAMPLES, likely], 30))
    with torch.inference_mode():
        found = stepwise.finish()
    expected = sample_scores(model, view, [*SAMPLES, likely], 2048)
    assert [one.loss for one in found] == pytest.approx([one.loss for one in expected], rel=1e-5)
    assert [one.num_right for one in found] == [one.num_right for one in expected]
    assert [one.num_tokens for one in found] == [one.num_tokens for one in expected]
    assert found[-1].is_exact


def trained(model, config: TrainConfig, spec: LoraSpec = SPEC, *, stepwise: bool):
    trainer = Trainer(model)
    trainer.open(A, create(spec, model.linears, seed=1), spec=spec, config=config)
    reports = []
    for _ in range(3):
        for portion in (SAMPLES[:2], SAMPLES[2:4]):
            if stepwise:
                trainer.begin(A, portion, anchors=SAMPLES[4:]).finish()
            else:
                trainer.accumulate(A, portion, anchors=SAMPLES[4:])
        reports.append(trainer.apply(A))
    return trainer.snapshot(A), reports


@pytest.mark.parametrize("recompute", [False, True])
def test_steps_of_passes_in_pieces_are_those_of_whole_passes(model, recompute):
    config = TrainConfig(learning_rate=1e-2, base_pull=0.5, batch_tokens=32, recompute=recompute)
    whole, reports = trained(model, config, stepwise=False)
    pieces, same = trained(model, config, stepwise=True)
    for ours, theirs in zip(same, reports, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
        assert ours.pull == pytest.approx(theirs.pull, rel=1e-3, abs=1e-6)
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3)
        assert ours.num_tokens == theirs.num_tokens
    for path, delta in whole.modules.items():
        close = pieces.modules[path].dense()
        torch.testing.assert_close(close, delta.dense(), atol=1e-3, rtol=1e-2)


def test_other_adapters_and_requests_may_come_between_two_pieces(model):
    def run(between) -> str:
        trainer = Trainer(model)
        start = create(SPEC, model.linears, seed=1)
        trainer.open(A, start, spec=SPEC, config=TrainConfig(learning_rate=1e-2))
        stepwise = trainer.begin(A, SAMPLES)
        while not stepwise.advance():
            assert not torch.is_inference_mode_enabled() or between is not None
            if between is not None:
                between(trainer)
        trainer.apply(A)
        return trainer.snapshot(A).fingerprint()

    other = AdapterName("b")

    def disturb(trainer: Trainer) -> None:
        with torch.inference_mode():
            model.forward(collate(SAMPLES, model.config, CPU).batch(model.config, None))
        if other not in trainer.names:
            start = create(SPEC, model.linears, seed=2)
            trainer.open(other, start, spec=SPEC, config=TrainConfig())
        trainer.accumulate(other, SAMPLES[:1])

    assert run(None) == run(disturb)


def test_a_pass_that_is_closed_gives_the_step_up(model):
    trainer = Trainer(model)
    start = create(SPEC, model.linears, seed=1)
    trainer.open(A, start, spec=SPEC, config=TrainConfig())
    trainer.accumulate(A, SAMPLES)
    stepwise = trainer.begin(A, SAMPLES)
    for _ in range(5):
        assert not stepwise.advance()
    stepwise.close()
    with pytest.raises(InvalidRequestError, match="no samples"):
        trainer.apply(A)
    trainer.begin(A, SAMPLES).finish()
    assert trainer.apply(A).step == 0


def test_a_pass_that_fails_gives_the_step_up(model):
    outputs, inputs = model.linears["lm_head"]
    steep = LowRank(torch.full((inputs, 1), 1e30), torch.full((1, outputs), 1e30))
    trainer = Trainer(model)
    spec = dataclasses.replace(SPEC, rank=1)
    trainer.open(A, LoraWeights({"lm_head": steep}), spec=spec, config=TrainConfig())
    with pytest.raises(NonFiniteTrainingError, match="the loss"):
        trainer.begin(A, SAMPLES).finish()
    with pytest.raises(NonFiniteTrainingError, match="a sample"):
        trainer.begin_evaluation(trainer.snapshot(A), SAMPLES).finish()
    with pytest.raises(InvalidRequestError, match="no samples"):
        trainer.apply(A)


def test_dropout_is_refused(model):
    trainer = Trainer(model)
    spec = dataclasses.replace(SPEC, dropout=0.1)
    trainer.open(A, create(spec, model.linears, seed=1), spec=spec, config=TrainConfig())
    with pytest.raises(InvalidSettingsError, match="dropout"):
        trainer.begin(A, SAMPLES)


def test_an_evaluation_is_refused_for_another_model(model):
    strange = random_adapter({"layers.0.mlp.up_proj": (7, 9)}, [2], seed=1)
    with pytest.raises(IncompatibleAdapterError):
        Trainer(model).begin_evaluation(strange, SAMPLES)
    with pytest.raises(IncompatibleAdapterError):
        Trainer(model).begin_scoring(strange, SAMPLES)
    assert Trainer(model).begin_evaluation(None, []).finish() == []
