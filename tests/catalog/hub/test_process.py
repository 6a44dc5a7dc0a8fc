"""The process in which the Hub's library runs, seen from our end."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyprstream.catalog.hub.process import HubFailureError, HubProcess
from hyprstream.errors import UnavailableError
from tests.catalog.hub_server import COMMIT, Fault, Hub, hub_serving


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_serving() as hub:
        hub.tokens = {"hf_secret": "alice"}
        hub.add("org/tiny", {"model.safetensors": bytes(100)})
        yield hub


class Sink:
    def __init__(self) -> None:
        self.content = b""
        self.num_restarts = 0

    def write(self, content: bytes) -> None:
        self.content += content

    def restart(self) -> None:
        self.content = b""
        self.num_restarts += 1


def ask(process: HubProcess, do: str, **arguments: Any) -> HubFailureError:
    with pytest.raises(HubFailureError) as caught:
        process.ask(do, **arguments)
    return caught.value


def test_one_process_answers_many_times_and_survives_failures(hub: Hub):
    with HubProcess(os.environ, hub.url, "hf_secret", idle_s=60) as process:
        assert process.ask("whoami") == "alice"
        assert ask(process, "model", name="org/none", revision=None).kind == "no model"
        assert ask(process, "model", name="org/tiny", revision="v1").kind == "no revision"
        assert process.ask("model", name="org/tiny", revision=None)["commit"] == COMMIT
        sink = Sink()
        file: dict[str, Any] = {"name": "org/tiny", "commit": COMMIT, "file": "model.safetensors"}
        process.ask("download", sink=sink, **file, offset=0, size_bytes=100)
        assert sink.content == bytes(100)
        process.ask("download", sink=sink, **file, offset=60, size_bytes=100)
        assert len(sink.content) == 140
        for size_bytes, kind in ((99, "too long"), (101, "too short")):
            failure = ask(process, "download", sink=Sink(), **file, offset=0, size_bytes=size_bytes)
            assert failure.kind == kind
        missing = {**file, "file": "none.safetensors"}
        failure = ask(process, "download", sink=Sink(), **missing, offset=0, size_bytes=1)
        assert failure.kind == "no file"
        assert ask(process, "model", name="no--name", revision=None).kind == "strange"
        assert process.ask("ping") is None


def test_a_server_that_says_nothing_is_given_up(hub: Hub):
    with HubProcess(os.environ, hub.url, None, idle_s=60) as process:
        process.ask("ping")
    hub.answering.clear()
    with HubProcess(os.environ, hub.url, None, idle_s=1.0) as process:
        assert ask(process, "ping").kind == "silent"
    environ = {**os.environ, "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    with HubProcess(environ, hub.url, None, idle_s=60) as process:
        assert ask(process, "ping").kind == "unreachable"


def test_an_answer_without_an_end_takes_no_more_memory_than_it_may(hub: Hub):
    hub.faults["/api/models"] = Fault(endless=True)
    with HubProcess(os.environ, hub.url, None, idle_s=60) as process:
        failure = ask(process, "model", name="org/tiny", revision=None)
        assert (failure.kind, failure.reason) == ("strange", "MemoryError")


def test_a_process_that_does_not_start_is_told(hub: Hub, tmp_path: Path):
    (tmp_path / "huggingface_hub").mkdir()
    (tmp_path / "huggingface_hub" / "__init__.py").write_text("raise ImportError('broken')")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with (
        HubProcess(environ, hub.url, None, idle_s=60) as process,
        pytest.raises(UnavailableError, match="ended with 1") as caught,
    ):
        process.ask("ping")
    assert "import huggingface_hub" in caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what others see of a process")
def test_others_do_not_see_the_token_and_the_library_finds_none(hub: Hub):
    environ = {**os.environ, "HF_TOKEN": "hf_other", "HUGGING_FACE_HUB_TOKEN": "hf_other"}
    with HubProcess(environ, hub.url, "hf_secret", idle_s=60) as process:
        assert process.ask("whoami") == "alice"
        folder = Path("/proc") / str(process._child.pid)
        seen = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
        assert b"client.py" in seen
        assert b"hf_secret" not in seen
        assert b"hf_other" not in seen
    with HubProcess(environ, hub.url, None, idle_s=60) as process:
        process.ask("ping")
    assert "Authorization" not in str(hub.seen[-1].headers).title()
