"""Every test runs offline, with the shape annotations of the source executed."""

import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("HF_HUB_OFFLINE", "1")

_hook = install_import_hook("hyprstream", "beartype.beartype")


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real test data, if this machine has it."""
    folder = os.environ.get("HYPRSTREAM_TEST_DATA")
    if not folder:
        pytest.skip("HYPRSTREAM_TEST_DATA is not set: real test data is not on this machine")
    return Path(folder)
