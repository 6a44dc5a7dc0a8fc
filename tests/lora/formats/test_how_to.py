"""The page on import and export, run from top to bottom."""

from safetensors.torch import load_file, save_file

from hyprstream.lora.interchange import detect, write_adapter
from hyprstream.models.load import open_model
from tests.lora.adapters import random_adapter
from tests.lora.formats.models import load
from tests.project.pages import DOCS, blocks

PAGE = DOCS / "how-to" / "import-and-export-adapters.md"


def test_the_programs_of_the_page_run(test_data, tmp_path, monkeypatch, capsys):
    (tmp_path / "base").symlink_to(test_data / "stories260K" / "hf")
    decoder, host = load(tmp_path / "base")
    linears = {p: s for p, s in decoder.linears.items() if p != "lm_head"}
    weights = random_adapter(linears, [4], seed=1)
    write_adapter(tmp_path / "adapter", weights, host)
    write_adapter(tmp_path / "old", weights, host, name="pytorch")
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    save_file(tensors, tmp_path / "lora.safetensors")
    monkeypatch.chdir(tmp_path)

    exec("\n".join(blocks(PAGE, "python")), {})  # noqa: S102 - a page of this project

    assert "layers.0.self_attn.q_proj 4 1.0" in capsys.readouterr().out
    assert [detect(tmp_path / name) for name in ("for-peft", "for-llama.gguf")] == ["peft", "gguf"]
    for name in ("fused", "fused.gguf"):
        assert open_model(tmp_path / name).config.num_layers == decoder.config.num_layers
