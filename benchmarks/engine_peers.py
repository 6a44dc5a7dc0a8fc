"""What others make of the cases of the engine benchmark."""

import ctypes
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_cases import (
    ALL_LINEARS,
    CASES,
    NEW_TOKENS,
    QUERY_VALUE,
    RANK,
    Case,
    prompt,
)

Results = dict[str, float]


def speed(case: Case, step: Callable[[], object]) -> float:
    """Tokens per second of all requests together."""
    began = time.process_time()
    for _ in range(NEW_TOKENS):
        step()
    return case.num_requests * NEW_TOKENS / (time.process_time() - began)


def transformers_peer(file: Path, option: str) -> Results:
    """Measure transformers and PEFT: one batch, `adapter_names` for mixed adapters."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    dtype = getattr(torch, option)
    results = {}
    for targets in (None, ALL_LINEARS, QUERY_VALUE):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype
        )
        if targets is not None:
            model = adapted(model, targets).to(dtype)
        for case in CASES:
            if (case.targets if case.num_adapters else None) == targets:
                results[case.key] = transformers_speed(model.eval(), case)
    return results


def adapted(model: Any, targets: Sequence[str]) -> Any:
    import peft

    config = peft.LoraConfig(r=RANK, target_modules=list(targets), init_lora_weights=False)
    wrapped = peft.get_peft_model(model, config, adapter_name="0")
    for seed in range(1, 8):
        wrapped.add_adapter(str(seed), config)
    wrapped.set_adapter("0")
    return wrapped


@torch.inference_mode()
def transformers_speed(model: Any, case: Case) -> float:
    import transformers

    names = [str(i % case.num_adapters) for i in range(case.num_requests) if case.num_adapters > 1]
    mixed = {"adapter_names": names} if names else {}
    cache = transformers.DynamicCache(config=model.config)
    ids = torch.tensor([prompt(number) for number in range(case.num_requests)])

    def step() -> None:
        nonlocal ids
        output = model(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **mixed
        )
        ids = output.logits[:, -1].argmax(-1, keepdim=True)

    step()
    step()
    return speed(case, step)


def llama_cpp_peer(file: Path, _option: str) -> Results:
    """Measure llama.cpp: one batch for all requests of an adapter, one after another."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            files = [
                write_gguf_adapter(file, Path(folder) / f"{case.key}-{seed}.gguf", case, seed)
                for seed in range(case.num_adapters)
            ]
            results[case.key] = llama_cpp_speed(file, case, files)
            for each in files:
                each.unlink()
    return results


def write_gguf_adapter(base: Path, target: Path, case: Case, seed: int) -> Path:
    """Write a random adapter as convert_lora_to_gguf lays it out."""
    import gguf

    names = {
        "q_proj": "attn_q",
        "k_proj": "attn_k",
        "v_proj": "attn_v",
        "o_proj": "attn_output",
        "gate_proj": "ffn_gate",
        "up_proj": "ffn_up",
        "down_proj": "ffn_down",
    }
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    generator = torch.Generator().manual_seed(seed)
    wanted = tuple(f".{names[target]}.weight" for target in case.targets)
    for tensor in gguf.GGUFReader(base).tensors:
        if tensor.name.endswith(wanted):
            inputs, outputs = (int(size) for size in tensor.shape)
            for part, shape in (("lora_a", (RANK, inputs)), ("lora_b", (outputs, RANK))):
                values = torch.randn(shape, generator=generator) * 0.01
                writer.add_tensor(f"{tensor.name}.{part}", values.half().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


class LlamaBatches:
    """A context of llama.cpp whose sequences continue with their most likely tokens."""

    def __init__(self, file: Path, case: Case, files: Iterable[Path]) -> None:
        import llama_cpp as api

        self._api = api
        self._model = api.llama_model_load_from_file(
            str(file).encode(), api.llama_model_default_params()
        )
        options = api.llama_context_default_params()
        options.n_ctx, options.n_seq_max = 128 * case.num_requests, case.num_requests
        options.n_batch = options.n_ubatch = 512
        options.n_threads = options.n_threads_batch = 1
        options.kv_unified = True
        self._context = api.llama_init_from_model(self._model, options)
        self._adapters = [
            api.llama_adapter_lora_init(self._model, str(each).encode()) for each in files
        ]
        assert all(self._adapters), "llama.cpp refuses an adapter"
        vocabulary = api.llama_model_get_vocab(self._model)
        self._vocab_size = api.llama_vocab_n_tokens(vocabulary)
        self._batch = api.llama_batch_init(512, 0, 1)
        self._tokens = [list(prompt(number)) for number in range(case.num_requests)]
        self._position = 0

    def step(self) -> None:
        """One step of all sequences; one after another for the sequences of each adapter."""
        num_tokens = len(self._tokens[0])
        for which, adapter in enumerate(self._adapters or [None]):
            if adapter is not None:
                one = (self._api.llama_adapter_lora_p_ctypes * 1)(adapter)
                scale = (ctypes.c_float * 1)(1.0)
                self._api.llama_set_adapters_lora(self._context, one, 1, scale)
            self._decode(range(which, len(self._tokens), len(self._adapters) or 1))
        self._position += num_tokens

    def _decode(self, numbers: Iterable[int]) -> None:
        import numpy as np

        batch, last = self._batch, {}
        batch.n_tokens = 0
        for number in numbers:
            for i, token in enumerate(self._tokens[number]):
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, self._position + i
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, number
                batch.logits[at] = i == len(self._tokens[number]) - 1
                batch.n_tokens += 1
            last[number] = batch.n_tokens - 1
        assert self._api.llama_decode(self._context, batch) == 0, "llama.cpp has failed"
        for number, at in last.items():
            logits = self._api.llama_get_logits_ith(self._context, at)
            row = np.ctypeslib.as_array(logits, shape=(self._vocab_size,))
            self._tokens[number] = [int(row.argmax())]

    def close(self) -> None:
        self._api.llama_batch_free(self._batch)
        self._api.llama_free(self._context)
        self._api.llama_model_free(self._model)


def llama_cpp_speed(file: Path, case: Case, files: Iterable[Path]) -> float:
    batches = LlamaBatches(file, case, files)
    batches.step()
    batches.step()
    result = speed(case, batches.step)
    batches.close()
    return result
