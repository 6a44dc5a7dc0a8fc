"""The kernels under the sanitizers of the compiler: their own tests, run on a build with checks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hyprstream
from hyprstream.kernels.native import FILE

ROOT = Path(__file__).parents[2]
TESTS = [
    "tests/models/test_native.py",
    "tests/models/quant/test_dense.py",
    "tests/models/quant/test_differentiable.py",
    "tests/models/quant/test_packed.py",
    "tests/lora/test_native_rows.py",
    "tests/engine/test_peaks.py",
    "tests/engine/test_eight_bits.py",
    "tests/engine/test_paged_attention.py",
    "tests/engine/test_native_layers.py",
]
FLAGS = ["-std=c++17", "-O1", "-g", "-ffp-contract=fast", "-fno-math-errno", "-Wno-psabi"]
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # compiles all kernels, and runs nine files of tests
def test_kernels_read_and_write_only_what_is_theirs(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++, whose sanitizers these are")
    found = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    if not Path(found.stdout.strip()).is_absolute():
        pytest.skip("this compiler has no address sanitizer")
    package = tmp_path / "hyprstream"
    shutil.copytree(Path(hyprstream.__file__).parent, package)
    library = package / "kernels" / FILE.name
    sources = sorted(str(file) for file in FILE.parent.glob("*.cpp"))
    command = [compiler, *FLAGS, *CHECKS, "-pthread", "-shared", "-fPIC", "-o", str(library)]
    subprocess.run([*command, *sources], check=True, timeout=600)
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "LD_PRELOAD": found.stdout.strip(),
        # Python and torch leave to the system what they hold at the end.
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    assert "passed" in done.stdout
    assert "no kernels were compiled" not in done.stdout
