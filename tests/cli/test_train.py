"""`hyprstream lora train` on the real runtime: a tiny model, and a store of the test's own."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest

from hyprstream.cli.train_options import DataOptions, RunOptions, TrainOptions, plan_of
from hyprstream.errors import InvalidSettingsError
from hyprstream.train.config import TrainConfig
from tests.train.makers import write

ROWS = [{"prompt": f"say {n}", "completion": " aaaa"} for n in range(40)]
QUICK = (
    *("--steps", "6", "--batch-tokens", "200", "--learning-rate", "0.02"),
    *("--evaluate-every", "3", "--held-out-share", "0.3"),
)


def test_training_tells_how_it_goes_and_prints_the_version(hyprstream, poet, tmp_path):
    data, picture = write(tmp_path, *ROWS), tmp_path / "losses.svg"
    result = hyprstream(
        "lora", "train", "start", "poet", "--data", str(data), *QUICK, "--plot", str(picture)
    )
    assert result.code == 0, result.err
    assert result.out.startswith("poet@")
    assert result.out.strip() != poet
    assert "6 steps" in result.err
    assert "writing down what the model says itself (48)" in result.err
    assert "step 1 of 6: loss " in result.err
    assert "step 6 of 6: loss " in result.err
    assert "tokens/s" in result.err
    assert "held-out loss changed by -" in result.err
    assert "poet is this version now" in result.err
    assert picture.read_text().startswith("<svg")
    info = json.loads(hyprstream("lora", "info", "poet", "--format", "json").out)
    assert info["version"].startswith(result.out.strip().partition("@")[2])
    assert info["metrics"]["held_out_loss"] < info["metrics"]["parent_held_out_loss"]
    moves = json.loads(hyprstream("lora", "history", "poet", "--format", "json").out)
    assert moves[-1]["by"] == "hyprstream lora train"

    measured = hyprstream("lora", "train", "eval", "poet", "--data", str(data), "--format", "json")
    adapter, base = json.loads(measured.out)
    assert (adapter["model"], base["model"]) == ("adapter", "base model")
    assert adapter["loss"] < base["loss"]
    assert adapter["num_samples"] == 40
    shown = hyprstream("lora", "train", "eval", "poet", "--data", str(data))
    assert "EXACT ANSWERS" in shown.out


@pytest.mark.slow
def test_a_version_that_may_not_move_the_name_is_a_candidate(hyprstream, poet, tmp_path):
    data = write(tmp_path, *ROWS)
    result = hyprstream(
        "lora", "train", "start", "poet", "--data", str(data), *QUICK, "--no-promote"
    )
    assert result.code == 0, result.err
    assert "lora promote poet:candidate" in result.err
    info = json.loads(hyprstream("lora", "info", "poet", "--format", "json").out)
    assert info["version"].startswith(poet.partition("@")[2])


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_resume_does(hyprstream, poet, tmp_path):  # noqa: ARG001
    data = write(tmp_path, *ROWS)
    # Not held by text: of how much follows from the number of steps, which is changed below.
    held = ("--base-pull", "0")
    long = ("--data", str(data), *QUICK[2:], *held, "--steps", "4000", "--patience", "0")
    command = [sys.executable, "-m", "hyprstream", "lora", "train", "start", "poet", *long]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 6 "):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (130, "")
    assert "lora train start poet --resume" in err
    refused = hyprstream("lora", "train", "start", "poet", "--data", str(data))
    assert refused.code == 4
    assert "can go on" in refused.err
    refused = hyprstream("lora", "train", "start", "poet", "--resume", "--steps", "9")
    assert refused.code == 2
    assert "--steps says something else" in refused.err
    run = json.loads((tmp_path / "training" / "poet" / "run.json").read_text())
    done = run["curve"][-1][0]
    assert done >= 6
    # The rest of 4,000 steps would take minutes: a plan that ends soon stands for it.
    run["settings"]["plan"]["run"]["num_steps"] = done + 2
    run["settings"]["plan"]["train"]["schedule"] = "constant"
    (tmp_path / "training" / "poet" / "run.json").write_text(json.dumps(run))
    result = hyprstream("lora", "train", "start", "poet", "--resume")
    assert result.code == 0, result.err
    assert result.out.startswith("poet@")
    assert f"step {done + 2} of {done + 2}" in result.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "0 samples wait"),
        (("--data", "missing.jsonl"), 2, "cannot be read"),
        (("--data", "x", "--learning-rate", "9"), 2, "learning_rate is 9"),
        (("--data", "x", "--plot", "a.gif"), 2, "neither in .svg"),
        (("--resume",), 3, "no training of poet was interrupted"),
        (("--resume", "--discard"), 2, "--discard says something else"),
    ],
)
@pytest.mark.usefixtures("poet")
def test_what_cannot_be_is_refused(hyprstream, options, code, message):
    result = hyprstream("lora", "train", "start", "poet", *options)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "\nhint: " in result.err


def test_every_option_reaches_the_plan(tmp_path):
    file = tmp_path / "a.jsonl"
    data = DataOptions(
        data=[file], data_format="text", method="answers", held_out_share=0.2, too_long="cut",
        max_tokens=99, replay=[file], replay_share=0.5, augment=2, rephrase=0.1, casing=0.2,
        shuffling=0.3, mix_context=0.4, token_dropout=0.6, curriculum="length", pacing="sorted",
        start_share=0.7, curriculum_passes=3.0,
    )  # fmt: skip
    run = RunOptions(epochs=2.0, steps=7, evaluate_every=3, patience=4, save_every=5)
    plan = plan_of(data, TrainOptions(seed=5, recompute=True), run)
    assert (plan.data, plan.replay, plan.method, plan.max_tokens, plan.epochs) == (
        (file,), (file,), "answers", 99, 2.0)  # fmt: skip
    assert dataclasses.astuple(plan.augment) == (2, 0.1, 0.2, 0.3, 0.4, 0.6)
    assert dataclasses.astuple(plan.curriculum) == ("length", "sorted", 0.7, 3.0, 0.5)
    found = (plan.data_config.form, plan.data_config.held_out_share, plan.data_config.too_long)
    assert found == ("text", 0.2, "cut")
    train, length = plan.completed(7)
    assert dataclasses.astuple(length) == (7, 3, 4, 5)
    assert (train.seed, train.recompute, train.schedule) == (5, True, "cosine")
    with pytest.raises(InvalidSettingsError, match="no data"):
        plan_of(DataOptions(), TrainOptions(), RunOptions())


def test_there_is_an_option_for_every_setting_that_a_person_sets():
    settings = {field.name for field in dataclasses.fields(TrainConfig)}
    options = {field.name for field in dataclasses.fields(TrainOptions)}
    assert options <= settings
    assert settings - options == {"total_steps", "betas"}
