"""Judge the files of a folder in a process of its own, on 200 MB more than it starts with.

Prints one JSON object: file -> [verdict, seconds]. A limit on the address space makes too large
a claim on memory a MemoryError, and so a verdict of its own, however short it lasts.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch

from hyprstream.errors import CorruptWeightsError, UnsupportedFormatError
from hyprstream.models.checkpoint import DTYPES, Checkpoint, open_checkpoint

EXTRA_BYTES = 200_000_000


def read_all(checkpoint: Checkpoint) -> None:
    """Read every byte of every tensor, in both forms."""
    with checkpoint:
        for name in checkpoint.names():
            info = checkpoint.info(name)
            blocks = checkpoint.blocks(name)
            assert blocks.shape[:-1] == info.shape[:-1]
            assert blocks.nbytes == info.size_bytes
            int(blocks.sum())
            if info.kind in DTYPES:
                tensor = checkpoint.tensor(name)
                assert (tensor.shape, tensor.dtype) == (info.shape, DTYPES[info.kind])
                assert tensor.nbytes == info.size_bytes
                tensor.clone()
            checkpoint.release(name)


def verdict(file: Path) -> str:
    try:
        read_all(open_checkpoint(file))
    except (CorruptWeightsError, UnsupportedFormatError):
        return "reject"
    except (Exception, MemoryError) as error:  # noqa: BLE001  # it is reported as the verdict
        return f"{type(error).__name__}: {error}"
    return "accept"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + EXTRA_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    results = {}
    for file in sorted(folder.iterdir()):
        start = time.perf_counter()
        results[file.name] = (verdict(file), time.perf_counter() - start)
    sys.stdout.write(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
