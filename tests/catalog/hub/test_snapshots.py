"""What the Hub's own client left in its cache, made by that client from a Hub on loopback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyprstream.catalog.hub.snapshots import find
from tests.catalog.hub_server import COMMIT, Hub, hub_serving

SHARDS = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()
SHARDED = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "generation_config.json": b"{}",
    "model.safetensors.index.json": INDEX,
    **dict.fromkeys(SHARDS, b"weights"),
}
GGUFS = {"x-Q4_K_M.gguf": b"GGUF4", "x-Q8_0.gguf": b"GGUF8"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_serving() as hub:
        hub.add("org/x", SHARDED)
        hub.add("org/x-GGUF", GGUFS)
        yield hub


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def use_library(hub: Hub, cache: Path, *calls: str) -> None:
    """Let huggingface_hub do what a program would; it reads its settings once per process."""
    program = "\n".join(["from huggingface_hub import *", *calls])
    environ = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
    environ |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environ
    )
    assert done.returncode == 0, done.stderr


def test_a_whole_snapshot_is_used_where_it_lies(hub: Hub, cache: Path):
    use_library(hub, cache, "snapshot_download('org/x')")
    path = cache / "models--org--x" / "snapshots" / COMMIT
    for revision in (None, "main", COMMIT):
        assert find(cache, "org/x", revision, None) == path
    assert find(cache, "org/x", "other", None) is None
    assert find(cache, "org/x", "f" * 40, None) is None
    assert find(cache, "org/y", None, None) is None


def test_a_part_of_a_model_is_not_used(hub: Hub, cache: Path):
    use_library(
        hub,
        cache,
        *(f"hf_hub_download('org/x', {name!r})" for name in SHARDED if "2-of" not in name),
    )
    assert find(cache, "org/x", None, None) is None
    use_library(hub, cache, f"hf_hub_download('org/x', {SHARDS[1]!r})")
    assert find(cache, "org/x", None, None) is not None


def test_a_file_that_the_hub_has_and_the_cache_lost_is_missed(hub: Hub, cache: Path):
    use_library(hub, cache, "snapshot_download('org/x')")
    snapshot = find(cache, "org/x", None, None)
    assert snapshot is not None
    (snapshot / "generation_config.json").unlink()
    assert find(cache, "org/x", None, None) is None


def test_a_file_of_another_length_than_the_hub_said_is_not_used(hub: Hub, cache: Path):
    use_library(hub, cache, "snapshot_download('org/x')")
    snapshot = find(cache, "org/x", None, None)
    assert snapshot is not None
    (snapshot / SHARDS[0]).resolve().write_bytes(b"cut")
    assert find(cache, "org/x", None, None) is None


def test_of_gguf_files_only_what_would_be_fetched_is_used(hub: Hub, cache: Path):
    use_library(hub, cache, "hf_hub_download('org/x-GGUF', 'x-Q8_0.gguf')")
    eight = find(cache, "org/x-GGUF", None, "Q8_0")
    assert eight is not None
    assert eight.read_bytes() == b"GGUF8"
    assert find(cache, "org/x-GGUF", None, None) is None
    assert find(cache, "org/x-GGUF", None, "Q4_K_M") is None
    use_library(hub, cache, "hf_hub_download('org/x-GGUF', 'x-Q4_K_M.gguf')")
    four = find(cache, "org/x-GGUF", None, None)
    assert four is not None
    assert four.read_bytes() == b"GGUF4"


def test_links_out_of_the_cache_and_strange_notes_are_not_followed(tmp_path: Path, cache: Path):
    secret = tmp_path / "secret.gguf"
    secret.write_bytes(b"GGUF")
    repository = cache / "models--org--x"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    (snapshot / "x-Q4_K_M.gguf").symlink_to(secret)
    assert find(cache, "org/x", None, None) is None
    (snapshot / "x-Q4_K_M.gguf").unlink()
    (snapshot / "x-Q4_K_M.gguf").write_bytes(b"GGUF")
    assert find(cache, "org/x", None, None) is not None
    for ref in ("../../../..", COMMIT[:8], "\N{SNOWMAN}"):
        (repository / "refs" / "main").write_text(ref, encoding="utf-8")
        assert find(cache, "org/x", None, None) is None
    assert find(cache, "org/x", "a/../../../b", None) is None
    (repository / "trees").mkdir()
    for note in ("[" * 100_000, '{"files": {"x-Q4_K_M.gguf": 3}}', '{"files": [1]}', "\0"):
        (repository / "trees" / f"{COMMIT}.json").write_text(note)
        assert find(cache, "org/x", COMMIT, None) is not None  # as without it
    (repository / "trees" / f"{COMMIT}.json").write_text('{"files": {"x-Q8_0.gguf": {"size": 3}}}')
    assert find(cache, "org/x", COMMIT, None) is None
