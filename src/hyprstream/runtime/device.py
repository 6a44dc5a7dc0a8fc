"""What this machine computes with: device, dtype, threads."""

import ctypes

import torch

from hyprstream.errors import InvalidSettingsError, UnsupportedError
from hyprstream.models.load import OpenModel
from hyprstream.models.native import kernels
from hyprstream.runtime.settings import Device, Dtype

# Options of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

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
    """Tell whether models in bfloat16 are faster than in float32: natively, or by our kernels."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    native = kernels()
    if native is not None and native.packed_is_fast:
        return True
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def choose_dtype(dtype: Dtype, device: torch.device, model: OpenModel) -> torch.dtype:
    """Pick the dtype of activations.

    `auto` is float32 for models stored in float32, and where bfloat16 is slower;
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


def settle_memory() -> None:
    """Give back what loading freed, and from now on keep what answers use, where glibc allows.

    Loading frees large pieces that glibc would keep: 8 MB of 130 for the default model. The
    activations of a prompt, in contrast, it would return to the system after every operation
    and get again page by page: 20,000 page faults, a fifth of the time of a first prompt of
    256 tokens.
    """
    libc = ctypes.CDLL(None)
    trim, set_option = (getattr(libc, name, None) for name in ("malloc_trim", "mallopt"))
    if trim is None or set_option is None:
        return
    trim(0)
    set_option(_M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc accepts
    set_option(_M_TRIM_THRESHOLD, 128 << 20)
