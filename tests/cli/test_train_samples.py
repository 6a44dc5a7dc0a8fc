"""Samples that people send: kept, learnt from, judged, published or not, and told of."""

import json
import os
import subprocess
import sys

import pytest

from tests.train.makers import write

TRAIN = ("lora", "train")


@pytest.fixture(scope="module")
def anchors(tmp_path_factory):
    """Text of the base model, which takes seconds to write: once for all tests."""
    return tmp_path_factory.mktemp("anchors")


@pytest.fixture
def teller(hyprstream, test_data, tmp_path, anchors, monkeypatch):
    """An adapter of a small trained model, and records of a task for it."""
    (tmp_path / "anchors").symlink_to(anchors)
    monkeypatch.setenv("HYPRSTREAM_TRAIN__LEARNER__EVAL_TOKENS", "2048")
    base = test_data / "stories260K" / "hf"
    made = hyprstream(
        *("lora", "create", "--name", "teller", "--base-model", str(base)),
        *("--target-modules", "all", "--alpha", "16", "--learning-rate", "0.001"),
    )
    assert made.code == 0, made.err
    text = (test_data / "corpora" / "tinyshakespeare.txt").read_text()
    windows = [text[begin : begin + 160] for begin in range(0, 90 * 160, 160)]
    return write(tmp_path, *({"prompt": w[:60], "completion": w[60:]} for w in windows))


def sent(hyprstream, *arguments, **options):
    result = hyprstream(*TRAIN, "sample", *arguments, "--format", "json", **options)
    assert result.code == 0, result.err
    return json.loads(result.out)


def status_of(hyprstream, name):
    result = hyprstream(*TRAIN, "status", name, "--format", "json")
    assert result.code == 0, result.err
    return json.loads(result.out)


@pytest.mark.usefixtures("poet")
def test_a_sample_is_kept_once_and_for_the_next_process(hyprstream):
    one = ("poet", "--input", "what is blue?", "--output", "the sky")
    first = sent(hyprstream, *one)
    assert first["waiting"] + first["held_out"] == 1
    again = sent(hyprstream, *one)
    assert (again["duplicate"], again["waiting"], again["held_out"]) == (1, 0, 0)
    other = sent(hyprstream, *one, "--system", "be brief")  # another chat
    assert other["duplicate"] == 0
    assert other["num_waiting"] + other["num_held_out"] == 2
    samples = status_of(hyprstream, "poet")["samples"]
    assert samples["waiting"] + samples["held_out"] == 2


@pytest.mark.usefixtures("poet")
def test_a_sample_reads_as_the_chat_that_is_served(hyprstream, tiny, tmp_path):
    sent(hyprstream, "poet", "--input", "a", "--output", "b", "--system", "s")
    from hyprstream.runtime.journal import Journal

    journal = Journal(tmp_path / "learning" / "journal.db")
    (kept,) = journal.waiting()
    journal.close()
    asked = [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}]
    prompt = tiny.chat_tokens(asked)
    assert kept.sample.token_ids[: len(prompt)] == tuple(prompt)
    assert kept.sample.counts.index(True) == len(prompt)
    assert "b" in tiny.tokenizer.decode(kept.sample.token_ids[len(prompt) :])


@pytest.mark.usefixtures("poet")
def test_files_of_any_form_and_what_is_piped_in_are_samples(hyprstream, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"instruction": "c", "output": "d"},
        {"prompt": "e", "completion": "f"},
        {"text": "some words"},
    ]
    found = sent(hyprstream, "poet", "--input-file", str(write(tmp_path, *rows)))
    assert found["waiting"] + found["held_out"] == 4
    piped = "\n".join(json.dumps(row) for row in [*rows, {"text": "some other words"}])
    found = sent(hyprstream, "poet", "--input-file", "-", stdin=piped)
    assert (found["waiting"] + found["held_out"], found["duplicate"]) == (1, 4)


@pytest.mark.usefixtures("poet")
def test_where_there_is_no_room_it_says_how_many_were_left(hyprstream, tmp_path, monkeypatch):
    monkeypatch.setenv("HYPRSTREAM_TRAIN__BUFFER__MAX_WAITING", "3")
    file = write(tmp_path, *({"text": f"number {n}"} for n in range(12)))
    result = hyprstream(*TRAIN, "sample", "poet", "--input-file", str(file), "--format", "json")
    found = json.loads(result.out)
    assert (result.code, found["num_waiting"]) == (6, 3)
    left = 12 - found["waiting"] - found["held_out"]
    assert f"no room for {left} of 12 samples" in result.err
    assert "train start poet" in result.err


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), 2, "what is asked"),
        (("--input", "a"), 2, "what is asked"),
        (("--input", "a", "--output", " "), 2, "the answer is empty"),
        (("--input", "a", "--input-file", "x"), 2, "whole samples"),
        (("--input-file", "missing.jsonl"), 2, "cannot be read"),
        (("--input-file", "-"), 2, "stdin.jsonl, line 1"),
    ],
)
@pytest.mark.usefixtures("poet")
def test_what_is_no_sample_is_refused_and_nothing_is_kept(hyprstream, options, code, message):
    result = hyprstream(*TRAIN, "sample", "poet", *options, stdin="{\n")
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert status_of(hyprstream, "poet")["samples"]["waiting"] == 0


@pytest.mark.usefixtures("poet")
def test_too_few_samples_are_counted(hyprstream):
    sent(hyprstream, "poet", "--input", "what is blue?", "--output", "the sky")
    result = hyprstream(*TRAIN, "start", "poet")
    assert result.code == 2
    assert "32 and 12 are needed" in result.err
    assert "train sample poet" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--steps", "9"), "--steps is about learning from files"),
        (("--promote",), "--promote is about"),
        (("--plot", "a.svg"), "--plot is about"),
        (("--data", "x", "--retry"), "--retry is about samples"),
        (("--retry",), "no version of poet was rejected"),
    ],
)
@pytest.mark.usefixtures("poet")
def test_options_of_files_and_of_samples_are_told_apart(hyprstream, options, message):
    result = hyprstream(*TRAIN, "start", "poet", *options)
    assert (result.code in {2, 3}, result.out) == (True, "")
    assert message in result.err


@pytest.mark.timeout(400)
def test_samples_become_a_version_that_can_be_taken_back(hyprstream, teller, tmp_path):
    before = hyprstream("lora", "history", "teller", "--quiet").out.split()
    sent(hyprstream, "teller", "--input-file", str(teller))
    result = hyprstream(*TRAIN, "start", "teller", "--epochs", "1.5")
    assert result.code == 0, result.err
    assert "learning: step 1 of " in result.err
    assert "tokens/s" in result.err
    assert "published: " in result.err
    assert "unrelated text +0.0" in result.err
    assert result.out.startswith("teller@")
    status = status_of(hyprstream, "teller")
    (decision,) = status["decisions"]
    assert decision["action"] == "published"
    assert decision["numbers"]["held_out_loss"] < decision["numbers"]["parent_held_out_loss"]
    assert status["samples"]["used"] == decision["samples"] > 40
    assert status["samples"]["waiting"] == 0
    assert status["spent"]["steps"] == decision["numbers"]["steps"] > 5
    picture = tmp_path / "versions.svg"
    shown = hyprstream(*TRAIN, "status", "teller", "--plot", str(picture))
    assert "published: " in shown.out
    assert ">version</text>" in picture.read_text()
    back = hyprstream("lora", "rollback", "teller")
    assert back.out.strip() == f"teller@{before[0][:12]}"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_version_begins_as_a_canary_where_the_policy_says_so(hyprstream, teller):
    before = hyprstream("lora", "history", "teller", "--quiet").out
    assert hyprstream(*TRAIN, "policy", "teller", "--canary", "0.25").code == 0
    sent(hyprstream, "teller", "--input-file", str(teller))
    result = hyprstream(*TRAIN, "start", "teller", "--epochs", "1.5")
    assert result.code == 0, result.err
    assert "canary: " in result.err
    assert "lora promote teller:canary" in result.err
    assert hyprstream("lora", "history", "teller", "--quiet").out == before
    status = status_of(hyprstream, "teller")
    assert result.out.strip() == f"teller@{status['canary_out']['version'][:12]}"
    assert [decision["action"] for decision in status["decisions"]] == ["canary"]
    assert hyprstream("lora", "promote", "teller:canary").out == result.out


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_rejected_version_is_explained_and_its_samples_can_wait_again(
    hyprstream, teller, monkeypatch
):
    before = hyprstream("lora", "history", "teller", "--quiet").out
    sent(hyprstream, "teller", "--input-file", str(teller))
    monkeypatch.setenv("HYPRSTREAM_TRAIN__GATE__MIN_GAIN", "5")
    result = hyprstream(*TRAIN, "start", "teller", "--epochs", "0.5")
    assert (result.code, result.out) == (0, "")
    assert "warning: it is not better on its own samples" in result.err
    assert hyprstream("lora", "history", "teller", "--quiet").out == before
    assert status_of(hyprstream, "teller")["samples"]["dropped"] > 40
    monkeypatch.delenv("HYPRSTREAM_TRAIN__GATE__MIN_GAIN")
    monkeypatch.setenv("HYPRSTREAM_TRAIN__LEARNER__BUDGET__STEPS", "3")
    spent = hyprstream(*TRAIN, "start", "teller", "--retry")
    assert spent.code == 2
    assert "samples wait again" in spent.err
    assert "3 steps" in spent.err
    assert status_of(hyprstream, "teller")["samples"]["waiting"] > 40


@pytest.mark.timeout(400)
def test_another_process_can_look_and_stop_it_and_no_sample_is_lost(hyprstream, teller, tmp_path):
    kept = sent(hyprstream, "teller", "--input-file", str(teller))
    command = [sys.executable, "-m", "hyprstream", *TRAIN, "start", "teller", "--epochs", "900"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("learning: step 5 "):
            break
    status = status_of(hyprstream, "teller")
    assert (status["is_training"], status["is_journal_held"]) == (True, True)
    training = status["training"]
    assert (training["pid"], training["source"]) == (process.pid, "samples")
    assert training["num_steps"] > 1000
    assert f"process {process.pid}" in hyprstream(*TRAIN, "status", "teller").out
    picture = tmp_path / "now.svg"
    assert hyprstream(*TRAIN, "status", "teller", "--plot", str(picture)).code == 0
    assert ">step</text>" in picture.read_text()
    refused = hyprstream(*TRAIN, "sample", "teller", "--input", "a", "--output", "b")
    assert refused.code == 4
    assert "another process" in refused.err
    stopped = hyprstream(*TRAIN, "stop", "teller")
    assert stopped.code == 0, stopped.err
    assert "has stopped" in stopped.err
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert "The samples wait" in err
    status = status_of(hyprstream, "teller")
    assert (status["is_training"], status["training"]) == (False, None)
    assert status["samples"]["waiting"] == kept["num_waiting"]
    assert "no training of teller" in hyprstream(*TRAIN, "stop", "teller").err
