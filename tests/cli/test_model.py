import json

import pytest
import yaml

from tests.cli.fakes import TEMPLATE


def test_info_shows_what_a_person_wants_to_know(command_line, golden):
    golden("model-info", command_line("model", "info", "some/model.gguf").out)


@pytest.mark.parametrize(("format_", "parse"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_info_as_data_holds_everything(command_line, format_, parse):
    data = parse(command_line("model", "info", "some/model.gguf", "--format", format_).out)
    assert data["path"] == "/models/some/model.gguf"
    assert data["num_parameters"] == 134_515_008
    assert data["tensor_types"] == {"Q4_1": 210, "F32": 61}
    assert data["chat_template"] == TEMPLATE


def test_info_of_a_model_that_is_not_here_says_what_to_do(command_line):
    result = command_line("model", "info", "pypi://missing")
    assert (result.code, result.out) == (3, "")
    assert result.err == "error: pypi://missing is not on this machine\nhint: Fetch it.\n"


@pytest.mark.parametrize("command", [("model", "pull"), ("pull",)])
def test_pull_prints_the_path_and_reports_on_stderr(command_line, command):
    result = command_line(*command, "pypi://llm-new")
    assert result.out == "/models/llm-new\n"
    assert result.err == "fetching pypi://llm-new (1.0 kB)\n"


def test_pull_hands_over_which_files_are_wanted(command_line, runtime):
    command_line("pull", "hf://org/x", "--files", "*.json,a", "--files", "b", "--force")
    command_line("pull", "hf://org/x")
    assert runtime.catalog.pulled == [(True, ["*.json", "a", "b"]), (False, [])]


@pytest.mark.parametrize(
    "arguments",
    [
        ("model", "pull", "pypi://llm-new", "--quiet"),
        ("--quiet", "model", "pull", "pypi://llm-new"),
    ],
)
def test_quiet_pull_prints_the_path_alone(command_line, arguments):
    result = command_line(*arguments)
    assert (result.out, result.err) == ("/models/llm-new\n", "")


@pytest.mark.parametrize("command", [("model", "list"), ("ls",)])
def test_list_shows_the_cache(command_line, command, monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    heading, row = command_line(*command).out.splitlines()
    assert heading.split() == ["REF", "SIZE", "FETCHED"]
    assert row.split()[:3] == ["pypi://llm-fake@1.0", "98.0", "MB"]


def test_list_as_json_holds_bytes_and_times(command_line):
    assert json.loads(command_line("ls", "--format", "json").out) == [
        {
            "ref": "pypi://llm-fake@1.0",
            "size_bytes": 98_000_000,
            "fetched_at": "2026-01-02T03:04:00+00:00",
            "path": "/models/fake",
            "source": "a wheel",
        }
    ]


def test_quiet_list_prints_references(command_line):
    assert command_line("model", "list", "-q").out == "pypi://llm-fake@1.0\n"


def test_an_empty_list_is_valid_json_and_gives_a_hint(command_line, runtime):
    runtime.catalog.models.clear()
    result = command_line("model", "list", "--format", "json")
    assert json.loads(result.out) == []
    assert "hyprstream pull" in result.err


@pytest.mark.parametrize("command", [("model", "remove"), ("rm",)])
def test_remove_with_yes_removes(command_line, runtime, command):
    result = command_line(*command, "pypi://llm-fake", "--yes")
    assert (result.code, result.err) == (0, "removed pypi://llm-fake, 98.0 MB freed\n")
    assert runtime.catalog.models == []


def test_remove_without_anybody_to_ask_refuses(command_line, runtime):
    result = command_line("model", "remove", "pypi://llm-fake", stdin="y\n")
    assert result.code == 2
    assert "--yes" in result.err
    assert len(runtime.catalog.models) == 1


def test_a_reference_that_is_none_is_refused(command_line):
    result = command_line("model", "pull", "PyPI://x")
    assert result.code == 2
    assert "PyPI" in result.err
