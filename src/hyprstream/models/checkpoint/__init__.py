"""Files to named tensors: mapped, validated, never copied without need.

`open_checkpoint` takes a file or a folder. Every count, length, offset, shape and type in a
file is checked in unbounded integers against the file's size before anything is allocated or
given out; a damaged file is a `CorruptWeightsError`, an unknown one an
`UnsupportedFormatError`, and there is no third outcome.
"""

from hyprstream.models.checkpoint.folder import open_checkpoint
from hyprstream.models.checkpoint.gguf import BLOCK_TYPES, GgufFile
from hyprstream.models.checkpoint.safetensors import SafetensorsFile, open_safetensors
from hyprstream.models.checkpoint.tensors import DTYPES, Checkpoint, TensorInfo

__all__ = [
    "BLOCK_TYPES",
    "DTYPES",
    "Checkpoint",
    "GgufFile",
    "SafetensorsFile",
    "TensorInfo",
    "open_checkpoint",
    "open_safetensors",
]
