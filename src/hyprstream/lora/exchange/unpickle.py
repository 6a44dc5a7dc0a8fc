"""Turns a pickled state dict into a safetensors file; run as a program by `guard.py`.

Reads with `weights_only=True`, which admits tensors and plain containers and calls nothing
that the file names. What is left are faults of the reader itself and floods of data: so this
runs in a process of its own, with limits. Imports nothing of this package.
"""

import json
import resource
import sys
from pathlib import Path

import torch

_KINDS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def as_safetensors(state: object, output_bytes: int) -> list[bytes]:
    """Lay out a state dict; its tensors may share or repeat memory, what is written does not.

    Raises:
        TypeError: It is no dict of names and tensors.
        KeyError: A tensor has another dtype.
        ValueError: It is larger than it may be.
    """
    if not isinstance(state, dict):
        raise TypeError("no state dict")
    header, parts, offset = {}, [], 0
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError("no state dict")
        # Counted before it is copied: a view can be longer than its memory.
        end = offset + tensor.numel() * tensor.element_size()
        if end > output_bytes:
            raise ValueError("too large")
        data = tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": _KINDS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        parts.append(data)
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text, *parts]


def _taken_bytes() -> int:
    """Return the addresses that torch takes for itself, which differ by an order of magnitude."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    return pages * resource.getpagesize()


def _main(seconds: int, memory_bytes: int, output_bytes: int, file: str, output: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    most = _taken_bytes() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (output_bytes, output_bytes))
    torch.set_num_threads(1)
    state = torch.load(file, map_location="cpu", weights_only=True)
    with output.open("wb") as stream:
        stream.writelines(as_safetensors(state, output_bytes))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], Path(sys.argv[5]))
