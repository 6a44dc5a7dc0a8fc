"""Models of the Hub from the command line: the whole program, in processes of its own."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hyprstream.runtime import Model, Settings
from tests.catalog.hub_server import Fault, Hub, hub_serving
from tests.runtime.adapted_models import first_logits, make_folder


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "original")


@pytest.fixture
def hub(original: Path) -> Iterator[Hub]:
    with hub_serving() as hub:
        files = {file.name: file.read_bytes() for file in original.iterdir()}
        hub.add("org/tiny", {**files, "pytorch_model.bin": b"a pickle"})
        yield hub


@pytest.fixture
def environ(hub: Hub, tmp_path: Path) -> dict[str, str]:
    settings = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path / "huggingface"),
        "HF_HUB_OFFLINE": "0",
        "HYPRSTREAM_HOME": str(tmp_path / "home"),
        "HYPRSTREAM_CONFIG": str(tmp_path / "none.toml"),
        "HYPRSTREAM_KEYRING": "false",
    }
    return {**os.environ, **settings}


def start(environ: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "hyprstream", *arguments],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(environ: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    program = start(environ, *arguments)
    out, err = program.communicate(timeout=120)
    return program.returncode, out, err


def test_a_model_is_pulled_described_and_computes_as_the_original(
    environ: dict[str, str], hub: Hub, original: Path, tmp_path: Path
):
    code, out, err = run(environ, "model", "pull", "hf://org/tiny")
    assert code == 0, err
    path = Path(out.strip())
    assert path.is_relative_to(tmp_path / "home" / "cache" / "models" / "hf")
    assert {file.name for file in path.iterdir()} == {file.name for file in original.iterdir()}
    assert "downloading model.safetensors" in err
    code, out, err = run(environ, "model", "info", "hf://org/tiny", "--format", "json")
    assert (json.loads(out)["architecture"], json.loads(out)["path"]) == ("llama", str(path))
    num_requests = len(hub.seen)
    settings = Settings(home=tmp_path / "home", offline=True)
    pulled, known = Model.load("hf://org/tiny", settings=settings), Model.load(str(original))
    assert torch.equal(first_logits(pulled, "the same"), first_logits(known, "the same"))
    assert len(hub.seen) == num_requests


def test_a_pull_that_was_killed_is_gone_on_with(environ: dict[str, str], hub: Hub):
    weights = os.urandom(3 << 20)
    hub.add("org/big", {"config.json": b"{}", "model.safetensors": weights})
    hold = threading.Event()
    hub.faults = {"/lfs/": Fault(cut_at=2 << 20, times=1), "lfs": Fault(hold=hold)}
    program = start(environ, "model", "pull", "hf://org/big")
    asked = [hub.asked.get(timeout=60) for _ in range(3)]  # config, weights, the rest of them
    assert [path.split("/")[-1] for path in asked[1:]] == ["model.safetensors"] * 2
    program.send_signal(signal.SIGKILL)
    program.communicate(timeout=60)
    hold.set()
    hub.faults.clear()
    hub.seen.clear()
    code, out, err = run(environ, "model", "pull", "hf://org/big")
    assert code == 0, err
    assert (Path(out.strip()) / "model.safetensors").read_bytes() == weights
    (request,) = hub.requests("GET", "/lfs/")
    assert request.headers["Range"] in ("bytes=1048576-", "bytes=2097152-")


def test_ctrl_c_ends_at_once_and_leaves_no_process(environ: dict[str, str], hub: Hub):
    hub.answering.clear()
    program = start(environ, "model", "pull", "hf://org/tiny")
    assert hub.arrived.wait(60)
    assert len(clients_of(hub)) == 1
    program.send_signal(signal.SIGINT)
    assert program.wait(30) == 130
    program.communicate(timeout=30)
    assert clients_of(hub) == []


def clients_of(hub: Hub) -> list[int]:
    """Find the processes that speak to a Hub for the program."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("this system has no /proc that tells which processes there are")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_client = b"catalog/hub/client.py" in (folder / "cmdline").read_bytes()
            if is_client and hub.url.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # ended meanwhile, or somebody else's
            continue
    return found


def test_a_gated_model_says_what_to_do(environ: dict[str, str], hub: Hub):
    hub.repos["org/tiny"].gated = True
    code, out, err = run(environ, "model", "pull", "hf://org/tiny")
    assert (code, out) == (8, "")
    assert f"{hub.url}/org/tiny" in err
    assert "hyprstream auth login --provider hf" in err
