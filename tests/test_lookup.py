from pathlib import Path

import pytest

from hyprstream import lookup
from hyprstream.errors import UnsupportedError, UnsupportedRegistryError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    folder = tmp_path / "colours_of_lookup"
    folder.mkdir()
    for name in ("__init__", "red", "green"):
        (folder / f"{name}.py").write_text("")
    (folder / "broken.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return folder.name


def test_names_are_the_file_names_and_nothing_is_imported(package: str):
    assert lookup.names(package) == ["broken", "green", "red"]


def test_a_module_is_loaded_by_its_name(package: str):
    assert lookup.load(package, "red", kind="colour").__name__ == f"{package}.red"


def test_an_alias_loads_the_module_that_serves_it(package: str):
    module = lookup.load(package, "crimson", kind="colour", aliases={"crimson": "red"})
    assert module.__name__ == f"{package}.red"


def test_an_unknown_name_is_refused_with_the_known_ones(package: str):
    with pytest.raises(UnsupportedError, match="'blue'") as caught:
        lookup.load(package, "blue", kind="colour", aliases={"crimson": "red"})
    assert caught.value.hint == "Supported: broken, crimson, green, red."


def test_the_caller_chooses_which_error_is_raised(package: str):
    with pytest.raises(UnsupportedRegistryError):
        lookup.load(package, "blue", kind="colour", error=UnsupportedRegistryError)


@pytest.mark.parametrize("name", ["os", "..os", "__init__", "red.x", "", "../red", "os.path"])
def test_untrusted_text_does_not_reach_the_import_system(package: str, name: str):
    with pytest.raises(UnsupportedError):
        lookup.load(package, name, kind="colour")
