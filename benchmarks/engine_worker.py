"""Many requests at a time on one engine, one process, one thread: prints JSON.

Times are processor seconds, of all threads of the process. Prompts have one length and all
requests are in the batch before the clock starts, so that peers need no padding.
"""

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_cases import CASES, NEW_TOKENS, RANK, Case, prompt
from benchmarks.engine_peers import llama_cpp_peer, transformers_peer
from hyprstream.engine.assembly import build_core
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.core import EngineCore
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.refs import RequestId, VersionId
from hyprstream.runtime.device import choose_dtype

Results = dict[str, float]


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


def adapter(model: Decoder, seed: int, targets: Sequence[str]) -> LoraWeights:
    """A random adapter on the named linear layers of the blocks."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for path, (outputs, inputs) in model.linears.items():
        if path.startswith("layers.") and path.endswith(tuple(targets)):
            a = torch.randn(inputs, RANK, generator=generator) * 0.01
            b = torch.randn(RANK, outputs, generator=generator) * 0.01
            modules[path] = LowRank(a.to(model.dtype), b.to(model.dtype))
    return LoraWeights(modules)


def core_of(model: Decoder, case: Case | None = None, **options: Any) -> EngineCore:
    config = EngineConfig(
        **{"max_drafts": 0, "num_slots": 8, "kv_memory_bytes": 1 << 28, **options}
    )
    core = build_core(model, config)
    for seed in range(case.num_adapters if case else 0):
        assert case is not None
        core.install(VersionId(str(seed)), adapter(model, seed, case.targets))
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


def decode_speed(model: Decoder, case: Case) -> float:
    """Tokens per second of all requests together, after their prompts."""
    core = core_of(model, case)
    for number in range(case.num_requests):
        core.add(request(number, prompt(number), NEW_TOKENS + 2, case.num_adapters))
    for _ in range(2):  # the prompts, and a step that allocates
        core.step()
    num_tokens, seconds = drain(core)
    return num_tokens / seconds


def ours(file: Path, option: str) -> Results:
    model = load(file, option)
    results = {case.key: decode_speed(model, case) for case in CASES}
    return results | gains(model)


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


def main(engine: str, file: str, option: str) -> None:
    torch.set_num_threads(1)
    measure = {"hyprstream": ours, "transformers": transformers_peer, "llama.cpp": llama_cpp_peer}[
        engine
    ]
    json.dump(measure(Path(file), option), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
