"""The Hub's own library is the judge: it reads the same variables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hyprstream.catalog.hub.environment import cache_folder, endpoint, is_set, token_files

CASES: list[dict[str, str]] = [
    {},
    {"XDG_CACHE_HOME": "/x"},
    {"HF_HOME": "/h", "XDG_CACHE_HOME": "/x"},
    {"HF_HOME": "~/h"},
    {"HF_HOME": "/h", "HUGGINGFACE_HUB_CACHE": "/old"},
    {"HF_HUB_CACHE": "/new", "HUGGINGFACE_HUB_CACHE": "/old"},
    {"HF_TOKEN_PATH": "/t/token"},
]

THEIRS = """
import importlib, json, os, sys
from huggingface_hub import constants
found = []
for case in json.load(sys.stdin):
    os.environ.update(case)
    importlib.reload(constants)
    found.append([constants.HF_HUB_CACHE, constants.HF_TOKEN_PATH, constants.ENDPOINT])
    for name in case:
        del os.environ[name]
print(json.dumps(found))
"""


def test_folders_and_address_are_those_of_the_hubs_tools():
    names = {name for case in CASES for name in case} | {"HF_ENDPOINT"}
    done = subprocess.run(
        [sys.executable, "-c", THEIRS],
        input=json.dumps(CASES),
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if name not in names},
    )
    ours = [[str(cache_folder(c)), str(token_files(c)[0]), endpoint(c)] for c in CASES]
    assert ours == json.loads(done.stdout)


def test_another_address_has_no_slash_at_its_end():
    assert endpoint({"HF_ENDPOINT": "https://hub.example/"}) == "https://hub.example"


@pytest.mark.parametrize(
    "environ", [{"HF_ENDPOINT": "https://hub.example"}, {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "yes"}]
)
def test_the_token_of_the_hubs_tools_is_for_the_public_hub_and_may_be_refused(environ):
    assert token_files({}) == (Path("~/.cache/huggingface/token").expanduser(),)
    assert token_files(environ) == ()


@pytest.mark.parametrize(("value", "yes"), [("1", True), ("Yes", True), ("0", False), ("", False)])
def test_what_says_yes(value, yes):
    assert is_set({"X": value}, "X") is yes
