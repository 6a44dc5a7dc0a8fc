"""Losses, gradients and steps are those of PEFT on transformers."""

import math

import pytest
import torch
from peft.optimizers import create_loraplus_optimizer

from hyprstream.lora.trainable import TrainableLora
from hyprstream.models.decoder import Decoder
from hyprstream.refs import AdapterName
from hyprstream.train.backward import Objective, backward
from hyprstream.train.collate import collate
from hyprstream.train.config import TrainConfig
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer
from tests.lora.adapters import CPU
from tests.models.reference import load_decoder, make_model, variants
from tests.train.peers import SPEC, mean_loss, modules, to_weights, wrap

SAMPLES = [
    Sample.answer([5, 9, 1], [7, 3, 11, 2]),
    Sample.text([8, 8, 2, 40, 6]),
    Sample((3, 1, 4, 1, 5, 9, 2, 6), (True, False, True, True, False, False, True, False), 2.5),
]
TRY = pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
A = AdapterName("a")


def both(family: str, folder, *, empty: bool = False) -> tuple[Decoder, object]:
    config = variants(family)["plain"]
    make_model(config).save_pretrained(folder)
    return load_decoder(folder), wrap(make_model(config), empty=empty)


@TRY
@pytest.mark.parametrize("recompute", [False, True])
def test_the_loss_and_the_gradients_of_a_and_b_are_the_same(family, recompute, tmp_path):
    model, wrapped = both(family, tmp_path)
    expected = mean_loss(wrapped, SAMPLES)
    expected.backward()

    weights = to_weights(wrapped)
    scales = dict.fromkeys(weights.modules, SPEC.scale)
    lora = TrainableLora(weights, device=CPU, scales=scales)
    packed = collate(SAMPLES, model.config, CPU)
    sums = backward(model, lora, packed, Objective(), recompute=recompute)

    assert sums.loss / sums.weight == pytest.approx(expected.item(), rel=1e-5)
    for path, (a, b) in modules(wrapped).items():
        for name, parameter in (("a", a), ("b", b)):
            found = lora.parameters()[f"{path}/low_rank/{name}"].grad
            assert found is not None
            torch.testing.assert_close(
                found.T / sums.weight, parameter.grad, atol=1e-6, rtol=1e-4, msg=f"{path}/{name}"
            )


@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_steps_of_adamw_give_the_same_weights(max_grad_norm, tmp_path):
    model, wrapped = both("llama", tmp_path, empty=True)
    config = TrainConfig(
        learning_rate=1e-2,
        weight_decay=0.1,
        max_grad_norm=max_grad_norm,
        schedule="linear",
        total_steps=4,
    )
    trainer = Trainer(model)
    trainer.open(A, to_weights(wrapped), spec=SPEC, config=config)
    parameters = [p for pair in modules(wrapped).values() for p in pair]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 4)
    for step in range(3):
        loss = mean_loss(wrapped, SAMPLES)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf"))
        optimizer.step()
        trainer.accumulate(A, SAMPLES)
        report = trainer.apply(A)
        assert report.step == step
        assert report.loss == pytest.approx(loss.item(), rel=1e-4)
        assert report.grad_norm == pytest.approx(norm.item(), rel=1e-3)
        assert report.learning_rate == pytest.approx(schedule.get_last_lr()[0])
        schedule.step()
    ours, theirs = trainer.snapshot(A), to_weights(wrapped)
    assert ours.modules.keys() == theirs.modules.keys()
    for path, delta in theirs.modules.items():
        found = ours.modules[path]
        # Adam turns a gradient into its sign at first, so near zero a rounding is a step.
        torch.testing.assert_close(found.dense(), delta.dense(), atol=2e-4, rtol=1e-3)


def test_the_losses_of_fifty_steps_are_the_same(tmp_path):
    model, wrapped = both("qwen3", tmp_path, empty=True)
    luck = torch.Generator().manual_seed(1)
    samples = [
        Sample.text(torch.randint(3, 60, (length,), generator=luck).tolist())
        for length in (9, 12, 16, 7, 21, 14)
    ]
    config = TrainConfig(
        learning_rate=3e-3, warmup_steps=5, schedule="cosine", total_steps=50, final_share=0.1
    )
    trainer = Trainer(model)
    trainer.open(A, to_weights(wrapped), spec=SPEC, config=config)
    parameters = [p for pair in modules(wrapped).values() for p in pair]
    optimizer = torch.optim.AdamW(parameters, lr=1.0, weight_decay=0.0)
    ours, theirs = [], []
    for step in range(50):
        batch = [samples[(step + i) % len(samples)] for i in range(3)]
        loss = mean_loss(wrapped, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        warm, done = (step + 1) / 5, (step - 5) / 45
        share = warm if step < 5 else 0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2
        optimizer.param_groups[0]["lr"] = 3e-3 * share
        optimizer.step()
        trainer.accumulate(A, batch)
        ours.append(trainer.apply(A).loss)
        theirs.append(loss.item())
    assert ours == pytest.approx(theirs, rel=1e-4)  # 1e-6 here
    assert ours[-1] < 0.3 * ours[0]  # there was something to learn, and it was learnt


def test_lora_plus_gives_the_weights_that_pefts_optimizer_gives(tmp_path):
    model, wrapped = both("llama", tmp_path, empty=True)
    config = TrainConfig(learning_rate=2e-3, lora_plus_ratio=16, max_grad_norm=None)
    trainer = Trainer(model)
    trainer.open(A, to_weights(wrapped), spec=SPEC, config=config)
    optimizer = create_loraplus_optimizer(
        wrapped, torch.optim.AdamW, lr=2e-3, loraplus_lr_ratio=16, weight_decay=0.0
    )
    for _ in range(3):
        optimizer.zero_grad()
        mean_loss(wrapped, SAMPLES).backward()
        optimizer.step()
        trainer.accumulate(A, SAMPLES)
        trainer.apply(A)
    ours, theirs = trainer.snapshot(A), to_weights(wrapped)
    for path, delta in theirs.modules.items():
        torch.testing.assert_close(ours.modules[path].dense(), delta.dense(), atol=5e-4, rtol=1e-3)
