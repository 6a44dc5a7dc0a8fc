"""Compile the native kernels while the package is installed, where that is possible.

Without a compiler, or if it fails, the installation goes on: the package is then slower in
places and otherwise the same. `hyprstream doctor` says which it is.
"""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_FLAGS = (
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-Wno-psabi",
    "-shared",
    "-fPIC",
)
_SECONDS = 300


class NativeKernels(BuildHookInterface):
    """Puts libnative.so beside its sources, and into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Compile; called by hatchling before it collects files.

        Args:
            version: `standard` for a wheel, `editable` for a link to the sources.
            build_data: What the wheel will hold.
        """
        folder = Path(self.root) / "src" / "hyprstream" / "kernels"
        target = folder / "libnative.so"
        target.unlink(missing_ok=True)
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
        if compiler is None:
            self.app.display_warning("no C++ compiler: answers will be slower on the processor")
            return
        scratch = target.with_suffix(".new")
        sources = sorted(str(file) for file in folder.glob("*.cpp"))
        command = [compiler, *_FLAGS, "-o", str(scratch), *sources]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_SECONDS)  # noqa: S603
        except (OSError, subprocess.SubprocessError) as error:
            scratch.unlink(missing_ok=True)
            self.app.display_warning(f"the native kernels were not compiled: {error}")
            return
        scratch.replace(target)
        build_data["artifacts"].append("src/hyprstream/kernels/libnative.so")
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
