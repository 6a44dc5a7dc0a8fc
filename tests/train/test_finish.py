"""Training through rounding: what it gives back is what a stream holds, and worth having."""

import numpy as np
import pytest
import torch

from hyprstream.errors import (
    InvalidAdapterError,
    InvalidRequestError,
    InvalidSettingsError,
    NonFiniteTrainingError,
    UnsupportedError,
)
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights, pack, unpack
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.refs import AdapterName
from hyprstream.train.config import FinishConfig, TrainConfig
from hyprstream.train.finish import Finish
from hyprstream.train.fit import batches, fit
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer
from hyprstream.vdb.codecs import neural
from hyprstream.vdb.learned import Pair, Target
from tests.lora.adapters import CPU, random_adapter, random_sparse
from tests.models.reference import load_decoder, make_model, variants

LENGTH = 64
SPEC = LoraSpec(rank=8, alpha=16, targets=("q_proj", "v_proj", "up_proj", "down_proj"))
SAMPLES = [Sample.text([5, 9, 17, 3, 5, 9, 17, 3]), Sample.answer([1, 2, 3], [4, 5, 6, 7])]
A = AdapterName("a")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finish")
    make_model(variants("llama")["plain"]).save_pretrained(folder)
    return load_decoder(folder)


def adapter(model: Decoder) -> LoraWeights:
    paths = SPEC.targeted(model.linears)
    return random_adapter({path: model.linears[path] for path in paths}, [4], seed=2)


def finished(model: Decoder, weights: LoraWeights, config: FinishConfig, samples):
    finish = Finish(model, weights, config)
    coming = batches(samples, config.training())
    reports = []
    for _ in range(config.num_steps):
        finish.accumulate(next(coming))
        reports.append(finish.apply())
    return finish.quantised(), reports


@pytest.mark.slow
def test_a_finish_beats_rounding_what_was_trained_as_long(test_data):
    opened = open_model(test_data / "stories260K" / "hf")
    model = opened.load(device=CPU, dtype=torch.float32)
    assert isinstance(model, Decoder)
    text = (test_data / "corpora" / "tinyshakespeare.txt").read_text()[:60_000]
    ids = opened.tokenizer().encode(text)
    windows = [ids[i : i + LENGTH] for i in range(0, len(ids) - LENGTH, LENGTH)]
    samples = [Sample.text(window) for window in windows]
    samples, held_out = samples[:-24], samples[-24:]
    trainer = Trainer(model)
    config = TrainConfig(learning_rate=1e-2, batch_tokens=4 * LENGTH)
    trainer.open(A, create(SPEC, model.linears), spec=SPEC, config=config)
    list(fit(trainer, A, samples, num_steps=20))
    weights = trainer.snapshot(A)

    finishing = FinishConfig(
        coarseness=3.5, rate_weight=0.15, num_steps=15, batch_tokens=4 * LENGTH
    )
    quantised, reports = finished(model, weights, finishing, samples)
    data = neural.encode_quantised(quantised)
    decoded = neural.decode(data)
    for name, tensor in quantised.tensors().items():
        assert np.array_equal(decoded[name].values, tensor.values)
        assert decoded[name].shape == pack(weights)[name].shape

    def loss(tensors) -> float:
        losses = trainer.evaluate(unpack(tensors), held_out)
        return sum(losses) / len(losses)

    list(fit(trainer, A, samples, num_steps=15))  # as much training without rounding
    target = Target(size_bytes=len(data))
    rounded = neural.encode(pack(trainer.snapshot(A)), target=target)
    assert len(rounded.data) <= len(data)
    assert loss(decoded) < loss(neural.decode(rounded.data)) - 0.05
    assert reports[-1].bits_per_value < reports[0].bits_per_value


def test_the_loss_is_that_of_the_adapter_that_is_given_back(model):
    weights = adapter(model)
    finish = Finish(model, weights, FinishConfig(num_steps=2))
    for _ in range(2):
        losses = Trainer(model).evaluate(unpack(finish.quantised().tensors()), SAMPLES)
        num_counted = [sum(sample.counts[1:]) for sample in SAMPLES]
        finish.accumulate(SAMPLES[:1])
        finish.accumulate(SAMPLES[1:])
        report = finish.apply()
        assert report.loss == pytest.approx(np.average(losses, weights=num_counted), rel=1e-5)


def test_the_rate_is_that_of_the_code_and_its_gradient_makes_numbers_smaller(model):
    def lengths(rate_weight: float) -> float:
        config = FinishConfig(num_steps=4, rate_weight=rate_weight, coarseness=2.0)
        quantised, reports = finished(model, adapter(model), config, SAMPLES)
        assert (reports[-1].bits_per_value < reports[0].bits_per_value) or not rate_weight
        parts = [part for part in quantised.parts.values() if isinstance(part, Pair)]
        return sum(float(np.square(side).sum()) for part in parts for side in (part.p, part.q))

    assert lengths(300.0) < lengths(1.0) < 1.01 * lengths(0.0)


def test_fine_steps_give_the_adapter_back(model):
    weights = adapter(model)
    quantised = Finish(model, weights, FinishConfig(coarseness=0.005)).quantised()
    again = unpack(quantised.tensors())
    for path, delta in weights.modules.items():
        found = again.modules[path].dense()
        error = torch.linalg.norm(found - delta.dense()) / torch.linalg.norm(delta.dense())
        assert error < 0.01


def test_a_step_that_is_no_number_is_not_taken(model):
    finish = Finish(model, adapter(model), FinishConfig(num_steps=1))
    before = finish.quantised()
    with pytest.raises(NonFiniteTrainingError, match="the loss"):
        finish.accumulate([*SAMPLES, Sample((1, 2, 3, 4), (True,) * 4, weight=1e38)])
    with pytest.raises(InvalidRequestError, match="97 tokens"):
        finish.accumulate([*SAMPLES, Sample.text([1, 97])])
    with pytest.raises(InvalidRequestError, match="no samples"):
        finish.apply()
    assert neural.encode_quantised(finish.quantised()) == neural.encode_quantised(before)
    finish.accumulate(SAMPLES)
    finish.apply()
    with pytest.raises(InvalidRequestError, match="all 1 steps"):
        finish.apply()


def test_what_cannot_be_finished_is_refused(model):
    path = "layers.0.self_attn.q_proj"
    sparse = LoraWeights({path: random_sparse(model.linears[path], 0.9, seed=1)})
    with pytest.raises(UnsupportedError):
        Finish(model, sparse, FinishConfig())
    masked = create(LoraSpec(rank=4, alpha=4, sparsity=0.5), model.linears)
    with pytest.raises(UnsupportedError):
        Finish(model, masked, FinishConfig())
    with pytest.raises(InvalidAdapterError, match="adds nothing"):
        Finish(model, create(SPEC, model.linears), FinishConfig())
    with pytest.raises(InvalidAdapterError, match="adds nothing"):
        Finish(model, LoraWeights({}), FinishConfig())
    for fields in ({"coarseness": 0.0}, {"rate_weight": -1.0}, {"num_steps": 0},
                   {"learning_rate": 2.0}, {"batch_tokens": 0}):  # fmt: skip
        with pytest.raises(InvalidSettingsError):
            FinishConfig(**fields)
