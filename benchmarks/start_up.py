"""From the command to the first token, imports and loading included, as a user waits for it."""

import os
import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from benchmarks.models import default_model

PROMPT = "The capital of France is"

TRANSFORMERS = """
import sys, torch, transformers
from pathlib import Path
file = Path(sys.argv[1])
model = transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.bfloat16)
tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
ids = tokenizer(sys.argv[2], return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens=1, do_sample=False)[0]))
"""

LLAMA_CPP = """
import sys, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=2048, verbose=False)
print(model(sys.argv[2], max_tokens=1, temperature=0)["choices"][0]["text"])
"""


def wait_s(command: list[str]) -> float:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    started = time.perf_counter()
    subprocess.run(command, env=environment, capture_output=True, check=True)
    return time.perf_counter() - started


def main(rounds: int) -> None:
    file = str(default_model())
    program = Path(sys.executable).with_name("hyprstream")
    options = ["--raw", "--max-tokens", "1", "--temperature", "0"]
    commands = {
        "hyprstream --help": [str(program), "--help"],
        "hyprstream infer": [str(program), "infer", file, "--prompt", PROMPT, *options],
        "transformers": [sys.executable, "-c", TRANSFORMERS, file, PROMPT],
    }
    if find_spec("llama_cpp") is not None:
        commands["llama.cpp (llama-cpp-python)"] = [sys.executable, "-c", LLAMA_CPP, file, PROMPT]
    waits: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            waits[name].append(wait_s(command))
    print(f"\nFrom command to first token, wall seconds ({rounds} interleaved rounds)")
    print("| command | median | least | most |\n|---|---|---|---|")
    for name, seconds in waits.items():
        print(
            f"| {name} | {statistics.median(seconds):.2f} "
            f"| {min(seconds):.2f} | {max(seconds):.2f} |"
        )
