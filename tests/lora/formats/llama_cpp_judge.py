"""llama.cpp scores tokens, with an adapter or without."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor


def _library() -> Any:
    return pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def by_llama_cpp(model_file: Path, ids: Tensor, adapter: Path | None = None) -> Tensor:
    """What llama.cpp scores after each token."""
    cpp = _library()
    silent = cpp.llama_log_callback(lambda *_: None)
    cpp.llama_log_set(silent, ctypes.c_void_p(0))
    params = cpp.llama_model_default_params()
    params.n_gpu_layers, params.use_mmap = 0, False
    model = cpp.llama_model_load_from_file(str(model_file).encode(), params)
    assert model, f"llama.cpp does not load {model_file}"
    try:
        return _scores(cpp, model, ids, adapter)
    finally:
        cpp.llama_model_free(model)


def _scores(cpp: Any, model: Any, ids: Tensor, adapter: Path | None) -> Tensor:
    settings = cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_threads = 256, 256, 1
    settings.n_threads_batch = 1
    settings.type_k = settings.type_v = cpp.GGML_TYPE_F32
    settings.flash_attn_type = cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = cpp.llama_init_from_model(model, settings)
    assert context
    try:
        if adapter is not None:
            lora = cpp.llama_adapter_lora_init(model, str(adapter).encode())
            assert lora, f"llama.cpp does not load {adapter}"
            adapters = (cpp.llama_adapter_lora_p_ctypes * 1)(lora)
            assert cpp.llama_set_adapters_lora(context, adapters, 1, (ctypes.c_float * 1)(1.0)) == 0
        return _decoded(cpp, model, context, ids)
    finally:
        cpp.llama_free(context)


def _decoded(cpp: Any, model: Any, context: Any, ids: Tensor) -> Tensor:
    batch = cpp.llama_batch_init(len(ids), 0, 1)
    try:
        batch.n_tokens = len(ids)
        for place, token in enumerate(ids.tolist()):
            batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        assert cpp.llama_decode(context, batch) == 0
        num_tokens = cpp.llama_vocab_n_tokens(cpp.llama_model_get_vocab(model))
        rows = [
            np.ctypeslib.as_array(cpp.llama_get_logits_ith(context, i), (num_tokens,)).copy()
            for i in range(len(ids))
        ]
    finally:
        cpp.llama_batch_free(batch)
    return torch.from_numpy(np.stack(rows))


def ids_by_llama_cpp(model_file: Path, texts: Sequence[str]) -> list[list[int]]:
    """The ids that llama.cpp gives each text, with what it puts before and after."""
    cpp = _library()
    silent = cpp.llama_log_callback(lambda *_: None)
    cpp.llama_log_set(silent, ctypes.c_void_p(0))
    params = cpp.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only = 0, True
    model = cpp.llama_model_load_from_file(str(model_file).encode(), params)
    assert model, f"llama.cpp does not load {model_file}"
    try:
        vocab = cpp.llama_model_get_vocab(model)
        return [_ids(cpp, vocab, text.encode()) for text in texts]
    finally:
        cpp.llama_model_free(model)


def _ids(cpp: Any, vocab: Any, data: bytes) -> list[int]:
    room = 4 * len(data) + 8
    ids = (ctypes.c_int32 * room)()
    count = cpp.llama_tokenize(vocab, data, len(data), ids, room, True, False)
    assert count >= 0
    return list(ids[:count])
