"""`hyprstream quickstart` on a tiny model that can learn a little, and keeps no secrets."""

import json
import re

import pytest

QUICK = ("--facts", "3", "--seed", "1", "--steps", "30")


@pytest.fixture
def quickstart(hyprstream, tiny, monkeypatch):
    monkeypatch.setenv("HYPRSTREAM_MODEL__REF", tiny.ref)
    return lambda *options: hyprstream("quickstart", *QUICK, *options)


def history(hyprstream) -> list[dict]:
    return json.loads(hyprstream("lora", "history", "quickstart", "--format", "json").out)


@pytest.mark.slow
def test_the_story_is_told_to_its_end_and_begins_anew(quickstart, hyprstream):
    result = quickstart()
    assert result.code == 0, result.err
    lines = result.err.splitlines()
    assert [line[:2] for line in lines if re.match(r"\d\. ", line)] == [
        "1.",
        "2.",
        "3.",
        "4.",
        "5.",
    ]
    assert result.err.count("of 3 right)") == 3
    assert "The gate: held-out loss changed by -" in result.err
    assert "4 of 4 answers are the first ones again, bit by bit" in result.err
    assert "times smaller" in result.err
    assert len(result.out.splitlines()) >= 3 + 1 + 3 + 1 + 3
    first, learnt, back, again = (move["version"] for move in history(hyprstream))
    assert learnt == again
    assert first == back != learnt

    result = quickstart("--seed", "2", "--steps", "10")
    assert result.code == 0, result.err
    moves = history(hyprstream)
    assert len(moves) == 8
    assert [move["why"] for move in moves].count("a fresh start") == 2
    assert moves[4]["why"] == "a fresh start"
    assert moves[5]["version"] != moves[1]["version"]


def test_what_the_gate_refuses_does_not_serve(quickstart, hyprstream, monkeypatch):
    monkeypatch.setattr("hyprstream.cli.quickstart._LEARNING_RATE", 1e-12)
    result = quickstart("--steps", "1")
    assert result.code == 0, result.err
    assert "quickstart stays as it was" in result.err
    assert "rolled back" not in result.err.lower()
    assert len(history(hyprstream)) == 1
