"""`hyprstream server`: serve a model over HTTP until a signal ends it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hyprstream.cli.options import LoadOptions, ModelsArgument, grouped
from hyprstream.cli.output import Output
from hyprstream.cli.session import Context, Settings, load_model, session_of
from hyprstream.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from hyprstream.runtime.keys import Verifier
    from hyprstream.runtime.runtime import Runtime
    from hyprstream.runtime.server_config import ServerConfig

    Beside = AbstractAsyncContextManager[object]

_LISTENING = "Listening"


def _listening(help: str, metavar: str | None = None) -> Any:  # noqa: A002
    return typer.Option(
        help=f"{help} Without it: the setting.",
        metavar=metavar,
        rich_help_panel=_LISTENING,
        show_default=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenOptions:
    """Where to listen; None leaves the setting of the same name in `[server]`."""

    host: Annotated[str | None, _listening("Address to listen at.", "ADDRESS")] = None
    port: Annotated[int | None, _listening("Port to listen at; 0 takes a free one.")] = None
    flight_port: Annotated[
        int | None,
        _listening("Port of Arrow Flight SQL beside HTTP; 0 takes a free one.", "PORT"),
    ] = None
    model_name: Annotated[str | None, _listening("What clients call the model.", "NAME")] = None
    tls_cert: Annotated[str | None, _listening("File of the certificate chain.", "FILE")] = None
    tls_key: Annotated[str | None, _listening("File of its private key.", "FILE")] = None
    tls_client_ca: Annotated[
        str | None,
        _listening("File of the authorities whose certificates clients must show.", "FILE"),
    ] = None

    def applied(self, settings: Settings) -> Settings:
        """Return the settings with what was given here."""
        names = tuple(self.__dataclass_fields__)
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return settings.model_copy(update={"server": replace(settings.server, **given)})


@grouped
def server(
    ctx: Context,
    *,
    models: ModelsArgument = None,
    listening: ListenOptions,
    loading: LoadOptions,
) -> None:
    """Serve models over HTTP, as clients of OpenAI's and Anthropic's APIs expect it.

    It listens on this machine alone unless told otherwise; beyond it, callers need a key
    (`hyprstream auth key create`, or HYPRSTREAM_API_KEY). With --flight-port it answers SQL as
    well. SIGTERM ends it when the answers under way are finished; SIGHUP lets it read its settings
    again.
    """
    from hyprstream.runtime import load_settings
    from hyprstream.runtime.bases import check_names
    from hyprstream.server.logs import start_logging
    from hyprstream.server.serve import bind, check_tls, open_verifier, serve

    session = session_of(ctx)
    output = session.output
    settings = _serving(listening.applied(load_settings()), (models or [])[1:])
    first = models[0] if models else settings.model.ref
    check_names(first, settings.server)
    config = settings.server
    verifier = open_verifier(settings)
    check_tls(config)
    others = {"beside": _flight(output, config, verifier)} if config.flight_port is not None else {}
    with bind(config) as socket:
        loaded = load_model(session, first, loading)
        start_logging(config.log_format)

        def announce(port: int) -> None:
            scheme = "https" if config.tls_cert else "http"
            host = f"[{config.host}]" if ":" in config.host else config.host
            url = f"{scheme}://{host}:{port}"
            output.text(f"{url}\n")
            served = ", ".join((loaded.ref, *config.models))
            output.done(f"serving {served}; Ctrl-C ends it")
            key = '-H "Authorization: Bearer $KEY" ' if verifier else ""
            if loaded.has_chat_template:
                body = '{"messages": [{"role": "user", "content": "Hello"}]}'
                route = "chat/completions"
            else:
                body, route = '{"prompt": "Once upon a time"}', "completions"
            output.hint(
                f"curl {url}/v1/{route} {key}-H 'Content-Type: application/json' -d '{body}'"
            )

        serve(
            loaded, settings, socket, verifier, announce,
            load=lambda: _serving(listening.applied(load_settings()), (models or [])[1:]), **others,
        )  # fmt: skip
    output.done("ended")


def _flight(
    output: Output, config: "ServerConfig", verifier: "Verifier | None"
) -> "Callable[[Runtime], Beside]":
    """Return what serves Flight with a runtime."""
    try:
        from hyprstream.flight.beside import check_config, flight_beside
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"Arrow Flight needs {error.name}, which is not installed",
            hint="Install it with `pip install 'hyprstream[flight]'`.",
        ) from error

    def announce(address: str) -> None:
        output.done(f"Arrow Flight SQL at {address}")
        output.hint(f"hyprstream sql --host {address.rpartition('/')[2]}")

    gate = None if verifier is None else verifier.grant
    check_config(config, gate)
    return lambda runtime: flight_beside(runtime, gate, announce)


def _serving(settings: Settings, models: Sequence[str]) -> Settings:
    """Return the settings with further models, if there are any here."""
    if not models:
        return settings
    config = replace(settings.server, models=tuple(models))
    return settings.model_copy(update={"server": config})
