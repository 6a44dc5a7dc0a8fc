"""How learning stands, what it may do, and its end: `lora train status|policy|stop`."""

import json
import os
import subprocess
import sys

import pytest

from tests.train.makers import write

TRAIN = ("lora", "train")


@pytest.mark.usefixtures("poet")
def test_a_policy_is_set_bit_by_bit_and_shown(hyprstream, tmp_path):
    shown = hyprstream(*TRAIN, "policy", "poet")
    assert "learns from traffic  off" in shown.out
    assert "unrelated text" in shown.out
    file = write(tmp_path, *({"text": f"number {n}"} for n in range(20)))
    done = hyprstream(
        *(*TRAIN, "policy", "poet", "--learn", "feedback", "--trusted", str(file)),
        *("--steps-per-day", "7", "--format", "json"),
    )
    record = json.loads(done.out)
    assert record["learn"] == "feedback"
    assert record["trusted"] == [file.name]
    assert (record["budget"]["steps"], record["budget"]["tokens"]) == (7, 4_000_000)
    file.unlink()
    again = hyprstream(*TRAIN, "policy", "poet", "--forget-trusted", file.name, "--usual-budget")
    assert "feedback" in again.out
    assert "2000 steps" in again.out
    assert file.name not in again.out
    info = json.loads(hyprstream("lora", "info", "poet", "--format", "json").out)
    assert info["learning"]["learn"] == "feedback"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("nobody",), 3, "no adapter 'nobody'"),
        (("poet", "--steps-per-day", "-1"), 2, "steps_per_day is -1"),
        (("poet", "--trusted", "missing.jsonl"), 2, "cannot be read"),
        (("poet", "--forget-trusted", "x"), 3, "no trusted set"),
    ],
)
@pytest.mark.usefixtures("poet")
def test_a_policy_that_cannot_be_is_refused(hyprstream, options, code, message):
    result = hyprstream(*TRAIN, "policy", *options)
    assert (result.code, result.out) == (code, "")
    assert message in result.err


@pytest.mark.usefixtures("poet")
def test_a_trusted_set_that_is_too_small_is_told_of(hyprstream, tmp_path):
    file = write(tmp_path, {"text": "one"})
    assert "needs 16 samples" in hyprstream(*TRAIN, "policy", "poet", "--trusted", str(file)).err


@pytest.mark.usefixtures("poet")
def test_the_status_of_all_adapters_is_a_table(hyprstream):
    shown = hyprstream(*TRAIN, "status")
    assert shown.code == 0
    assert "LEARNS FROM" in shown.out
    assert "0 of 32" in shown.out
    (record,) = json.loads(hyprstream(*TRAIN, "status", "--format", "json").out)
    assert record["adapter"] == "poet"
    assert record["decisions"] == []


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("nobody",), 3, "no adapter 'nobody'"),
        (("--plot", "a.svg"), 2, "draws one adapter"),
        (("poet", "--watch", "--format", "json"), 2, "--watch"),
        (("poet", "--plot", "a.gif"), 2, "neither in .svg"),
    ],
)
@pytest.mark.usefixtures("poet")
def test_a_status_that_cannot_be_shown_is_refused(hyprstream, options, code, message):
    result = hyprstream(*TRAIN, "status", *options)
    assert result.code == code
    assert message in result.err


def test_nothing_to_stop_is_said(hyprstream, poet):  # noqa: ARG001
    result = hyprstream(*TRAIN, "stop", "poet")
    assert (result.code, result.out) == (0, "")
    assert "no training of poet is going on" in result.err
    assert hyprstream(*TRAIN, "stop", "nobody").code == 3


@pytest.mark.slow
def test_a_training_on_files_is_stopped_and_can_go_on(hyprstream, poet, tmp_path):  # noqa: ARG001
    rows = ({"prompt": f"say {n}", "completion": " aaaa"} for n in range(40))
    options = ("--batch-tokens", "200", "--steps", "9000", "--patience", "0", "--base-pull", "0")
    command = [sys.executable, "-m", "hyprstream", *TRAIN, "start", "poet"]
    process = subprocess.Popen(
        [*command, "--data", str(write(tmp_path, *rows)), *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ},
    )  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 10 "):
            break
    (status,) = json.loads(hyprstream(*TRAIN, "status", "--format", "json").out)
    assert status["training"]["pid"] == process.pid
    assert status["training"]["source"] == "data"
    assert len(status["training"]["curve"]) > 1
    watched = subprocess.Popen(
        [sys.executable, "-m", "hyprstream", *TRAIN, "status", "poet", "--watch"],
        stdout=subprocess.PIPE, text=True, env={**os.environ},
    )  # fmt: skip
    assert watched.stdout is not None
    seen = 0
    for line in watched.stdout:
        seen += f"process {process.pid}" in line
        if seen == 2:
            break
    watched.terminate()
    watched.communicate(timeout=20)
    assert "has stopped" in hyprstream(*TRAIN, "stop", "poet").err
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "--resume" in err
    status = hyprstream(*TRAIN, "status", "poet")
    assert "interrupted; --resume goes on" in status.out
    place = tmp_path / "training" / "poet"
    assert {file.name for file in place.iterdir()} >= {"run.json", "lock"}
    assert not (place / "stop").exists()


def test_a_canary_is_shown_wherever_its_adapter_is(hyprstream, poet, tmp_path):  # noqa: ARG001
    from hyprstream.runtime import Settings, open_adapters

    done = hyprstream(*TRAIN, "policy", "poet", "--canary", "0.1", "--format", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["canary"] == 0.1
    assert "answer 0.1 of the requests first" in hyprstream(*TRAIN, "policy", "poet").out
    assert hyprstream(*TRAIN, "policy", "poet", "--canary", "1").code == 2
    status = json.loads(hyprstream(*TRAIN, "status", "poet", "--format", "json").out)
    assert status["canary_out"] is None
    with open_adapters(Settings(home=tmp_path)) as adapters:
        first = adapters.resolve("poet")
        adapters.compress("poet", "raw", tag="again")
        second = adapters.resolve("poet:again")
        adapters.canaries.begin(adapters.list()[0].name, second, parent=first, share=0.1)
    shown = hyprstream(*TRAIN, "status", "poet").out
    assert f"{second[:12]} answers 0.1 of the requests" in shown
    assert "0 of 200 answers" in shown
    assert "waits for the canary" in shown
    status = json.loads(hyprstream(*TRAIN, "status", "poet", "--format", "json").out)
    assert (status["canary_out"]["version"], status["canary_out"]["answers"]) == (second, 0)
    info = json.loads(hyprstream("lora", "info", "poet", "--format", "json").out)
    assert (info["version"], info["canary"]["version"]) == (first, second)
    assert f"{second[:12]} answers 0.1" in hyprstream("lora", "info", "poet").out
    tags = json.loads(hyprstream("lora", "tag", "poet", "--format", "json").out)
    assert {"tag": "canary", "version": second} in tags
    refused = hyprstream(*TRAIN, "start", "poet")
    assert refused.code == 4
    assert "a canary is out" in refused.err
    assert hyprstream("lora", "promote", "poet:canary").out.strip() == f"poet@{second[:12]}"
    status = json.loads(hyprstream(*TRAIN, "status", "poet", "--format", "json").out)
    assert status["canary_out"] is None
