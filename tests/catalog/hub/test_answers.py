from typing import Any

import pytest

from hyprstream.catalog.hub.answers import read_found, read_model
from hyprstream.errors import RegistryAnswerError

FILE = {"name": "a.gguf", "size_bytes": 3, "sha256": "0" * 64, "git_sha1": None}
MODEL: dict[str, Any] = {"commit": "0" * 40, "license": "mit", "files": [FILE]}
FOUND = {"name": "org/x", "downloads": 3, "gated": False, "task": None, "tags": [], "updated": None}


def test_what_the_hub_says_is_taken():
    model = read_model({**MODEL, "license": ["mit", "other"]}, "it")
    assert (model.files[0].name, model.files[0].size_bytes) == ("a.gguf", 3)
    assert model.terms == "mit, other"
    assert read_model({**MODEL, "license": None}, "it").terms == ""
    (found,) = read_found([{**FOUND, "updated": "2026-01-02T03:04:05.000Z"}], "them")
    assert found.updated is not None
    assert found.updated.year == 2026


@pytest.mark.parametrize(
    "answer",
    [
        *(None, [], "text", {}, {**MODEL, "commit": "main"}, {**MODEL, "commit": None}),
        *(
            {**MODEL, "files": [{**FILE, "size_bytes": size}]}
            for size in (-1, "3", 1.5, None, 1 << 70)
        ),
        *({**MODEL, "files": [{**FILE, "sha256": digest}]} for digest in ("0" * 63, "../" * 20, 1)),
        {**MODEL, "files": [{**FILE, "git_sha1": "0" * 40 + "\n"}]},
        {**MODEL, "files": [{**FILE, "name": "x" * 5000}]},
        {**MODEL, "files": [FILE] * 100_001},
        {**MODEL, "license": {"a": 1}},
    ],
)
def test_what_makes_no_sense_is_refused(answer):
    with pytest.raises(RegistryAnswerError, match="about it makes no sense"):
        read_model(answer, "it")


@pytest.mark.parametrize(
    "answer", [None, {}, [1], [{**FOUND, "tags": None}], [{**FOUND, "updated": "yesterday"}]]
)
def test_a_list_that_makes_no_sense_is_refused(answer):
    with pytest.raises(RegistryAnswerError):
        read_found(answer, "them")
