"""The generated pages of docs/reference say what the code says."""

import subprocess
import sys

from tests.project.sources import ROOT


def test_reference_pages_are_fresh():
    """In a process of its own: the shape checks of the tests would wrap what is described."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.generate_reference", "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=50,
    )
    assert (done.returncode, done.stderr) == (0, "")
