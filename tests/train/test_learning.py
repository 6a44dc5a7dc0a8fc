"""Adapters of every kind learn a text that is new to a trained model; held-out text proves it."""

import pytest
import torch

from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.create import create
from hyprstream.lora.gradients import WeightGradients
from hyprstream.lora.spec import LoraSpec
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.refs import AdapterName
from hyprstream.train.backward import Objective, backward
from hyprstream.train.collate import collate
from hyprstream.train.config import TrainConfig
from hyprstream.train.fit import fit
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer
from tests.lora.adapters import CPU

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LENGTH = 64
NUM_STEPS = 24
NUM_HELD_OUT = 24
A = AdapterName("a")


@pytest.fixture(scope="module")
def corpus(test_data):
    """Windows of Shakespeare: a part to train on, and a later one to judge by."""
    opened = open_model(test_data / "stories260K" / "hf")
    text = (test_data / "corpora" / "tinyshakespeare.txt").read_text()[:120_000]
    ids = opened.tokenizer().encode(text)
    windows = [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH, LENGTH)]
    samples = [Sample.text(window) for window in windows]
    return samples[: len(samples) * 3 // 4], samples[-NUM_HELD_OUT:]


def load(test_data, name: str, **options) -> Decoder:
    model = open_model(test_data / "stories260K" / name).load(
        device=CPU, dtype=torch.float32, **options
    )
    assert isinstance(model, Decoder)
    return model


def learn(model: Decoder, corpus, spec: LoraSpec, rate: float, **options) -> tuple[float, float]:
    """The held-out loss before and after."""
    samples, held_out = corpus
    watch = WeightGradients(model.linears, CPU)
    backward(model, watch, collate(samples[:8], model.config, CPU), Objective())
    base = BaseLayers(model.weights)
    start = create(spec, model.linears, base=base, gradients=watch.sums)
    config = TrainConfig(
        learning_rate=rate,
        warmup_steps=3,
        schedule="cosine",
        total_steps=NUM_STEPS,
        final_share=0.1,
        batch_tokens=4 * LENGTH,
        **options,
    )
    trainer = Trainer(model)
    before = trainer.evaluate(None, held_out)
    assert trainer.evaluate(start, held_out) == pytest.approx(before)
    trainer.open(A, start, spec=spec, config=config)
    reports = list(fit(trainer, A, samples, num_steps=NUM_STEPS))
    assert reports[-1].loss < reports[0].loss
    after = trainer.evaluate(trainer.snapshot(A), held_out)
    return sum(before) / len(before), sum(after) / len(after)


def test_a_low_rank_adapter(test_data, corpus):
    spec = LoraSpec(rank=8, alpha=16, targets=LINEARS)
    before, after = learn(load(test_data, "hf"), corpus, spec, 1e-2)
    assert after < before - 0.8


def test_a_low_rank_adapter_by_muon(test_data, corpus):
    spec = LoraSpec(rank=8, alpha=16, targets=LINEARS)
    before, after = learn(load(test_data, "hf"), corpus, spec, 1e-2, optimizer="muon")
    assert after < before - 0.8


@pytest.mark.parametrize("regrow_every", [0, 5])
def test_a_sparse_adapter(test_data, corpus, regrow_every):
    spec = LoraSpec(rank=1, alpha=1, kind="sparse", sparsity=0.98, mask="gradient", targets=LINEARS)
    before, after = learn(load(test_data, "hf"), corpus, spec, 1e-2, regrow_every=regrow_every)
    assert after < before - 0.8


def test_a_tiny_adapter(test_data, corpus):
    spec = LoraSpec(rank=16, alpha=16, kind="tiny", targets=LINEARS)
    before, after = learn(load(test_data, "hf"), corpus, spec, 2e-2)
    assert after < before - 0.8


def test_a_low_rank_adapter_on_quantised_weights(test_data, corpus):
    spec = LoraSpec(rank=8, alpha=16, targets=LINEARS)
    model = load(test_data, "hf_pad256", quantization="int4")
    assert {w.kind for w in model.weights.values()} != {"f32"}
    before, after = learn(model, corpus, spec, 1e-2)
    assert after < before - 0.8
