"""One engine, one model, one process, one thread: prints what it measured as JSON.

Times are processor seconds of this process, so that busy neighbours do not count; sizes are
resident bytes beyond what the interpreter and the libraries take.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROMPT_TOKENS = 256
NEW_TOKENS = 48

# Loads a model and returns: compute a prompt and give a token; compute that and give the next.
Steps = tuple[Callable[[list[int]], int], Callable[[int], int]]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not say VmHWM")


def hyprstream_steps(path: str, option: str) -> Callable[[], Steps]:
    import torch

    from hyprstream.engine.generate import next_logits
    from hyprstream.engine.kv_cache import SequenceCache
    from hyprstream.models.decoder import Decoder
    from hyprstream.models.load import open_model
    from hyprstream.models.quant import Quantization
    from hyprstream.runtime.device import choose_dtype

    torch.set_num_threads(1)

    def load() -> Steps:
        opened = open_model(Path(path))
        cpu = torch.device("cpu")
        quantizations: dict[str, Quantization] = {"int8": "int8", "int4": "int4"}
        model = opened.load(
            device=cpu,
            dtype=choose_dtype("bfloat16" if option == "bfloat16" else "auto", cpu, opened),
            quantization=quantizations.get(option),
            expand=option == "bfloat16",
        )
        assert isinstance(model, Decoder)
        cache = SequenceCache(model.config, model.dtype, model.device)

        def compute(ids: list[int]) -> int:
            return int(next_logits(model, cache, ids).argmax())

        return compute, lambda token: compute([token])

    return load


def transformers_steps(path: str, option: str) -> Callable[[], Steps]:
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    def load() -> Steps:
        file = Path(path)
        source = {"gguf_file": file.name} if file.suffix == ".gguf" else {}
        folder = file.parent if file.suffix == ".gguf" else file
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, option), **source
        ).eval()
        cache = transformers.DynamicCache(config=model.config)

        @torch.inference_mode()
        def compute(ids: list[int]) -> int:
            output = model(
                input_ids=torch.tensor([ids]),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            return int(output.logits[0, -1].argmax())

        return compute, lambda token: compute([token])

    return load


def llama_cpp_steps(path: str, _option: str) -> Callable[[], Steps]:
    import ctypes

    import llama_cpp

    def load() -> Steps:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p())
        model = llama_cpp.llama_model_load_from_file(
            path.encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = 2048, 512, 512
        params.n_threads = params.n_threads_batch = 1
        context = llama_cpp.llama_init_from_model(model, params)
        size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

        def compute(ids: list[int]) -> int:
            import numpy as np

            array = (ctypes.c_int32 * len(ids))(*ids)
            batch = llama_cpp.llama_batch_get_one(array, len(ids))
            assert llama_cpp.llama_decode(context, batch) == 0
            logits = llama_cpp.llama_get_logits_ith(context, -1)
            return int(np.ctypeslib.as_array(logits, shape=(size,)).argmax())

        return compute, lambda token: compute([token])

    _silent = llama_cpp.llama_log_callback(lambda *_: None)
    return load


ENGINES = {
    "hyprstream": hyprstream_steps,
    "transformers": transformers_steps,
    "llama.cpp": llama_cpp_steps,
}


def main(engine: str, path: str, option: str) -> None:
    prepare = ENGINES[engine](path, option)
    before = resident_bytes()
    started = time.process_time()
    prompt, step = prepare()
    loaded = time.process_time()
    resident = resident_bytes() - before
    token = prompt([(7 * i) % 1000 + 20 for i in range(PROMPT_TOKENS)])
    first = time.process_time()
    for _ in range(4):  # the first steps allocate
        token = step(token)
    warm = time.process_time()
    for _ in range(NEW_TOKENS):
        token = step(token)
    ended = time.process_time()
    json.dump(
        {
            "load_s": loaded - started,
            "prefill_tokens_per_s": PROMPT_TOKENS / (first - loaded),
            "decode_tokens_per_s": NEW_TOKENS / (ended - warm),
            "resident_bytes": resident,
            "resident_after_bytes": resident_bytes() - before,
            "peak_bytes": peak_bytes() - before,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
