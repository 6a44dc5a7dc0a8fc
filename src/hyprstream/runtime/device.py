"""What this machine computes with: device, dtype, threads."""

import ctypes

import torch

from hyprstream.errors import InvalidSettingsError, UnsupportedError
from hyprstream.models.load import OpenModel
from hyprstream.runtime.settings import Device, Dtype

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: Device) -> torch.device:
    """Pick the device to compute on.

    Raises:
        UnsupportedError: CUDA was asked for and is not there.
    """
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UnsupportedError(
            "device is cuda, and this machine offers torch no CUDA device",
            hint="Use --device cpu, or install a CUDA build of torch and its driver.",
        )
    return torch.device("cuda" if has_cuda and device != "cpu" else "cpu")


def computes_bfloat16(device: torch.device) -> bool:
    """Tell whether bfloat16 arithmetic is native, and so faster than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def choose_dtype(dtype: Dtype, device: torch.device, model: OpenModel) -> torch.dtype:
    """Pick the dtype of activations.

    `auto` is float32 for models stored in float32, and where bfloat16 is not native;
    bfloat16 for everything else. float16 models become bfloat16 on a CPU, which has no
    float16 arithmetic worth the name.
    """
    if dtype != "auto":
        return _DTYPES[dtype]
    checkpoint = model.checkpoint
    kinds = {info.kind for info in map(checkpoint.info, checkpoint.names()) if len(info.shape) > 1}
    if kinds <= {"F32", "F64"} or not computes_bfloat16(device):
        return torch.float32
    if device.type == "cuda" and kinds <= {"F16", "F32"}:
        return torch.float16
    return torch.bfloat16


def set_threads(num_threads: int) -> None:
    """Limit the processor threads of this process.

    Raises:
        InvalidSettingsError: The number is below 1.
    """
    if num_threads < 1:
        raise InvalidSettingsError(f"threads is {num_threads}", hint="threads must be 1 or more.")
    torch.set_num_threads(num_threads)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library can be told to.

    Loading frees large pieces, after which glibc keeps pieces of that size for itself; on
    the default model that is 8 MB of 130.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
