"""Runs: what they report, when they stop, which version they keep, and how they go on."""

import dataclasses
import subprocess
import sys
from itertools import count, islice
from pathlib import Path

import pytest
import torch

from hyprstream.errors import (
    ChecksumMismatchError,
    CorruptError,
    InvalidAdapterError,
    InvalidSettingsError,
)
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.spec import LoraSpec
from hyprstream.train.config import TrainConfig
from hyprstream.train.resume import load_run, remove_run, save_run, saved_settings
from hyprstream.train.run import HeldOut, Lessons, Run, RunConfig
from tests.models.reference import load_decoder, make_model, variants
from tests.train.running import CONFIG, HELD_OUT, SAMPLES, SPEC, TARGETS, A, run_on


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_model(variants("llama")["plain"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_decoder(folder)


def test_a_run_learns_and_reports(model):
    seconds = count()
    run, trainer = run_on(
        model, run=RunConfig(num_steps=8, evaluate_every=3), clock=lambda: float(next(seconds))
    )
    told = list(run.steps())
    assert [p.point.step for p in told] == list(range(1, 9))
    assert [p.point.held_out_loss is not None for p in told] == [
        n in (3, 6, 8) for n in range(1, 9)
    ]
    assert run.start is not None
    assert run.best.held_out is not None
    assert run.best.held_out.loss < run.start.loss - 0.1
    assert len(run.best.held_out.losses) == len(HELD_OUT)
    # The clock is read three times a step: training takes one of its two seconds.
    tokens = [p.report.num_tokens for p in told]
    assert told[-1].tokens_per_s == pytest.approx(sum(tokens) / 8)
    assert [p.remaining_s for p in told] == [2.0 * (8 - n) for n in range(1, 9)]
    assert run.curve[1:] == [p.point for p in told]
    assert run.curve[0].held_out_loss == run.start.loss
    assert run.is_over
    expected = trainer.evaluate(run.best.weights, HELD_OUT)
    assert list(run.best.held_out.losses) == expected


def scripted(model, losses, config: RunConfig) -> Run:
    """A run whose held-out losses are these."""
    trainer = run_on(model, run=config, held_out=())[1]
    coming = iter(losses)

    def judge(weights):
        del weights
        loss = next(coming)
        return HeldOut(loss=loss, losses=(loss,))

    lessons = Lessons(portions=iter(lambda: lambda: trainer.accumulate(A, SAMPLES[:2]), None),
                      judge=judge)  # fmt: skip
    return Run(trainer, A, lessons, config)


def test_it_stops_when_nothing_becomes_better_and_keeps_the_best(model):
    losses = [5, 4, 3, 3.5, 2, 2, 2.5, 2.1]
    run = scripted(model, losses, RunConfig(num_steps=99, evaluate_every=2, patience=3))
    kept = {}
    for progress in run.steps():
        kept[progress.point.step] = run.saved().current.fingerprint()
    assert run.num_steps_done == 14
    assert run.best.step == 8
    assert run.best.weights.fingerprint() == kept[8]
    assert [p.step for p in run.curve if p.held_out_loss == 2] == [8, 10]


def test_without_patience_it_goes_on_and_without_held_out_samples_the_last_is_kept(model):
    run = scripted(model, [1, 2, 3, 4, 5], RunConfig(num_steps=4, evaluate_every=1, patience=0))
    assert len(list(run.steps())) == 4
    assert run.best.step == 0
    run, trainer = run_on(model, run=RunConfig(num_steps=3), held_out=())
    list(run.steps())
    assert (run.best.step, run.best.held_out, run.start) == (3, None, None)
    assert run.best.weights.fingerprint() == trainer.snapshot(A).fingerprint()


KINDS = {
    "dropout": (SPEC, CONFIG),
    "lora plus": (SPEC, dataclasses.replace(CONFIG, lora_plus_ratio=8, accumulation=2)),
    "muon": (SPEC, dataclasses.replace(CONFIG, optimizer="muon")),
    "sparse": (
        LoraSpec(rank=1, alpha=1, kind="sparse", sparsity=0.9, targets=TARGETS, dropout=0.1),
        dataclasses.replace(CONFIG, regrow_every=2),
    ),
    "tiny": (LoraSpec(rank=4, alpha=4, kind="tiny", targets=TARGETS), CONFIG),
    "masked": (LoraSpec(rank=4, alpha=3, sparsity=0.5, targets=TARGETS), CONFIG),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_is_the_same_bit_by_bit(model, tmp_path, kind):
    spec, config = KINDS[kind]
    length = RunConfig(num_steps=9, evaluate_every=2)
    whole, _ = run_on(model, run=length, spec=spec, config=config)
    list(whole.steps())
    first, _ = run_on(model, run=length, spec=spec, config=config)
    list(islice(first.steps(), 5))
    save_run(tmp_path, first.saved(), {"data": "x"})
    assert saved_settings(tmp_path) == {"data": "x"}
    saved = load_run(tmp_path, BaseLayers(model.weights))
    second, _ = run_on(model, run=length, spec=spec, config=config, saved=saved)
    assert second.num_steps_done == 5
    list(second.steps())
    assert second.curve == whole.curve
    assert second.start == whole.start
    assert second.best.step == whole.best.step
    ours, theirs = second.saved(), whole.saved()
    assert ours.current.fingerprint() == theirs.current.fingerprint()
    assert ours.best.weights.fingerprint() == theirs.best.weights.fingerprint()
    assert ours.training.keys() == theirs.training.keys()
    assert all(torch.equal(ours.training[name], theirs.training[name]) for name in ours.training)


def program(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.train.running", *map(str, arguments)]


def test_a_run_that_was_killed_goes_on_to_the_same_end(folder, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen(program(folder, killed, 8), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    process.kill()
    process.stdout.close()
    assert process.wait(30) == -9
    assert lines[-1] == "step 3\n"
    assert load_run(killed).curve[-1].step < 8
    for place in (killed, whole):
        subprocess.run(program(folder, place, 8), check=True, capture_output=True, timeout=120)
    ours, theirs = load_run(killed), load_run(whole)
    assert list(ours.curve) == list(theirs.curve)
    assert len(ours.curve) == 9
    assert all(torch.equal(ours.training[name], theirs.training[name]) for name in theirs.training)
    assert ours.current.fingerprint() == theirs.current.fingerprint()
    assert len(list(killed.iterdir())) == 2, "of what was saved before nothing is left"


def test_a_save_that_fails_leaves_the_earlier_one(model, tmp_path, monkeypatch):
    run, _ = run_on(model, run=RunConfig(num_steps=9))
    list(islice(run.steps(), 2))
    save_run(tmp_path, run.saved(), {})
    list(islice(run.steps(), 2))

    def fail(file: Path, content: bytes, *, scratch: Path) -> None:
        del file, content, scratch
        raise KeyboardInterrupt

    monkeypatch.setattr("hyprstream.train.resume.write_atomic", fail)
    with pytest.raises(KeyboardInterrupt):
        save_run(tmp_path, run.saved(), {})
    assert load_run(tmp_path).curve[-1].step == 2


def test_what_is_damaged_or_of_another_adapter_is_refused(model, tmp_path):
    run, _ = run_on(model, run=RunConfig(num_steps=9))
    list(islice(run.steps(), 1))
    save_run(tmp_path, run.saved(), {})
    saved = load_run(tmp_path)
    other = dataclasses.replace(SPEC, targets=("q_proj",))
    current = run_on(model, run=RunConfig(), spec=other)[0].saved().current
    with pytest.raises(InvalidAdapterError, match="another adapter"):
        run_on(
            model, run=RunConfig(), spec=other, saved=dataclasses.replace(saved, current=current)
        )
    [file] = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-9] + b"\x07" * 9)
    with pytest.raises(ChecksumMismatchError):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CorruptError, match="no saved run"):
        saved_settings(tmp_path)
    remove_run(tmp_path)
    assert saved_settings(tmp_path) is None
    with pytest.raises(CorruptError, match="missing"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"num_steps": 0}, {"evaluate_every": 0}, {"patience": -1}, {"save_every": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidSettingsError):
        RunConfig(**wrong)


GOLDEN = Path(__file__).parent.parent / "golden" / "losses" / "overfit_20_steps.txt"


def test_the_curve_of_losses_is_the_recorded_one(model):
    """What changes it changes training: it is recorded anew only where that is the point."""
    spec = LoraSpec(rank=4, alpha=6, targets=TARGETS)
    config = TrainConfig(
        learning_rate=2e-2, schedule="linear", total_steps=20, batch_tokens=200, max_grad_norm=1.0
    )
    run, _ = run_on(model, run=RunConfig(num_steps=20, evaluate_every=5), spec=spec, config=config)
    list(run.steps())
    lines = [f"{point.step} {point.loss} {point.held_out_loss}" for point in run.curve]
    if not GOLDEN.exists():
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text("".join(f"{line}\n" for line in lines))
    recorded = GOLDEN.read_text().splitlines()
    assert len(recorded) == len(lines)
    for ours, theirs in zip(lines, recorded, strict=True):
        for value, expected in zip(ours.split(), theirs.split(), strict=True):
            if expected == "None":
                assert value == "None"
            else:
                assert float(value) == pytest.approx(float(expected), rel=1e-4)
    losses = [float(line.split()[1]) for line in recorded[1:]]
    assert losses[-1] < losses[0] - 0.5
