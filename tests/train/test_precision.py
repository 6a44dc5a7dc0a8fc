"""Training on weights and activations of fewer bits; parameters stay in float32."""

import pytest
import torch

from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.refs import AdapterName
from hyprstream.train.config import TrainConfig
from hyprstream.train.fit import fit
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer
from tests.lora.adapters import CPU

A = AdapterName("a")
SPEC = LoraSpec(rank=8, alpha=16, targets=("q_proj", "v_proj", "down_proj"), use_rslora=True)
CONFIG = TrainConfig(learning_rate=1e-2, batch_tokens=256)


@pytest.fixture(scope="module")
def corpus(test_data):
    opened = open_model(test_data / "stories260K" / "hf")
    text = (test_data / "corpora" / "tinyshakespeare.txt").read_text()[:20_000]
    ids = opened.tokenizer().encode(text)
    return [Sample.text(ids[i : i + 64]) for i in range(0, 1280, 64)]


def losses(test_data, corpus, dtype=torch.float32, quantization=None) -> list[float]:
    folder = test_data / "stories260K" / "hf_pad256"
    model = open_model(folder).load(device=CPU, dtype=dtype, quantization=quantization)
    assert isinstance(model, Decoder)
    assert model.dtype == dtype
    trainer = Trainer(model)
    trainer.open(A, create(SPEC, model.linears), spec=SPEC, config=CONFIG)
    found = [report.loss for report in fit(trainer, A, corpus, num_steps=10)]
    for delta in trainer.snapshot(A).modules.values():
        assert all(tensor.dtype == torch.float32 for tensor in delta.tensors().values())
    assert found[-1] < found[0] - 0.3
    return found


@pytest.mark.parametrize(
    ("dtype", "quantization", "apart"),
    [
        (torch.bfloat16, None, 0.02),
        (torch.float32, "int8", 0.06),
        (torch.float32, "int4", 0.4),
        (torch.bfloat16, "int8", 0.06),
    ],
    ids=["bf16", "int8", "int4", "int8 in bf16"],
)
def test_losses_stay_near_those_of_float32(test_data, corpus, dtype, quantization, apart):
    exact = losses(test_data, corpus)
    found = losses(test_data, corpus, dtype, quantization)
    assert max(abs(a - b) for a, b in zip(exact, found, strict=True)) < apart
