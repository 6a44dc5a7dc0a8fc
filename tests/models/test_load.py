"""What a folder may lack or say wrongly, and what is told then."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from hyprstream.errors import (
    CorruptWeightsError,
    InvalidSettingsError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
    UnsupportedFormatError,
)
from hyprstream.models.load import open_model
from tests.models.reference import make_model, packed_logits, reference_logits, variants

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def untied_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("untied")
    make_model(variants("llama")["plain"]).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(untied_folder, tmp_path) -> Path:
    """A sound model folder that a test may damage."""
    return Path(shutil.copytree(untied_folder, tmp_path / "model"))


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))


def edit_tensors(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)


def load(folder: Path, **options):
    return open_model(folder).load(device=CPU, dtype=torch.float32, **options)


@pytest.mark.parametrize("kept", ["model.embed_tokens.weight", "lm_head.weight"])
def test_tied_weights_are_found_under_either_name(kept, tmp_path):
    reference = make_model(variants("llama")["tied"])
    reference.save_pretrained(tmp_path)

    def rename(tensors):
        tensors[kept] = tensors.pop("model.embed_tokens.weight")

    edit_tensors(tmp_path, rename)
    ids = torch.arange(3, 20)
    torch.testing.assert_close(
        packed_logits(load(tmp_path), ids)[0],
        reference_logits(reference, ids),
        atol=1e-4,
        rtol=1e-4,
    )


def test_a_head_that_is_missing_and_not_tied_is_an_error(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(CorruptWeightsError, match=r"no tensor .*lm_head\.weight"):
        load(folder)


def test_weights_saved_without_their_prefix_are_found(folder):
    ids = torch.arange(3, 20)
    expected = packed_logits(load(folder), ids)[0]

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    edit_tensors(folder, strip)
    torch.testing.assert_close(packed_logits(load(folder), ids)[0], expected, rtol=0, atol=0)


def test_a_missing_tensor_is_named(folder):
    edit_tensors(folder, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(CorruptWeightsError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    name = "model.layers.0.self_attn.k_proj.weight"

    def cut(tensors):
        tensors[name] = tensors[name][:-1].clone()

    edit_tensors(folder, cut)
    with pytest.raises(CorruptWeightsError, match=r"k_proj.*\(31, 64\).*\(32, 64\)"):
        load(folder)


def test_weights_without_config_say_what_is_needed(folder):
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        open_model(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"a":' * 5000, "\xff"])
def test_a_config_that_is_not_json_is_an_error(folder, text):
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(CorruptWeightsError, match=r"config\.json"):
        open_model(folder)


@pytest.mark.parametrize("model_type", ["mamba", "../llama", "os", "__init__", ""])
def test_an_unknown_family_is_named_with_those_that_are_known(folder, model_type):
    edit_config(folder, model_type=model_type)
    with pytest.raises(UnsupportedArchitectureError) as caught:
        open_model(folder)
    assert repr(model_type) in str(caught.value)
    assert "llama" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", -1),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", "3"),
        ("num_hidden_layers", True),
        ("num_hidden_layers", None),
        ("hidden_size", 2**62),
        ("hidden_size", 0),
        ("num_key_value_heads", 3),
        ("vocab_size", 1e3),
        ("rms_norm_eps", float("nan")),
        ("hidden_act", "system"),
        ("rope_parameters", {"rope_type": "quantum"}),
        ("rope_parameters", {"rope_type": "linear"}),
        ("rope_parameters", {"rope_type": "linear", "factor": 0}),
        ("rope_parameters", {"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}),
        ("rope_parameters", [1]),
        ("head_dim", 0),
    ],
)
def test_a_number_out_of_range_is_named(folder, key, value):
    edit_config(folder, **{key: value})
    with pytest.raises(UnsupportedArchitectureError) as caught:
        open_model(folder)
    assert key.split("_")[0] in str(caught.value)


def test_a_foreign_quantisation_is_refused_by_name(folder):
    edit_config(folder, quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(UnsupportedFormatError, match="gptq"):
        open_model(folder)


@pytest.mark.parametrize("context", [0, -5, 129])
def test_a_context_that_the_model_does_not_have_is_refused(folder, context):
    with pytest.raises(InvalidSettingsError, match=f"context is {context}"):
        load(folder, context_length=context)


def test_code_beside_a_model_is_not_run(folder, monkeypatch):
    # `auto_map` names classes that transformers would import from the folder.
    marker = folder / "it-ran"
    (folder / "strange.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Model: pass\n")
    names = {"AutoConfig": "strange.Model", "AutoModelForCausalLM": "strange.Model"}
    edit_config(folder, auto_map=names, trust_remote_code=True)
    monkeypatch.chdir(folder)
    open_model(folder).load(device=CPU, dtype=torch.float32)
    assert not marker.exists()
