import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import yaml

from hyprstream.catalog.offer import Offer, RegistryStatus
from hyprstream.errors import RegistryUnreachableError
from hyprstream.refs import ModelRef
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
    assert heading.split() == ["REF", "SIZE", "FETCHED", "STATE"]
    assert row.split()[:3] == ["pypi://llm-fake@1.0", "98.0", "MB"]


def test_list_as_json_holds_bytes_and_times(command_line):
    assert json.loads(command_line("ls", "--format", "json").out) == [
        {
            "ref": "pypi://llm-fake@1.0",
            "size_bytes": 98_000_000,
            "fetched_at": "2026-01-02T03:04:00+00:00",
            "state": "complete",
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


def test_remove_can_keep_what_describes_the_model(command_line, runtime):
    result = command_line("model", "remove", "pypi://llm-fake", "--keep-metadata", "--yes")
    assert result.code == 0
    assert result.err == "removed the weights of pypi://llm-fake, 97.0 MB freed\n"
    assert len(runtime.catalog.models) == 1
    shown = command_line("model", "info", "pypi://llm-fake", "--format", "json").out
    assert json.loads(shown)["name"] == "Kept"


@pytest.mark.parametrize(
    ("arguments", "num_rows"),
    [
        (("--search", "FAKE"), 1),
        (("--search", "other"), 0),
        (("--registry", "pypi"), 1),
        (("--registry", "hf"), 0),
    ],
)
def test_the_list_is_narrowed_by_registry_and_text(command_line, arguments, num_rows):
    result = command_line("ls", "--quiet", *arguments)
    assert (result.code, len(result.out.splitlines())) == (0, num_rows)


def test_a_registry_that_is_none_is_named_with_those_that_are(command_line):
    result = command_line("model", "list", "--registry", "huggingface")
    assert result.code == 2
    assert "'huggingface' is not a registry\nhint: There are: hf, pypi." in result.err
    assert "is not a registry" not in command_line("model", "list", "--registry", "hf").err


OFFER = Offer(
    ref=ModelRef.parse("hf://org/model"),
    description="text\x1b[2J",
    size_bytes=98_000_000,
    downloads=1_234_567,
    updated_at=datetime(2026, 1, 2, tzinfo=UTC),
)
FAILURE = SimpleNamespace(
    scheme="ollama", error=RegistryUnreachableError("it is away", hint="Wait.")
)


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (("search", "tiny"), {"text": "tiny", "registry": None, "limit": 20}),
        (
            ("search", "tiny", "--registry", "hf", "--limit", "3"),
            {"text": "tiny", "registry": "hf", "limit": 3},
        ),
        (("list", "--remote"), {"text": "", "registry": None, "limit": 20}),
        (
            ("list", "--remote", "--search", "tiny", "--registry", "hf"),
            {"text": "tiny", "registry": "hf", "limit": 20},
        ),
    ],
)
def test_what_registries_offer_is_searched_and_listed(command_line, runtime, arguments, asked):
    runtime.offers, runtime.failures = [OFFER, Offer(ref=ModelRef.parse("pypi://x"))], [FAILURE]
    result = command_line("model", *arguments)
    assert runtime.searched == [asked]
    heading, first, second = result.out.splitlines()
    assert heading.split() == ["REF", "SIZE", "DOWNLOADS", "UPDATED", "DESCRIPTION"]
    assert first.split() == [
        *("hf://org/model", "98.0", "MB", "1.2", "M", "2026-01-02", "text\\x1b[2J")
    ]
    assert second.split() == ["pypi://x"]
    assert result.err == "warning: ollama gave no answer: it is away\nhint: Wait.\n"


def test_found_models_as_data(command_line, runtime):
    runtime.offers = [OFFER]
    assert json.loads(command_line("model", "search", "x", "--format", "json").out) == [
        {
            "ref": "hf://org/model",
            "description": "text\x1b[2J",
            "size_bytes": 98_000_000,
            "downloads": 1_234_567,
            "updated_at": "2026-01-02T00:00:00+00:00",
        }
    ]
    assert command_line("model", "search", "x", "-q").out == "hf://org/model\n"


def test_a_search_that_only_failed_is_an_error(command_line, runtime):
    runtime.failures = [FAILURE]
    result = command_line("model", "search", "x")
    assert (result.code, result.out) == (6, "")
    assert result.err == "error: it is away\nhint: Wait.\n"


def test_a_search_without_an_answer_says_where_to_look(command_line):
    result = command_line("model", "search", "x", "--format", "json")
    assert (result.code, json.loads(result.out)) == (0, [])
    assert "hyprstream model registries" in result.err


def test_registries_are_listed_with_what_is_wrong_with_them(command_line, runtime):
    runtime.statuses = [
        RegistryStatus(scheme="acme", address="https://a", state="unreachable", problem="away"),
        RegistryStatus(scheme="hf", address="https://b", state="ready", authenticated=True),
    ]
    lines = command_line("model", "registries").out.splitlines()
    assert [line.split() for line in lines] == [
        ["NAME", "ADDRESS", "STATE", "TOKEN", "PROBLEM"],
        ["acme", "https://a", "unreachable", "no", "away"],
        ["hf", "https://b", "ready", "yes"],
    ]
    data = json.loads(command_line("model", "registries", "--format", "json").out)
    assert [(row["name"], row["custom"]) for row in data] == [("acme", True), ("hf", False)]
    assert command_line("model", "registries", "-q").out == "acme\nhf\n"
