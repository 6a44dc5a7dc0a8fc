"""No module holds state: two models, two caches and two runtimes live in one process.

A container at module level is a constant. Its name says so (UPPER_CASE), or its type does
(Final, Mapping, Sequence, tuple), and no code in the module changes it.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.project.sources import modules

_MAKERS = {"list", "dict", "set", "bytearray", "defaultdict", "OrderedDict", "Counter", "deque"}
_CONTAINERS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
_CONSTANT = re.compile(r"_?[A-Z][A-Z0-9_]*|__all__")
_READ_ONLY = re.compile(r"(Final|Mapping|Sequence|tuple|frozenset)\b")
_CHANGES = {
    *("append", "add", "clear", "discard", "extend", "insert", "pop", "popitem", "remove"),
    *("setdefault", "update", "appendleft", "popleft"),
}
_CACHES = {"cache", "lru_cache"}
MODULES = dict(modules())


def _containers(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """List the module's own containers: name and annotation."""
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if _is_container(value):
                yield name, ""
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind, value=value):
                if value is not None and _is_container(value):
                    yield name, ast.unparse(kind)


def _is_container(value: ast.expr) -> bool:
    match value:
        case ast.Call(func=ast.Name(id=maker) | ast.Attribute(attr=maker)):
            return maker in _MAKERS
        case _:
            return isinstance(value, _CONTAINERS)


def _changed(tree: ast.Module) -> Iterator[str]:
    """List names that some statement of the module changes the content of."""
    for node in ast.walk(tree):
        match node:
            case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id=name), attr=method)):
                if method in _CHANGES:
                    yield name


@pytest.mark.parametrize("module", MODULES)
def test_containers_of_a_module_are_constants(module):
    for name, annotation in _containers(MODULES[module]):
        assert _CONSTANT.fullmatch(name) or _READ_ONLY.match(annotation), name


@pytest.mark.parametrize("module", MODULES)
def test_constants_are_never_changed(module):
    tree = MODULES[module]
    assert not {name for name, _ in _containers(tree)} & set(_changed(tree))


@pytest.mark.parametrize("module", MODULES)
def test_no_function_assigns_to_a_global(module):
    assert not [node.names for node in ast.walk(MODULES[module]) if isinstance(node, ast.Global)]


@pytest.mark.parametrize("module", MODULES)
def test_what_is_cached_for_good_is_a_fact_without_arguments(module):
    """Such as what the processor can do; anything else would outlive its owner."""
    for node in ast.walk(MODULES[module]):
        if isinstance(node, ast.FunctionDef):
            names = {part.id for mark in node.decorator_list for part in ast.walk(mark)
                     if isinstance(part, ast.Name)}  # fmt: skip
            takes = ast.unparse(node.args)
            assert not (names & _CACHES and takes), f"{node.name}({takes})"


def test_the_checks_see_what_they_are_for():
    tree = ast.parse(
        "seen = {}\n_CACHE: dict[str, int] = dict()\nTABLE = [1]\n"
        "def f(x):\n    _CACHE[x] = 1\n    seen.update(x)\n"
    )
    assert list(_containers(tree)) == [("seen", ""), ("_CACHE", "dict[str, int]"), ("TABLE", "")]
    assert set(_changed(tree)) == {"_CACHE", "seen"}
