"""Adapters of other programs through the command line: in, answered with, and out again."""

import json

import pytest
from safetensors.numpy import load_file


@pytest.fixture(scope="module")
def base(test_data) -> str:
    return str(test_data / "stories260K" / "hf")


@pytest.fixture(scope="module")
def peft(test_data):
    return test_data / "lora" / "trained_on_stories260K" / "stories260K_r8_qv"


@pytest.fixture
def imported(hyprstream, base, peft):
    result = hyprstream("lora", "import", str(peft), "--name", "shake", "--base-model", base)
    assert (result.code, result.out[:6]) == (0, "shake@"), result.err
    assert "is an adapter in the format peft" in result.err
    assert "10 layers are changed" in result.err
    return result


def test_an_imported_adapter_says_what_peft_says_with_it(hyprstream, peft, imported):
    for case in json.loads((peft / "reference.json").read_text())["cases"]:
        ask = ("--prompt", case["prompt"], "--raw", "--temperature", "0", "--ignore-eos")
        answer = hyprstream(
            "lora", "infer", "shake", *ask, "--max-tokens", "48", "--format", "json",
            "--logprobs", "0",
        )  # fmt: skip
        tokens = json.loads(answer.out)["logprobs"]
        assert [token["token_id"] for token in tokens] == case["adapter_greedy_48_ids"]
    assert imported.code == 0


def test_what_goes_out_is_what_came_in(hyprstream, peft, imported, tmp_path):
    place = tmp_path / "out"
    result = hyprstream("lora", "export", "shake", "--output", str(place))
    assert (result.code, result.out) == (0, f"{place}\n"), result.err
    ours, theirs = (load_file(folder / "adapter_model.safetensors") for folder in (place, peft))
    assert ours.keys() == theirs.keys()
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    settings = [json.loads((f / "adapter_config.json").read_text()) for f in (place, peft)]
    assert settings[0]["r"] == settings[1]["r"]
    assert settings[0]["lora_alpha"] == settings[1]["lora_alpha"]
    assert hyprstream("lora", "export", "shake", "--output", str(place)).code == 2
    again = hyprstream("lora", "export", "shake", "--output", str(place), "--overwrite")
    assert again.code == 0
    assert imported.code == 0


def test_a_fused_model_says_what_the_model_says_with_the_adapter(hyprstream, imported, tmp_path):
    place = tmp_path / "fused"
    out = ("--output", str(place), "--to", "safetensors", "--fused")
    assert hyprstream("lora", "export", "shake", *out).code == 0
    ask = ("--prompt", "Once upon a time", "--raw", "--temperature", "0", "--max-tokens", "20")
    fused = hyprstream("infer", str(place), *ask)
    assert fused.out == hyprstream("lora", "infer", "shake", *ask).out != "\n"
    assert imported.code == 0


def test_a_gguf_file_comes_back(hyprstream, base, imported, tmp_path):
    file = str(tmp_path / "x.gguf")
    out = ("--output", file, "--to", "gguf", "--values", "float16")
    assert hyprstream("lora", "export", "shake", *out).code == 0
    back = hyprstream("lora", "import", file, "--name", "back", "--base-model", base)
    assert back.code == 0
    diff = json.loads(hyprstream("lora", "diff", "shake", "back", "--format", "json").out)
    assert all(0 < module["relative_change"] < 1e-3 for module in diff["modules"])
    assert imported.code == 0


def test_an_imported_adapter_tells_where_it_is_from(hyprstream, imported):
    info = json.loads(hyprstream("lora", "info", "shake", "--format", "json").out)
    assert info["provenance"] == {"imported_from": "stories260K_r8_qv", "format": "peft"}
    assert (info["spec"]["rank"], info["spec"]["kind"]) == (8, "low_rank")
    assert imported.code == 0


def test_a_learned_code_keeps_what_it_says_of_a_trained_adapter(hyprstream, imported):
    result = hyprstream("lora", "compress", "shake", "--error", "0.1")
    assert result.code == 0
    diff = json.loads(
        hyprstream("lora", "diff", imported.out.strip(), "shake", "--format", "json").out
    )
    for module in diff["modules"]:
        assert module["norm_of_change"] < 0.3 * max(m["norm_before"] for m in diff["modules"])


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("nothing", None, 3), ("text", b"hello", 5), ("x.safetensors", b"\xff" * 64, 7)],
)
def test_what_is_no_adapter_is_refused(hyprstream, base, tmp_path, name, content, code):
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    result = hyprstream("lora", "import", str(file), "--name", "x", "--base-model", base)
    assert (result.out, hyprstream("lora", "list", "-q").out) == ("", "")
    assert result.code in (code, 5)
    assert result.err.startswith("error: ")
    assert "\nhint: " in result.err


def test_what_is_no_adapter_is_refused_before_a_model_is_loaded(hyprstream, tmp_path):
    nowhere = ("--name", "x", "--base-model", "/nothing/here")
    missing = hyprstream("lora", "import", str(tmp_path / "none"), *nowhere)
    assert (missing.code, str(tmp_path / "none") in missing.err) == (3, True)
    assert "/nothing/here" not in missing.err


def test_an_adapter_of_features_that_are_not_supported_is_refused(hyprstream, base, test_data):
    folder = test_data / "lora" / "trained_on_stories260K" / "stories260K_r4_all_dora"
    result = hyprstream("lora", "import", str(folder), "--name", "x", "--base-model", base)
    assert result.code == 5
    assert "dora" in result.err.lower()
