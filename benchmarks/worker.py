"""One engine, one model, one process: prints what it measured as JSON.

With one thread times are processor seconds of this process, so that busy neighbours do not
count; with more of them, wall seconds. Sizes are resident bytes beyond what the interpreter and
the libraries take.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.vllm_peer import vllm_steps

PROMPT_TOKENS = int(os.environ.get("HYPRSTREAM_BENCH_PROMPT", "256"))
NEW_TOKENS = 48
NUM_THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
KV_CACHE_DTYPE = os.environ.get("HYPRSTREAM_BENCH_KV", "auto")

# Begin a sequence with a prompt and give the next token; go on with a token and give the next.
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

    from hyprstream.engine.config import KvCacheDtype
    from hyprstream.engine.generate import next_logits
    from hyprstream.engine.kv_cache import SequenceCache
    from hyprstream.models.decoder import Decoder
    from hyprstream.models.load import open_model
    from hyprstream.models.quant import Quantization
    from hyprstream.runtime.device import choose_dtype, settle_memory

    torch.set_num_threads(NUM_THREADS)

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
        settle_memory()  # as Model.load does
        kinds: dict[str, KvCacheDtype] = {"auto": "auto", "int8": "int8"}
        kind = kinds[KV_CACHE_DTYPE]
        cache = SequenceCache(model.config, model.dtype, model.device, kind)

        def compute(ids: list[int]) -> int:
            return int(next_logits(model, cache, ids).argmax())

        def begin(ids: list[int]) -> int:
            nonlocal cache
            cache = SequenceCache(model.config, model.dtype, model.device, kind)
            return compute(ids)

        return begin, lambda token: compute([token])

    return load


def transformers_steps(path: str, option: str) -> Callable[[], Steps]:
    import torch
    import transformers

    torch.set_num_threads(NUM_THREADS)
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

        def begin(ids: list[int]) -> int:
            nonlocal cache
            cache = transformers.DynamicCache(config=model.config)
            return compute(ids)

        return begin, lambda token: compute([token])

    return load


def llama_cpp_steps(path: str, _option: str) -> Callable[[], Steps]:
    import llama_cpp
    import numpy as np

    def load() -> Steps:
        model = llama_cpp.Llama(
            path,
            n_ctx=2048,
            n_batch=512,
            n_ubatch=512,
            n_threads=NUM_THREADS,
            n_threads_batch=NUM_THREADS,
            verbose=False,
        )

        def compute(ids: list[int]) -> int:
            model.eval(ids)
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            return int(np.ctypeslib.as_array(logits, shape=(model.n_vocab(),)).argmax())

        def begin(ids: list[int]) -> int:
            model.reset()
            return compute(ids)

        return begin, lambda token: compute([token])

    return load


ENGINES = {
    "hyprstream": hyprstream_steps,
    "transformers": transformers_steps,
    "llama.cpp": llama_cpp_steps,
    "vllm": vllm_steps,
}


def main(engine: str, path: str, option: str) -> None:
    clock = time.process_time if NUM_THREADS == 1 else time.perf_counter
    prepare = ENGINES[engine](path, option)
    before = resident_bytes()
    started = clock()
    prompt, step = prepare()
    loaded = clock()
    resident = resident_bytes() - before
    ids = [(7 * i) % 1000 + 20 for i in range(PROMPT_TOKENS)]
    prompt(ids)  # the first prompt also touches the weights and sets up the libraries
    ready = clock()
    token = prompt(ids)
    first = clock()
    for _ in range(4):  # the first steps allocate
        token = step(token)
    warm = clock()
    for _ in range(NEW_TOKENS):
        token = step(token)
    ended = clock()
    json.dump(
        {
            "load_s": loaded - started,
            "prefill_tokens_per_s": PROMPT_TOKENS / (first - ready),
            "decode_tokens_per_s": NEW_TOKENS / (ended - warm),
            "resident_bytes": resident,
            "resident_after_bytes": resident_bytes() - before,
            "peak_bytes": peak_bytes() - before,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
