"""Adapters of a Phi 3 that was taken apart, on one that joins q, k, v and gate, up.

Llama computes with the same weights apart what Phi 3 computes at once, so that PEFT on a Llama
judges what the adapter does to the Phi 3.
"""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.lora.interchange import read_adapter, write_adapter
from tests.lora.formats.models import by_peft, edit_json, load, ours, scores, trained_by_peft
from tests.models.reference import assert_logits_equal, make_model, variants

IDS = torch.arange(3, 20)
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The same model twice: as Llama, and as Phi 3."""
    home = tmp_path_factory.mktemp("pair")
    config = variants("llama")["plain"]
    llama = make_model(config)
    kept = [
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"),
        *("num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
        *("rms_norm_eps", "tie_word_embeddings", "rope_parameters", "rope_theta"),
    ]
    settings = {name: config[name] for name in kept if name in config}
    phi = transformers.AutoModelForCausalLM.from_config(
        transformers.Phi3Config(**settings, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    )
    state = llama.state_dict()
    joined = {}
    for name in phi.state_dict():
        stem, end = name.removesuffix(".weight").rpartition(".")[::2]
        parts = [state[f"{stem}.{part}.weight"] for part in PARTS.get(end, ())]
        joined[name] = torch.cat(parts) if parts else state[name]
    phi.load_state_dict(joined)
    llama.save_pretrained(home / "llama")
    phi.float().save_pretrained(home / "phi")
    assert_logits_equal(scores(phi.eval(), IDS), scores(llama, IDS))
    return home / "llama", home / "phi"


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ALL},
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
        {"r": 3, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj", "up_proj"]},
        {"r": 4, "lora_alpha": 8, "target_modules": ALL, "use_rslora": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "k_proj", "gate_proj"],
            "rank_pattern": {"k_proj": 2},
            "alpha_pattern": {"layers.1.mlp.gate_proj": 3},
        },
    ],
    ids=["all", "all-linear", "some", "rslora", "patterns"],
)
def test_what_was_trained_apart_acts_as_it_did(settings, pair, tmp_path):
    llama, phi = pair
    adapted = trained_by_peft(llama, tmp_path / "apart", **settings)
    decoder, host = load(phi)

    imported = read_adapter(tmp_path / "apart", host)

    expected = scores(adapted, IDS)
    assert_logits_equal(ours(decoder, imported.weights, IDS), expected)
    assert imported.coverage.is_complete, imported.coverage
    ends = {path.rpartition(".")[2] for path in imported.weights.modules}
    assert set(imported.spec.targets) == ends <= {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    for report in imported.coverage.modules:
        assert imported.spec.rank_of(report.path) == report.rank
        assert imported.spec.scale_of(report.path) == pytest.approx(report.scale)
    write_adapter(tmp_path / "joined", imported.weights, host, spec=imported.spec)
    assert_logits_equal(by_peft(phi, tmp_path / "joined", IDS), expected)
    again = read_adapter(tmp_path / "joined", host)
    assert again.weights.fingerprint() == imported.weights.fingerprint()


def test_fused_targets_act_as_in_peft(pair, tmp_path):
    _, phi = pair
    targets = ["qkv_proj", "gate_up_proj"]
    adapted = trained_by_peft(phi, tmp_path / "a", r=4, lora_alpha=8, target_modules=targets)
    decoder, host = load(phi)
    imported = read_adapter(tmp_path / "a", host)
    assert imported.coverage.is_complete
    assert {report.rank for report in imported.coverage.modules} == {4}
    assert_logits_equal(ours(decoder, imported.weights, IDS), scores(adapted, IDS))


def test_parts_that_share_their_a_keep_their_rank(pair, tmp_path):
    llama, phi = pair
    targets = ["q_proj", "k_proj", "v_proj"]
    trained_by_peft(llama, tmp_path / "a", r=4, lora_alpha=8, target_modules=targets)
    file = tmp_path / "a" / "adapter_model.safetensors"
    state = load_file(file)
    for name in [name for name in state if "k_proj.lora_A" in name or "v_proj.lora_A" in name]:
        state[name] = state[name.replace("k_proj", "q_proj").replace("v_proj", "q_proj")].clone()
    save_file(state, file)
    decoder, host = load(phi)
    imported = read_adapter(tmp_path / "a", host)
    assert {report.rank for report in imported.coverage.modules} == {4}
    assert_logits_equal(ours(decoder, imported.weights, IDS), by_peft(llama, tmp_path / "a", IDS))


def test_a_part_that_the_settings_mean_and_the_file_lacks_is_missing(pair, tmp_path):
    llama, phi = pair
    targets = ["q_proj", "v_proj"]
    trained_by_peft(llama, tmp_path / "a", r=4, lora_alpha=8, target_modules=targets)
    file = tmp_path / "a" / "adapter_model.safetensors"
    state = load_file(file)
    save_file({n: t for n, t in state.items() if "layers.0.self_attn.v_proj" not in n}, file)
    coverage = read_adapter(tmp_path / "a", load(phi)[1]).coverage
    assert (coverage.missing, coverage.unexpected) == (("layers.0.self_attn.v_proj",), ())


def test_a_layer_as_a_whole_and_in_parts_is_a_contradiction(pair, tmp_path):
    llama, phi = pair
    trained_by_peft(phi, tmp_path / "b", r=4, lora_alpha=8, target_modules=["qkv_proj"])
    trained_by_peft(llama, tmp_path / "a", r=4, lora_alpha=8, target_modules=["q_proj"])
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({**load_file(file), **load_file(tmp_path / "b" / file.name)}, file)
    edit_json(tmp_path / "a" / "adapter_config.json", target_modules=["q_proj", "qkv_proj"])
    with pytest.raises(InvalidAdapterError, match="as a whole and in parts"):
        read_adapter(tmp_path / "a", load(phi)[1])


def test_a_projection_of_another_shape_is_refused(pair, tmp_path):
    llama, phi = pair
    trained_by_peft(llama, tmp_path / "a", r=4, lora_alpha=8, target_modules=["q_proj"])
    file = tmp_path / "a" / "adapter_model.safetensors"
    save_file({n: t[:, :-1].clone() if "_A" in n else t for n, t in load_file(file).items()}, file)
    with pytest.raises(IncompatibleAdapterError, match="q_proj"):
        read_adapter(tmp_path / "a", load(phi)[1])
