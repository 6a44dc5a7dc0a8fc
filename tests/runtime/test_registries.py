"""Registries of the user's own: what the settings admit, and whom a catalog then asks."""

from pathlib import Path

import pytest

from hyprstream import lookup
from hyprstream.errors import InvalidSettingsError
from hyprstream.runtime.models import open_catalog
from hyprstream.runtime.settings import load_settings

BUILT_IN = lookup.names("hyprstream.catalog.registries")


@pytest.fixture(autouse=True)
def file(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("HYPRSTREAM_CONFIG", str(tmp_path / "hyprstream.toml"))
    monkeypatch.setenv("HYPRSTREAM_HOME", str(tmp_path))
    return tmp_path / "hyprstream.toml"


def _write(file: Path, name: str, **values: str) -> None:
    lines = [f'{key} = "{value}"' for key, value in values.items()]
    file.write_text("\n".join([f"[registries.{name}]", *lines]))


def test_a_registry_of_the_users_own_has_a_scheme(file: Path):
    _write(file, "acme", url="https://models.acme.example/v1/", layout="ollama")
    settings = load_settings()
    assert settings.registries["acme"].options() == {
        "url": "https://models.acme.example/v1",
        "layout": "ollama",
    }
    catalog = open_catalog(settings)
    assert "acme" in catalog.schemes
    assert catalog.address("acme") == "https://models.acme.example/v1"


def test_the_environment_can_name_one_too(monkeypatch):
    monkeypatch.setenv("HYPRSTREAM_REGISTRIES__ACME__URL", "s3://bucket/models")
    monkeypatch.setenv("HYPRSTREAM_REGISTRIES__ACME__LAYOUT", "s3")
    assert load_settings().registries["acme"].layout == "s3"


@pytest.mark.parametrize(
    ("url", "layout"),
    [
        ("https://acme.example", "hf"),
        ("https://acme.example:8443/models", "folder"),
        ("http://localhost:11434", "ollama"),
        ("http://127.0.0.1:1/x", "ollama"),
        ("http://[::1]:80", "hf"),
        ("s3://bucket", "s3"),
        ("s3://bucket/a/b", "s3"),
    ],
)
def test_addresses_that_are_taken(file: Path, url: str, layout: str):
    _write(file, "acme", url=url, layout=layout)
    assert load_settings().registries["acme"].url == url


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"url": "https://a"}, "layout"),
        ({"layout": "hf"}, "url"),
        ({"url": "https://a", "layout": "pypi"}, "layout"),
        ({"url": "https://a", "layout": "hf", "token": "secret"}, "token"),
        ({"url": "https://a", "layout": "hf", "token_env": "A B"}, "token_env"),
        ({"url": "acme.example", "layout": "hf"}, "https://host"),
        ({"url": "ftp://acme.example", "layout": "hf"}, "https://host"),
        ({"url": "https://", "layout": "hf"}, "https://host"),
        ({"url": "https://[::1", "layout": "hf"}, "no address"),
        ({"url": "http://acme.example", "layout": "hf"}, "must be https"),
        ({"url": "http://localhost.acme.example", "layout": "hf"}, "must be https"),
        ({"url": "https://a?x=1", "layout": "hf"}, "no user, query"),
        ({"url": "https://a#x", "layout": "hf"}, "no user, query"),
        ({"url": "https://bucket", "layout": "s3"}, "s3://bucket"),
        ({"url": "s3://bucket", "layout": "hf"}, "https://host"),
    ],
)
def test_what_is_not_a_registry_is_refused_by_name(file: Path, values: dict, named: str):
    _write(file, "acme", **values)
    with pytest.raises(InvalidSettingsError, match=named) as caught:
        load_settings()
    assert "registries" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_password_in_an_address_is_refused_and_not_shown(file: Path):
    _write(file, "acme", url="https://user:hunter2@acme.example", layout="hf")
    with pytest.raises(InvalidSettingsError, match="token_env") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", [*BUILT_IN, "file", "http", "https"])
def test_a_built_in_registry_cannot_be_replaced(file: Path, name: str):
    _write(file, name, url="https://a", layout="ollama")
    with pytest.raises(InvalidSettingsError, match="built in"):
        load_settings()


@pytest.mark.parametrize("name", ["Acme", "a_b", "9x", '"a b"', '"../x"', "a" * 33])
def test_a_name_that_could_be_no_scheme_is_refused(file: Path, name: str):
    _write(file, name, url="https://a", layout="ollama")
    with pytest.raises(InvalidSettingsError, match="lower-case word"):
        load_settings()
