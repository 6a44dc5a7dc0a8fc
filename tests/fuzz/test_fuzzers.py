"""Coverage-guided fuzzing of what reads untrusted bytes; part of `make test-all`."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = 60
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(SECONDS * 3),
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None,
        reason="atheris is not installed: pip install atheris",
    ),
]


@pytest.mark.parametrize("reader", ["codec", "gguf", "grid", "safetensors"])
def test_no_input_found_in_a_minute_breaks_the_reader(tmp_path, reader):
    command = [sys.executable, "-m", f"tests.fuzz.fuzz_{reader}", str(SECONDS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done" in done.stderr  # libFuzzer's last words after a full run
