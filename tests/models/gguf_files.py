"""Writes a transformers model as llama.cpp's converter would, with gguf-py's own names."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

_ARCHES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "bert": gguf.MODEL_ARCH.BERT,
}


def write_gguf(model: Any, file: Path, *, for_llama_cpp: bool = False) -> Path:
    """Write the weights in float32 and the metadata that the converter writes.

    llama.cpp wants to be told that there is no vocabulary.
    """
    config = model.config
    arch = _ARCHES[config.model_type]
    writer = gguf.GGUFWriter(file, gguf.MODEL_ARCH_NAMES[arch])
    _add_metadata(writer, config)
    if for_llama_cpp:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in _stored_tensors(model, config):
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        writer.add_tensor(stored, np.ascontiguousarray(tensor.detach().numpy()))
    for name, factors in _rope_factors(config).items():
        writer.add_tensor(name, np.asarray(factors, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _add_metadata(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "bert":
        writer.add_layer_norm_eps(config.layer_norm_eps)
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
        return
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if head_dim := getattr(config, "head_dim", None):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if share := rope.get("partial_rotary_factor"):
        width = config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(width * share))
    if config.model_type in ("gemma2", "gemma3_text", "phi3") and config.sliding_window:
        writer.add_sliding_window(config.sliding_window)
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if config.model_type == "qwen3_moe":
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _stored_tensors(model: Any, config: Any) -> list[tuple[str, Tensor]]:
    """Name the weights as checkpoints do, stored as the converter stores them."""
    state = dict(model.state_dict())
    if getattr(config, "tie_word_embeddings", False):
        state.pop("lm_head.weight", None)
    stored = []
    for name, tensor in state.items():
        if name.endswith("experts.gate_up_proj"):
            gate, up = tensor.chunk(2, dim=1)
            stored.append((name.replace("gate_up_proj", "gate_proj.weight"), gate))
            stored.append((name.replace("gate_up_proj", "up_proj.weight"), up))
        elif name.endswith("experts.down_proj"):
            stored.append((f"{name}.weight", tensor))
        else:
            stored.append((name, _converted(name, tensor, config)))
    return stored


def _converted(name: str, tensor: Tensor, config: Any) -> Tensor:
    if config.model_type in ("llama", "mistral") and "q_proj" in name:
        return _permuted(tensor, config.num_attention_heads)
    if config.model_type in ("llama", "mistral") and "k_proj" in name:
        return _permuted(tensor, config.num_key_value_heads)
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        return tensor + 1
    return tensor


def _permuted(tensor: Tensor, num_heads: int) -> Tensor:
    """llama.cpp's convert_hf_to_gguf.py: LlamaModel.permute."""
    halves = tensor.reshape(num_heads, 2, tensor.shape[0] // num_heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _rope_factors(config: Any) -> dict[str, list[float]]:
    """The factor tensors that the converter works out from `rope_parameters`."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":
        return {
            "rope_factors_long.weight": rope["long_factor"],
            "rope_factors_short.weight": rope["short_factor"],
        }
    if rope.get("rope_type") != "llama3":
        return {}
    # LlamaModel.generate_extra_tensors
    width = config.hidden_size // config.num_attention_heads
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    original, factors = rope["original_max_position_embeddings"], []
    for frequency in rope["rope_theta"] ** -(np.arange(0, width, 2) / width):
        wavelength = 2 * np.pi / frequency
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            smooth = (original / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": factors}
