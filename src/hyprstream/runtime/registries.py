"""Registries that a user adds under names of their own: what the settings may say of them."""

import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from hyprstream import lookup
from hyprstream.refs import FILE_SCHEME, URL_SCHEMES, is_loopback

Layout = Literal["ollama", "hf", "folder", "s3"]

_PACKAGE = "hyprstream.catalog.registries"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_MODULES = {"folder": "https"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """A registry of the user's own; `[registries.acme]` serves `acme://` references."""

    url: str
    """Where it is: `https://host[:port][/path]`; a bucket is `s3://bucket[/prefix]`."""
    layout: Layout
    """What it is like: Ollama's registry, the Hugging Face Hub, a folder of a web server,
    or a bucket."""
    token_env: str | None = None
    """Environment variable that holds the token it wants."""

    def __post_init__(self) -> None:
        """Refuse an address that is none, or that a token must not be sent to.

        Raises:
            ValueError: It is; says what is wrong with it.
        """
        problem = _address_problem(self.url, self.layout)
        if problem:
            raise ValueError(problem)
        if self.token_env is not None and not _VARIABLE.fullmatch(self.token_env):
            raise ValueError("token_env is not the name of an environment variable")

    def options(self) -> dict[str, str]:
        """Return what the module of the layout is connected with."""
        options = {"url": self.url.rstrip("/"), "layout": _MODULES.get(self.layout, self.layout)}
        return options if self.token_env is None else {**options, "token_env": self.token_env}


def name_problem(name: str) -> str:
    """Say why a registry cannot be called so; "" if it can."""
    if not _NAME.fullmatch(name):
        return f"{name!r} is not a lower-case word of letters, digits and hyphens"
    if name in {*lookup.names(_PACKAGE), *URL_SCHEMES, FILE_SCHEME}:
        return f"{name!r} is the name of a registry that is built in; choose another"
    return ""


def _address_problem(url: str, layout: Layout) -> str:
    try:
        parts = urlsplit(url)
        host, user = parts.hostname, parts.username or parts.password
    except ValueError as error:
        return f"url is no address: {error}"
    if user or parts.query or parts.fragment:
        return "url must hold no user, query or fragment; a token goes where token_env says"
    schemes = {"s3"} if layout == "s3" else URL_SCHEMES
    if parts.scheme not in schemes or not host:
        return f"url is not {'s3://bucket' if layout == 's3' else 'https://host'}"
    is_open = parts.scheme == "http" and not is_loopback(parts.netloc)
    return "url must be https:// except on this machine" if is_open else ""
