"""What packages offer exists, and what loads lazily is what the type checker is told."""

import ast
from importlib import import_module

import pytest

from tests.project.sources import modules

MODULES = dict(modules())
LAZY = ["hyprstream", "hyprstream.runtime"]


def _imports_for_the_type_checker(tree: ast.Module) -> dict[str, str]:
    """Name -> module of what is imported under `if TYPE_CHECKING`."""
    found = {}
    for node in tree.body:
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING"), body=body):
                for statement in body:
                    assert isinstance(statement, ast.ImportFrom)
                    for alias in statement.names:
                        found[alias.name] = str(statement.module)
    return found


def _exports(tree: ast.Module) -> list[str] | None:
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                names: list[str] = ast.literal_eval(value)
                return names
    return None


@pytest.mark.parametrize("name", [name for name, tree in MODULES.items() if _exports(tree)])
def test_every_exported_name_exists(name):
    exports = _exports(MODULES[name]) or []
    assert len(set(exports)) == len(exports)
    for exported in exports:
        assert getattr(import_module(name), exported) is not None


@pytest.mark.parametrize("package", LAZY)
def test_lazy_names_are_those_that_the_type_checker_sees(package):
    expected = _imports_for_the_type_checker(MODULES[package])
    assert expected
    assert set(_exports(MODULES[package]) or []) - {"__version__"} == set(expected)
    for name, home in expected.items():
        assert getattr(import_module(package), name) is getattr(import_module(home), name)


@pytest.mark.parametrize("package", LAZY)
def test_a_name_that_is_not_there_is_an_attribute_error(package):
    with pytest.raises(AttributeError, match=f"{package}.* has no attribute 'nothing'"):
        _ = import_module(package).nothing
