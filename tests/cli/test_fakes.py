"""The fakes promise no more than the real runtime keeps."""

import inspect

import pytest

from hyprstream import runtime
from hyprstream.cli.progress import TransferProgress
from tests.cli.fakes import FakeCatalog, FakeGeneration, FakeInfo, FakeModel, FakeRuntime


def _public(kind):
    return {name for name in dir(kind) if not name.startswith("_")} - {"closed"}


@pytest.mark.parametrize(
    ("fake", "name"),
    [(FakeCatalog, "Catalog"), (FakeGeneration, "Generation"), (FakeModel, "Model")],
)
def test_every_method_of_a_fake_is_one_of_the_real_class(fake, name):
    real = getattr(runtime, name)
    for method in _public(fake):
        if not inspect.isfunction(getattr(fake, method)):
            assert hasattr(real, method)
            continue
        wanted = inspect.signature(getattr(fake, method)).parameters
        given = inspect.signature(getattr(real, method)).parameters
        assert set(wanted) - {"_"} <= set(given), method


def test_the_fake_description_has_the_fields_of_the_real_one():
    assert _public(FakeInfo()) == _public(runtime.ModelInfo) | set(
        runtime.ModelInfo.__dataclass_fields__
    )


def test_the_progress_display_is_what_the_catalog_calls():
    assert issubclass(TransferProgress, runtime.Progress)


@pytest.mark.parametrize("name", sorted(_public(FakeRuntime) - set(vars(FakeRuntime()))))
def test_every_function_of_the_fake_runtime_is_offered_by_the_real_one(name):
    assert name in runtime.__all__
