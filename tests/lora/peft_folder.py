"""A folder as PEFT writes it, read with the reference library; for tests only."""

import json
from pathlib import Path

from safetensors.torch import load_file

from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights

PREFIX = "base_model.model."


def read_peft_folder(folder: Path) -> LoraWeights:
    config = json.loads((folder / "adapter_config.json").read_text())
    spec = LoraSpec(
        rank=config["r"],
        alpha=config["lora_alpha"],
        use_rslora=config["use_rslora"],
        targets=tuple(config["target_modules"]),
    )
    tensors = load_file(folder / "adapter_model.safetensors")
    modules = {}
    for name, a in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        stem = name.removesuffix(".lora_A.weight")
        b = tensors[f"{stem}.lora_B.weight"]
        path = stem.removeprefix(PREFIX).removeprefix("model.")
        modules[path] = LowRank(a.T, b.T * spec.scale)
    assert 2 * len(modules) == len(tensors), "every tensor is a part of a plain low-rank module"
    assert sorted(spec.targeted(modules)) == sorted(modules)
    return LoraWeights(modules)
