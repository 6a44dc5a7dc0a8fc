"""Every error has an answer, which tells callers what is theirs to know."""

import inspect

import pytest

from hyprstream import errors
from hyprstream.errors import (
    CorruptStoreError,
    HyprstreamError,
    InvalidSettingsError,
    QueueFullError,
    StorageFullError,
)
from hyprstream.server.errors import api_error

KINDS = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, HyprstreamError)
]
PATH = "/home/zaphod/.local/share/hyprstream/adapters/index.db"


def made(kind: type[HyprstreamError]) -> HyprstreamError:
    """An error of any kind that names a file."""
    error = kind.__new__(kind)
    Exception.__init__(error, f"{PATH} cannot be used")
    error.hint = f"Look at {PATH}."
    return error


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_has_a_status_a_type_and_a_code_and_names_no_file(kind):
    answer = api_error(made(kind))
    assert 400 <= answer.status_code < 600
    error = answer.body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"].endswith("_error")
    assert error["code"]
    assert "zaphod" not in error["message"]
    assert "index.db" not in error["message"]


def test_what_is_damaged_inside_is_told_by_its_kind():
    answer = api_error(CorruptStoreError(PATH, "secret detail"))
    assert answer.status_code == 500
    assert "secret" not in answer.detail
    assert "store of adapters" in answer.detail


def test_what_can_be_tried_again_says_when():
    assert api_error(QueueFullError(max_waiting=3)).status_code == 429
    assert api_error(QueueFullError(max_waiting=3)).headers == {"Retry-After": "1"}
    assert api_error(StorageFullError("no room under /x/y")).status_code == 503


def test_a_wrong_setting_of_the_server_is_not_the_callers_fault():
    assert api_error(InvalidSettingsError(f"the folder {PATH} cannot be used")).status_code == 500
    assert api_error(InvalidSettingsError("rank is 0", hint="Make it 1.")).status_code == 400


def test_names_with_slashes_are_no_paths():
    error = errors.AdapterNotFoundError("there is no adapter 'team/clerk'")
    assert "team/clerk" in api_error(error).detail
