import inspect
import re

import pytest

from hyprstream import errors
from hyprstream.errors import ContextTooLongError, HyprstreamError

FAMILY = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, HyprstreamError)
]
DRAWN = re.findall(r"^( +)(\w+Error)\b.*?(?:(\d{3}) +(\d))?$", errors.__doc__ or "", re.MULTILINE)


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    parents: list[tuple[int, str]] = []
    drawn = {}
    for indent, name, *_ in DRAWN:
        parents = [parent for parent in parents if parent[0] < len(indent)]
        drawn[name] = parents[-1][1] if parents else "Exception"
        parents.append((len(indent), name))
    assert drawn == {kind.__name__: kind.__base__.__name__ for kind in FAMILY if kind.__base__}


def test_status_and_exit_code_are_those_of_the_docstring():
    drawn = {name: (int(http), int(code)) for _, name, http, code in DRAWN if http}
    branches = {kind.__name__: kind for kind in HyprstreamError.__subclasses__()}
    assert drawn == {
        name: (branch.http_status, branch.exit_code) for name, branch in branches.items()
    }


def test_every_branch_has_an_exit_code_of_its_own():
    codes = [branch.exit_code for branch in HyprstreamError.__subclasses__()]
    assert len(set(codes)) == len(codes)
    assert not {0, HyprstreamError.exit_code} & set(codes)


def test_a_leaf_keeps_the_status_of_its_branch():
    for branch in HyprstreamError.__subclasses__():
        for leaf in branch.__subclasses__():
            assert (leaf.http_status, leaf.exit_code) == (branch.http_status, branch.exit_code)


@pytest.mark.parametrize("kind", FAMILY)
def test_codes_are_snake_case_names(kind: type[HyprstreamError]):
    error = kind.__new__(kind)
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", error.code)
    assert error.code.replace("_", "") + "error" == kind.__name__.lower()


def test_a_message_and_a_hint_are_kept():
    error = errors.ModelNotFoundError("no model 'x'", hint="Pull it.")
    assert (str(error), error.hint, error.code) == ("no model 'x'", "Pull it.", "model_not_found")
    assert errors.ModelNotFoundError("no model 'x'").hint == ""


def test_leaves_carry_their_facts():
    too_long = ContextTooLongError(num_tokens=9000, max_tokens=2048)
    assert (too_long.num_tokens, too_long.max_tokens) == (9000, 2048)
    assert "9000" in str(too_long)
    assert "2048" in str(too_long)
    for kind in (
        errors.CorruptWeightsError,
        errors.CorruptArchiveError,
        errors.CorruptManifestError,
    ):
        damaged = kind("tiny.bin", "it ends early")
        assert damaged.file == "tiny.bin"
        assert "tiny.bin" in str(damaged)
        assert "it ends early" in str(damaged)
        assert damaged.hint
