"""What the user's environment says to the Hub's tools; here it says the same to us."""

from collections.abc import Mapping
from pathlib import Path

DEFAULT_ENDPOINT = "https://huggingface.co"
OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")

_TRUE = frozenset({"1", "on", "yes", "true"})


def is_set(environ: Mapping[str, str], variable: str) -> bool:
    """Tell whether a variable says yes."""
    return environ.get(variable, "").lower() in _TRUE


def endpoint(environ: Mapping[str, str]) -> str:
    """Return the address of the Hub."""
    return (environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Name the folder in which the Hub's tools keep models."""
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(named).expanduser() if named else _home(environ) / "hub"


def token_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Name the file in which `hf auth login` keeps a token, if it is meant for this Hub.

    The file does not say for which Hub its token is; it is taken for the public one's.
    """
    if is_set(environ, "HF_HUB_DISABLE_IMPLICIT_TOKEN") or endpoint(environ) != DEFAULT_ENDPOINT:
        return ()
    named = environ.get("HF_TOKEN_PATH")
    return (Path(named).expanduser() if named else _home(environ) / "token",)


def _home(environ: Mapping[str, str]) -> Path:
    cache = environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(environ.get("HF_HOME") or f"{cache}/huggingface").expanduser()
