"""Many requests at a time on one engine, one process, one thread: prints JSON.

Times are processor seconds, of all threads of the process. Prompts have one length and all
requests are in the batch before the clock starts, so that peers need no padding.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hyprstream.engine.assembly import build_core
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.core import EngineCore
from hyprstream.engine.engine import Engine
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.refs import RequestId, VersionId
from hyprstream.runtime.device import choose_dtype

PROMPT_TOKENS = 32
NEW_TOKENS = 24
RANK = 16
# Concurrent requests and distinct adapters, 0 for the base model.
CASES = ((1, 0), (8, 0), (16, 0), (1, 1), (8, 1), (16, 1), (8, 8), (16, 8))

Results = dict[str, float]


def prompt(number: int, length: int = PROMPT_TOKENS) -> tuple[int, ...]:
    """Tokens without repetition, different for every request."""
    return tuple((7 * i + 131 * number) % 40_000 + 20 for i in range(length))


def load(file: Path, option: str) -> Decoder:
    opened = open_model(file)
    cpu = torch.device("cpu")
    model = opened.load(
        device=cpu,
        dtype=choose_dtype("bfloat16" if option == "bfloat16" else "auto", cpu, opened),
        expand=option == "bfloat16",
    )
    assert isinstance(model, Decoder)
    return model


def adapter(model: Decoder, seed: int) -> LoraWeights:
    """A random adapter on every linear layer of the blocks."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for path, (outputs, inputs) in model.linears.items():
        if path.startswith("layers."):
            a = torch.randn(inputs, RANK, generator=generator) * 0.01
            b = torch.randn(RANK, outputs, generator=generator) * 0.01
            modules[path] = LowRank(a.to(model.dtype), b.to(model.dtype))
    return LoraWeights(modules)


def core_of(model: Decoder, num_adapters: int = 0, **options: Any) -> EngineCore:
    config = EngineConfig(
        **{"max_drafts": 0, "num_slots": 8, "kv_memory_bytes": 1 << 28, **options}
    )
    core = build_core(model, config)
    for seed in range(num_adapters):
        core.install(VersionId(str(seed)), adapter(model, seed))
    return core


def request(number: int, tokens: Sequence[int], num_new: int, num_adapters: int = 0) -> Request:
    return Request(
        id=RequestId(str(number)),
        token_ids=tuple(tokens),
        params=SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True),
        adapter=VersionId(str(number % num_adapters)) if num_adapters else None,
    )


def drain(core: EngineCore) -> tuple[int, float]:
    """Serve what is there; return the tokens that came and the seconds they took."""
    num_tokens, began = 0, time.process_time()
    while core.has_work:
        num_tokens += sum(event.token is not None for event in core.step())
    return num_tokens, time.process_time() - began


def decode_speed(model: Decoder, num_requests: int, num_adapters: int) -> float:
    """Tokens per second of all requests together, after their prompts."""
    core = core_of(model, num_adapters)
    for number in range(num_requests):
        core.add(request(number, prompt(number), NEW_TOKENS + 2, num_adapters))
    for _ in range(2):  # the prompts, and a step that allocates
        core.step()
    num_tokens, seconds = drain(core)
    return num_tokens / seconds


def ours(file: Path, option: str) -> Results:
    model = load(file, option)
    results = {f"{n}x{a}": decode_speed(model, n, a) for n, a in CASES}
    results |= gains(model)
    results["overhead_ms"] = overhead_ms(model)
    return results


def gains(model: Decoder) -> Results:
    """What prefixes, chunks and drafts change, each beside the same without."""
    core = core_of(model)
    times = {}
    for name, number in (("cold", 0), ("hit", 1)):
        core.add(request(number, prompt(0, 512), 1))
        times[name] = drain(core)[1]
    results = {"prefix_cold_s": times["cold"], "prefix_hit_s": times["hit"]}
    for name, budget in (("whole", 2048), ("chunked", 64)):
        results[f"longest_step_{name}_s"] = longest_step(model, budget)
    # Text that repeats itself, as quoted or edited text does.
    quoted = prompt(3, 24) * 8
    for name, max_drafts in (("plain", 0), ("drafts", 4)):
        core = core_of(model, max_drafts=max_drafts)
        core.add(request(0, quoted, 96))
        core.step()
        num_tokens, seconds = drain(core)
        results[f"speculation_{name}"] = num_tokens / seconds
    return results


def longest_step(model: Decoder, budget: int) -> float:
    """How long four running requests wait at most while a long prompt comes in."""
    core = core_of(model, max_batch_tokens=budget, max_sequences=16)
    for number in range(4):
        core.add(request(number, prompt(number), 64))
    for _ in range(8):
        core.step()
    core.add(request(9, prompt(9, 1024), 2))
    longest = 0.0
    while RequestId("9") in core:
        began = time.process_time()
        core.step()
        longest = max(longest, time.process_time() - began)
    core.abort_all()
    return longest


def overhead_ms(model: Decoder, num_requests: int = 16) -> float:
    """Milliseconds per step outside the model, streams to the event loop included."""
    import asyncio

    inside = 0.0
    num_steps = 0

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal inside
            began = time.thread_time()
            try:
                return function(*arguments)
            finally:
                inside += time.thread_time() - began

        return call

    core = core_of(model, kv_memory_bytes=1 << 26)  # soon all used before, as in a long run
    config = EngineConfig()
    forward, logits, step = model.forward, model.logits, core.step

    def counted() -> Any:
        nonlocal num_steps
        num_steps += 1
        return step()

    vars(model).update(forward=timed(forward), logits=timed(logits))
    vars(core).update(step=counted)

    async def serve() -> float:
        async with Engine(core, config) as engine:

            async def read(stream: Any) -> None:
                async for _ in stream:
                    pass

            for _ in range(3):
                streams = [engine.submit(request(n, prompt(n), 64)) for n in range(num_requests)]
                await asyncio.gather(*(read(stream) for stream in streams))
            streams = [engine.submit(request(n, prompt(n), 64)) for n in range(num_requests)]
            for stream in streams:
                await anext(stream)
            nonlocal inside, num_steps
            inside, num_steps = 0.0, 0
            began = time.process_time()
            await asyncio.gather(*(read(stream) for stream in streams))
            return time.process_time() - began

    seconds = asyncio.run(serve())
    del vars(model)["forward"], vars(model)["logits"]
    return 1000 * (seconds - inside) / num_steps


def peer(file: Path, option: str) -> Results:
    """Measure transformers and PEFT: one batch, `adapter_names` for mixed adapters."""
    import peft
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    base = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=getattr(torch, option)
    ).eval()
    results = {f"{n}x{a}": peer_speed(base, n, []) for n, a in CASES if a == 0}
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = peft.LoraConfig(r=RANK, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(base, config, adapter_name="0")
    for seed in range(1, 8):
        model.add_adapter(str(seed), config)
    model = model.to(getattr(torch, option)).eval()
    model.set_adapter("0")
    for n, a in CASES:
        if a:
            results[f"{n}x{a}"] = peer_speed(model, n, [str(i % a) for i in range(n)] * (a > 1))
    return results


@torch.inference_mode()
def peer_speed(model: Any, num_requests: int, adapters: list[str]) -> float:
    import transformers

    mixed = {"adapter_names": adapters} if adapters else {}
    cache = transformers.DynamicCache(config=model.config)
    ids = torch.tensor([prompt(number) for number in range(num_requests)])

    def step(ids: torch.Tensor) -> torch.Tensor:
        output = model(
            input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **mixed
        )
        return output.logits[:, -1].argmax(-1, keepdim=True)

    ids = step(step(ids))
    began = time.process_time()
    for _ in range(NEW_TOKENS):
        ids = step(ids)
    return num_requests * NEW_TOKENS / (time.process_time() - began)


def main(engine: str, file: str, option: str) -> None:
    torch.set_num_threads(1)
    measure = {"hyprstream": ours, "transformers": peer}[engine]
    json.dump(measure(Path(file), option), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
