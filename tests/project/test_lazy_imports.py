"""What has to start fast imports no torch; each in a process of its own."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "hyprstream",
        "hyprstream.cli.main",
        "hyprstream.catalog.catalog",
        "hyprstream.engine.request",
        "hyprstream.runtime.settings",
        "hyprstream.store.store",
    ],
)
def test_imports_neither_torch_nor_numpy(module):
    program = (
        f"import sys, {module}\n"
        "print(*sorted({'torch', 'numpy', 'tokenizers', 'jinja2'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.split() == []
