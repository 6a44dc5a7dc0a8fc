"""PEFT folders, judged by PEFT: what it saves we apply alike, what we write it applies alike."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hyprstream.errors import (
    CorruptWeightsError,
    IncompatibleAdapterError,
    InvalidAdapterError,
    UnsupportedError,
)
from hyprstream.lora.interchange import detect, read_adapter, write_adapter
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import combine
from tests.lora.adapters import random_adapter, random_kinds
from tests.lora.formats.models import (
    by_peft,
    edit_json,
    load,
    ours,
    save_model,
    scores,
    trained_by_peft,
)
from tests.models.reference import assert_logits_equal

IDS = torch.arange(3, 20)
WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_model("llama", tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def model(base):
    return load(base)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        {"r": 3, "lora_alpha": 5, "target_modules": ["down_proj", "lm_head"]},
        {"r": 8, "lora_alpha": 6, "use_rslora": True, "target_modules": "all-linear"},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj", "k_proj", "up_proj"],
            "rank_pattern": {"layers.1.self_attn.q_proj": 2, "^model.layers.0.mlp.up_proj": 6},
            "alpha_pattern": {"k_proj": 32, r"layers\.[01]\.mlp\.up_proj": 2},
        },
        {
            "r": 2,
            "lora_alpha": 2,
            "target_modules": r".*layers\.\d+\.(self_attn\.o|mlp\.gate)_proj",
            "exclude_modules": ["layers.0.mlp.gate_proj"],
        },
        {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj"], "layers_to_transform": [1]},
    ],
    ids=["plain", "odd scale", "rslora", "patterns", "expression", "layers"],
)
def test_what_peft_saves_gives_the_logits_of_peft(settings, base, model, tmp_path):
    adapted = trained_by_peft(base, tmp_path, **settings)
    decoder, host = model

    imported = read_adapter(tmp_path, host)

    assert detect(tmp_path) == "peft"
    assert imported.coverage.is_complete
    assert_logits_equal(ours(decoder, imported.weights, IDS), scores(adapted, IDS))
    for report in imported.coverage.modules:
        layer = adapted.get_submodule(f"base_model.model.{host.hf_name(report.path)}")
        assert report.rank == layer.r["default"]
        assert report.scale == layer.scaling["default"]
        assert imported.spec.rank_of(report.path) == report.rank
        assert imported.spec.scale_of(report.path) == report.scale
        dense = imported.weights.modules[report.path].dense()
        torch.testing.assert_close(dense, layer.get_delta_weight("default"))
        assert report.norm == pytest.approx(float(dense.norm()), rel=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_copies_of_the_embedding_are_passed_over_and_other_ones_refused(family, tmp_path):
    base = save_model(family, tmp_path / "base")
    decoder, host = load(base)
    folder = tmp_path / "adapter"
    targets = ["lm_head", "q_proj"]
    adapted = trained_by_peft(
        base, folder, with_embeddings=True, r=2, lora_alpha=2, target_modules=targets
    )
    tensors = load_file(folder / WEIGHTS)
    copies = [name for name in tensors if "lora_" not in name]
    assert copies

    imported = read_adapter(folder, host)

    assert imported.coverage.is_complete
    assert "lm_head" in imported.weights.modules
    assert_logits_equal(ours(decoder, imported.weights, IDS), scores(adapted, IDS))
    tensors[copies[0]][0, 0] += 1
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UnsupportedError, match="no part of a low-rank product"):
        read_adapter(folder, host)


@pytest.mark.parametrize(
    "spec", [None, LoraSpec(rank=4, alpha=8), LoraSpec(rank=4, alpha=5)], ids=str
)
@pytest.mark.parametrize("ranks", [[4], [3, 8, 1]])
def test_peft_loads_what_we_write(spec, ranks, base, model, tmp_path):
    decoder, host = model
    weights = random_adapter(decoder.linears, ranks, seed=5)

    write_adapter(tmp_path / "out", weights, host, spec=spec)

    assert_logits_equal(ours(decoder, weights, IDS), by_peft(base, tmp_path / "out", IDS))
    again = read_adapter(tmp_path / "out", host)
    assert again.weights.fingerprint() == weights.fingerprint()
    is_kept = spec is not None and ranks == [4] and spec.alpha == 8
    assert {report.scale for report in again.coverage.modules} == {2.0 if is_kept else 1.0}


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"])
def test_every_family_goes_out_and_in(family, tmp_path):
    base = save_model(family, tmp_path / "base")
    decoder, host = load(base)
    adapted = trained_by_peft(
        base, tmp_path / "theirs", r=2, lora_alpha=3, target_modules="all-linear"
    )

    imported = read_adapter(tmp_path / "theirs", host)

    assert imported.coverage.is_complete
    assert len(imported.weights.modules) == len(decoder.linears) - 1, "all but the head"
    assert_logits_equal(ours(decoder, imported.weights, IDS), scores(adapted, IDS))
    write_adapter(tmp_path / "ours", imported.weights, host, spec=imported.spec)
    assert_logits_equal(by_peft(base, tmp_path / "ours", IDS), scores(adapted, IDS))


def test_experts_of_a_mixture_go_out_and_in(tmp_path):
    decoder, host = load(save_model("qwen3_moe", tmp_path / "base"))
    weights = random_adapter(decoder.linears, [2, 3], seed=1)
    write_adapter(tmp_path / "out", weights, host)
    again = read_adapter(tmp_path / "out", host)
    assert again.weights.fingerprint() == weights.fingerprint()
    names = load_file(tmp_path / "out" / WEIGHTS)
    stem = "base_model.model.model.layers.0.mlp.experts.1.down_proj"
    assert {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"} <= names.keys()


def test_a_tiny_adapter_is_written_as_its_product(base, model, tmp_path):
    decoder, host = model
    weights = random_kinds(decoder.linears, ["tiny"], [4], seed=3)
    write_adapter(tmp_path / "out", weights, host)
    assert_logits_equal(ours(decoder, weights, IDS), by_peft(base, tmp_path / "out", IDS))
    again = read_adapter(tmp_path / "out", host).weights
    for path, delta in weights.modules.items():
        torch.testing.assert_close(again.modules[path].dense(), delta.dense())


def test_a_sparse_adapter_is_refused_by_name(model, tmp_path):
    decoder, host = model
    weights = random_kinds(decoder.linears, ["sparse"], [2], seed=3)
    with pytest.raises(UnsupportedError, match="the sparse adapter's change of layers"):
        write_adapter(tmp_path / "out", weights, host)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_are_written_in_the_dtype_asked_for(dtype, model, tmp_path):
    decoder, host = model
    weights = random_adapter(decoder.linears, [4], seed=5)
    write_adapter(tmp_path / "out", weights, host, dtype=dtype)
    assert {t.dtype for t in load_file(tmp_path / "out" / WEIGHTS).values()} == {dtype}
    again = read_adapter(tmp_path / "out", host)
    for path, delta in weights.modules.items():
        found = again.weights.modules[path].tensors()
        for name, tensor in delta.tensors().items():
            assert torch.equal(found[name], tensor.to(dtype))


def test_a_value_that_the_dtype_cannot_hold_is_refused(model, tmp_path):
    decoder, host = model
    weights = combine([(random_adapter(decoder.linears, [4], seed=5), 1e6)])
    with pytest.raises(InvalidAdapterError, match="no finite number"):
        write_adapter(tmp_path / "out", weights, host, dtype=torch.float16)


def test_half_precision_stays_where_folding_rounds_nothing(model, tmp_path):
    decoder, host = model
    folder = tmp_path / "out"
    write_adapter(folder, random_adapter(decoder.linears, [4], seed=5), host, dtype=torch.float16)
    edit_json(folder / SETTINGS, lora_alpha=8)
    doubled = read_adapter(folder, host).weights
    assert all(d.tensors()["b"].dtype == torch.float16 for d in doubled.modules.values())
    edit_json(folder / SETTINGS, lora_alpha=6)
    weights = read_adapter(folder, host).weights
    assert all(d.tensors()["b"].dtype == torch.float32 for d in weights.modules.values())
    for path, delta in weights.modules.items():
        torch.testing.assert_close(delta.dense(), doubled.modules[path].dense() * 0.75)


@pytest.fixture
def folder(model, tmp_path):
    """A sound adapter that a test may damage."""
    decoder, host = model
    linears = {p: s for p, s in decoder.linears.items() if p.endswith(("q_proj", "v_proj"))}
    write_adapter(tmp_path / "adapter", random_adapter(linears, [4], seed=5), host)
    return tmp_path / "adapter"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"use_dora": True}, UnsupportedError, "DoRA"),
        ({"modules_to_save": ["score"]}, UnsupportedError, "modules_to_save"),
        ({"lora_bias": True}, UnsupportedError, "lora_bias"),
        ({"ensure_weight_tying": True}, UnsupportedError, "ensure_weight_tying"),
        ({"bias": "all"}, UnsupportedError, "bias"),
        ({"peft_type": "IA3"}, UnsupportedError, "'IA3'"),
        ({"peft_type": ["LORA"]}, UnsupportedError, "LORA"),
        ({"init_lora_weights": "pissa_niter_4"}, UnsupportedError, "pissa_niter_4"),
        ({"layer_replication": [[0, 2]]}, UnsupportedError, "layer_replication"),
        ({"layers_to_transform": [1], "layers_pattern": "a|b"}, UnsupportedError, "layers_pattern"),
        ({"r": 5}, InvalidAdapterError, "rank 4, its settings say 5"),
        ({"r": 10**12}, InvalidAdapterError, "r is 1000000000000"),
        ({"r": True}, InvalidAdapterError, "r is True"),
        ({"r": "8"}, InvalidAdapterError, "r is '8'"),
        ({"lora_alpha": 0}, InvalidAdapterError, "lora_alpha is 0"),
        ({"lora_alpha": 10**400}, InvalidAdapterError, "lora_alpha is 1000"),
        ({"lora_alpha": float("nan")}, InvalidAdapterError, "lora_alpha is nan"),
        ({"lora_dropout": 2}, InvalidAdapterError, "lora_dropout is 2"),
        ({"target_modules": 7}, InvalidAdapterError, "target_modules is 7"),
        ({"target_modules": ["nothing"]}, InvalidAdapterError, "changes no layer"),
        ({"rank_pattern": {"(": 4}}, InvalidAdapterError, "regular expression"),
        ({"rank_pattern": {"q_proj": 0}}, InvalidAdapterError, "rank_pattern"),
        ({"alpha_pattern": [1]}, InvalidAdapterError, "alpha_pattern is"),
        ({"target_modules": "(.*)*(.*)*(.*)*(.*)*(.*)*!"}, InvalidAdapterError, "2 seconds"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_followed_are_refused(settings, error, message, folder, model):
    edit_json(folder / SETTINGS, **settings)
    with pytest.raises(error, match=message) as caught:
        read_adapter(folder, model[1])
    assert caught.value.hint


def damaged(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop(f"{Q}.lora_A.weight"), InvalidAdapterError, "only lora_B"),
        (lambda t: t.update({f"{Q}.lora_A.x.weight": torch.ones(4, 4)}), InvalidAdapterError, "tw"),
        (lambda t: t[f"{Q}.lora_B.weight"].fill_(torch.nan), InvalidAdapterError, "no finite"),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4)}), InvalidAdapterError, "shape"),
        (
            lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 9)}),
            IncompatibleAdapterError,
            "9",
        ),
        (lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(0, 9)}), InvalidAdapterError, "0"),
        (
            lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(4, 64, dtype=torch.int8)}),
            InvalidAdapterError,
            "int8",
        ),
        (
            lambda t: t.update({f"{Q}.lora_magnitude_vector": torch.ones(4)}),
            UnsupportedError,
            "lora_magnitude_vector",
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(4)}),
            UnsupportedError,
            "lm_head.weight",
        ),
    ],
)
def test_tensors_that_contradict_one_another_are_refused(change, error, message, folder, model):
    damaged(folder, change)
    with pytest.raises(error, match=message):
        read_adapter(folder, model[1])


def test_a_truncated_file_is_damaged(folder, model):
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-7])
    with pytest.raises(CorruptWeightsError):
        read_adapter(folder, model[1])
    (folder / SETTINGS).write_text("{")
    with pytest.raises(InvalidAdapterError, match="not JSON"):
        read_adapter(folder, model[1])


def test_the_report_names_what_fits_and_what_does_not(folder, model):
    decoder, host = model
    stem = "base_model.model.model.layers.7.self_attn.q_proj"

    def change(tensors):
        tensors[f"{stem}.lora_A.weight"] = torch.ones(4, 2)
        tensors[f"{stem}.lora_B.weight"] = torch.ones(2, 4)
        tensors[f"{Q}.lora_B.weight"].zero_()

    damaged(folder, change)
    edit_json(folder / SETTINGS, target_modules=["q_proj", "v_proj", "o_proj"], novelty=[1])
    coverage = read_adapter(folder, host).coverage
    assert coverage.unexpected == ("model.layers.7.self_attn.q_proj",)
    assert coverage.missing == tuple(p for p in decoder.linears if p.endswith("o_proj"))
    assert coverage.ignored == ("novelty",)
    assert not coverage.is_complete
    first = coverage.modules[0]
    assert (first.path, first.zeros, first.norm) == ("layers.0.self_attn.q_proj", ("lora_B",), 0.0)
    assert all(not report.zeros for report in coverage.modules[1:])


def test_modules_that_the_settings_leave_out_are_no_part_of_it(folder, base, model):
    edit_json(folder / SETTINGS, target_modules=["v_proj"])
    imported = read_adapter(folder, model[1])
    assert {path.rpartition(".")[2] for path in imported.weights.modules} == {"v_proj"}
    assert len(imported.coverage.unexpected) == len(imported.coverage.modules)
    theirs = by_peft(base, folder, IDS)
    assert_logits_equal(ours(model[0], imported.weights, IDS), theirs)


REAL = "lora/trained_on_stories260K"


@pytest.mark.parametrize("base", ["hf", "gguf/stories260K-F32.gguf"])
def test_a_really_trained_adapter_gives_its_recorded_logits(base, test_data):
    decoder, host = load(test_data / "stories260K" / base)
    folder = test_data / REAL / "stories260K_r8_qv"
    imported = read_adapter(folder, host)
    assert imported.coverage.is_complete
    assert imported.spec.targets in {("q_proj", "v_proj"), ("v_proj", "q_proj")}
    for case in json.loads((folder / "reference.json").read_text())["cases"]:
        theirs = torch.from_numpy(np.load(folder / case["adapter_logits"]))
        scored = ours(decoder, imported.weights, torch.tensor(case["input_ids"]))
        torch.testing.assert_close(scored, theirs.reshape(scored.shape), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        (f"{REAL}/stories260K_r4_all_dora", UnsupportedError, "DoRA"),
        ("lora/privacy-filter_r16_tokcls", UnsupportedError, "modules_to_save"),
        ("lora/bloom-560m_r8_bin", UnsupportedError, "enable_lora"),
        ("lora/gpt2_r8_cattn_cproj", InvalidAdapterError, "changes no layer of this model"),
        ("lora/open-calm-1b_r1_qkv", InvalidAdapterError, "changes no layer of this model"),
    ],
)
def test_real_adapters_that_cannot_be_applied_are_refused(name, error, message, test_data):
    _, host = load(test_data / "stories260K" / "hf")
    with pytest.raises(error, match=message):
        read_adapter(test_data / name, host)
