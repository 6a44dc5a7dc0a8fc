"""A model is the same wherever and however its files lie, and another if anything in it differs."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hyprstream.models.config import AttentionConfig, MoeConfig, RopeConfig
from hyprstream.models.fingerprint import config_sha256, fingerprint
from hyprstream.models.load import open_model
from hyprstream.refs import ModelFingerprint
from tests.models.reference import make_model, variants

LONG_AGO_NS = 1_600_000_000_000_000_000


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    make_model(variants("llama")["plain"]).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "model"))


def of(folder: Path, cache: Path | None = None) -> ModelFingerprint:
    return fingerprint(open_model(folder), cache=cache)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_a_folder_that_was_moved_holds_the_same_model(original: Path, folder: Path):
    assert of(folder) == of(original)
    assert of(folder).name == "llama"
    assert fingerprint(open_model(folder), name="here") == of(folder)


def test_neither_order_nor_shards_nor_notes_make_another_model(original: Path, folder: Path):
    found = tensors(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(found, reverse=True)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        safetensors.torch.save_file(
            {name: found[name] for name in part}, folder / file, metadata={"by": "somebody"}
        )
    where = {name: file for file, part in parts.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert of(folder) == of(original)


@pytest.mark.parametrize("change", ["one bit", "name", "shape", "dtype", "gone", "swapped"])
def test_any_other_weight_makes_another_model(original: Path, folder: Path, change: str):
    found = tensors(folder)
    one, two = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight"
    if change == "one bit":
        found[one].view(torch.uint8)[-1, -1] ^= 1
    elif change == "name":
        found["another.name"] = found.pop(one)
    elif change == "shape":
        found[one] = found[one].reshape(1, *found[one].shape)
    elif change == "dtype":
        found[one] = found[one].view(torch.int32)
    elif change == "gone":
        del found[one]
    else:
        assert found[one].shape == found[two].shape
        found[one], found[two] = found[two], found[one]
    safetensors.torch.save_file(found, folder / "model.safetensors")
    changed = of(folder)
    assert changed.config_sha256 == of(original).config_sha256
    assert changed.weights_sha256 != of(original).weights_sha256


def test_what_computes_differently_is_another_model(original: Path):
    config = open_model(original).config
    changes = [
        {"norm_eps": 0.5},
        {"activation": "gelu"},
        {"ropes": (RopeConfig(theta=1.0, rotary_width=2),)},
        {"ropes": (RopeConfig(theta=1.0, rotary_width=2, factor=2.0),)},
        {"attention": (AttentionConfig(scale=1.0, window=3),)},
        {"moe": MoeConfig(num_experts=2, num_active=1, width=4, normalize=True)},
        {
            "moe": MoeConfig(
                num_experts=2, num_active=1, width=4, normalize=True, dense_layers=frozenset({1})
            )
        },
    ]
    hashes = {config_sha256(replace(config, **change)) for change in [{}, *changes]}  # type: ignore[arg-type]  # of several types
    assert len(hashes) == len(changes) + 1


def test_how_it_is_served_makes_no_other_model(original: Path):
    config = open_model(original).config
    served = config.with_context(7).with_pooling("mean", normalize=False, max_tokens=3)
    assert config_sha256(served) == config_sha256(config)


def test_a_gguf_file_of_a_model_is_another_model(test_data: Path):
    """Its numbers are named, ordered and stored in another way; the configuration may agree."""
    gguf = sorted((test_data / "stories260K" / "gguf").glob("*.gguf"))[0]
    one, two = of(test_data / "stories260K" / "hf"), of(gguf)
    assert one.weights_sha256 != two.weights_sha256


def _age(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        os.utime(file, ns=(LONG_AGO_NS, LONG_AGO_NS))


def test_what_was_hashed_is_not_hashed_again(folder: Path, tmp_path: Path):
    _age(folder)
    cache = tmp_path / "cache"
    made = of(folder, cache)
    assert made == of(folder)
    (entry,) = cache.iterdir()
    told = json.loads(entry.read_text())
    entry.write_text(json.dumps(told | {"weights_sha256": "0" * 64}))
    assert of(folder, cache).weights_sha256 == "0" * 64  # it was looked up


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b'{"files": 1, "weights_sha256": 2}']
)
def test_a_cache_that_says_nothing_is_made_anew(folder: Path, tmp_path: Path, content: bytes):
    _age(folder)
    cache = tmp_path / "cache"
    made = of(folder, cache)
    (entry,) = cache.iterdir()
    entry.write_bytes(content)
    assert of(folder, cache) == made
    assert entry.read_bytes() != content


def test_a_file_that_was_changed_is_hashed_again(folder: Path, tmp_path: Path):
    _age(folder)
    made = of(folder, tmp_path / "cache")
    found = tensors(folder)
    found["lm_head.weight"] = found["lm_head.weight"] + 1
    safetensors.torch.save_file(found, folder / "model.safetensors")
    os.utime(folder / "model.safetensors", ns=(LONG_AGO_NS + 1, LONG_AGO_NS + 1))
    assert of(folder, tmp_path / "cache").weights_sha256 not in ("", made.weights_sha256)


def test_a_file_that_was_just_written_is_not_remembered(folder: Path, tmp_path: Path):
    """It might be written again without looking different."""
    (folder / "model.safetensors").touch()
    of(folder, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_file_that_was_replaced_after_it_was_opened_is_not_remembered(
    folder: Path, tmp_path: Path
):
    _age(folder)
    model, cache = open_model(folder), tmp_path / "cache"
    before = fingerprint(model)
    found = tensors(folder)
    found["lm_head.weight"] = found["lm_head.weight"] + 1
    safetensors.torch.save_file(found, tmp_path / "new")
    (tmp_path / "new").replace(folder / "model.safetensors")
    _age(folder)
    assert fingerprint(model, cache=cache) == before
    assert of(folder, cache) != before
