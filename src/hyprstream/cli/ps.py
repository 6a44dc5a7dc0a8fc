"""`hyprstream ps`: what a running server holds in memory."""

from datetime import UTC, datetime
from typing import Any

import httpx

from hyprstream.cli.options import FormatOption, UrlOption
from hyprstream.cli.output import Format
from hyprstream.cli.session import Context, Settings, session_of
from hyprstream.cli.text import in_bytes, in_time
from hyprstream.errors import AuthenticationError, UnavailableError
from hyprstream.refs import is_loopback

_TIMEOUT_S = 10.0


def ps(
    ctx: Context,
    *,
    url: UrlOption = None,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Show which models a running server holds in memory, until when, and with which adapters.

    A server that learns in this home is found by itself; another is looked for at the address
    that the settings name, or at --url. One that asks for a key gets the one in HYPRSTREAM_API_KEY.
    """
    from hyprstream.runtime import load_settings
    from hyprstream.runtime.remote import found_server

    settings = load_settings()
    models = _ask(
        url or found_server(settings) or _address(settings), settings.api_key.get_secret_value()
    )
    session_of(ctx).output.table(
        models, format, identifier="name", shown=[_shown(model) for model in models]
    )


def _address(settings: Settings) -> str:
    config = settings.server
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)  # noqa: S104
    scheme = "https" if config.tls_cert else "http"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.port}"


def _ask(url: str, key: str) -> list[dict[str, Any]]:
    """Ask a server.

    Raises:
        UnavailableError: None answers, or none of ours.
        AuthenticationError: It wants another key.
    """
    where = url.rstrip("/")
    try:
        address = httpx.URL(where)
        answer = httpx.get(
            f"{where}/v1/ps",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=_TIMEOUT_S,
            trust_env=not is_loopback(address.netloc.decode()),
        )
        if answer.status_code in (401, 403):
            raise AuthenticationError(
                f"the server at {where} does not admit us",
                hint="Set HYPRSTREAM_API_KEY to a key of it.",
            )
        models: list[dict[str, Any]] = answer.raise_for_status().json()["models"]
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise UnavailableError(
            f"no server answers at {where}: {error}",
            hint="Start one with `hyprstream server`, or name another with --url.",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            f"what answers at {where} is no server of ours", hint="Name another with --url."
        ) from error
    return models


def _shown(model: dict[str, Any]) -> dict[str, str]:
    size = model["size_bytes"]
    adapters = [found["name"] for found in model["adapters"]]
    return {
        "name": model["name"],
        "size": "-" if size is None else in_bytes(size),
        "state": model["state"],
        "requests": str(model["num_requests"]),
        "until": _until(model),
        "adapters": ", ".join(adapters) or "-",
    }


def _until(model: dict[str, Any]) -> str:
    if model["until"] is not None:
        left = datetime.fromisoformat(model["until"]) - datetime.now(tz=UTC)
        return f"in {in_time(max(0.0, left.total_seconds()))}"
    return "it is told to end" if model["state"] == "loaded" else "-"
