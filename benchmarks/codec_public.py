"""What needs no base model: adapters that others have trained, and speed at a real size."""

from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from benchmarks.codec_table import heading, peft_bytes, row, seconds
from benchmarks.trained import test_data
from hyprstream.vdb.codecs import neural
from hyprstream.vdb.learned.rate import Target
from hyprstream.vdb.tensors import SparseTensor

PUBLIC = ("gpt2_r8_cattn_cproj", "open-calm-1b_r1_qkv", "privacy-filter_r16_tokcls")
ERRORS = (0.1, 0.15, 0.36)
SHAPES_06B = {
    "self_attn.q_proj": (1024, 2048),
    "self_attn.k_proj": (1024, 1024),
    "self_attn.v_proj": (1024, 1024),
    "self_attn.o_proj": (2048, 1024),
    "mlp.gate_proj": (1024, 3072),
    "mlp.up_proj": (1024, 3072),
    "mlp.down_proj": (3072, 1024),
}


def public_adapters() -> None:
    """Adapters that others have trained, whose base models are not here: by error alone."""
    print("\nPublic adapters: PEFT file of their values in float32 / bytes")
    heading("adapter", "values", *(f"error {error}" for error in ERRORS))
    for name in PUBLIC:
        tensors = public_adapter(test_data() / "lora" / name)
        size = peft_bytes(tensors, np.float32)
        coded = [neural.encode(tensors, target=Target(error=error)) for error in ERRORS]
        num_values = sum(tensor.size for tensor in tensors.values())
        row(name, num_values, *(f"{size / len(encoded.data):.1f}" for encoded in coded))


def public_adapter(folder: Path) -> dict[str, SparseTensor]:
    arrays = load_file(folder / "adapter_model.safetensors")
    tensors = {}
    for key, array in arrays.items():
        path, _, side = key.partition(".lora_")
        if side in ("A.weight", "B.weight"):
            dense = np.ascontiguousarray(array.T.astype(np.float32))
            name = f"{path.replace('/', '.')}/low_rank/{side[0].lower()}"
            tensors[name] = SparseTensor.from_dense(dense, "float32")
    return tensors


def speed(rounds: int) -> None:
    """A rank-16 adapter on every linear layer of Qwen3-0.6B, of random numbers."""
    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(28):
        for path, (inputs, outputs) in SHAPES_06B.items():
            fall = rng.lognormal(0, 0.7, 16)
            sides = rng.standard_normal((inputs, 16)) * fall, rng.standard_normal((16, outputs))
            for side, array in zip("ab", sides, strict=True):
                name = f"layers.{layer}.{path}/low_rank/{side}"
                tensors[name] = SparseTensor.from_dense((array / 50).astype(np.float32), "float32")
    encoded = neural.encode(tensors)
    num_values = sum(tensor.size for tensor in tensors.values())
    print(f"\nAn adapter of Qwen3-0.6B's shape, {num_values} values, {len(encoded.data)} bytes: "
          f"encode {seconds(lambda: neural.encode(tensors), 1):.2f} s, "
          f"decode {seconds(lambda: neural.decode(encoded.data), rounds):.3f} s")  # fmt: skip
