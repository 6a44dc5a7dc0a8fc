"""`hyprstream lora train stop|forget`: what is also asked of a server that learns."""

from typing import TYPE_CHECKING, Annotated

import typer

from hyprstream.cli.options import AdapterNameArgument, FormatOption, UrlOption, YesOption, grouped
from hyprstream.cli.output import Format
from hyprstream.cli.session import Context, Settings, session_of
from hyprstream.errors import InvalidRequestError, UnavailableError

if TYPE_CHECKING:
    from hyprstream.runtime.remote import RemoteServer


def server_at(settings: Settings, url: str) -> "RemoteServer":
    """Return the server of a URL, for a `with` block; the key comes from HYPRSTREAM_API_KEY."""
    from hyprstream.runtime.remote import RemoteServer

    return RemoteServer(url, settings.api_key.get_secret_value())


@grouped
def stop(
    ctx: Context,
    *,
    name: AdapterNameArgument,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="How long to wait for it.", min=0)
    ] = 60.0,
    url: UrlOption = None,
) -> None:
    """Stop the learning of an adapter: that of a training in another process, or of a server.

    What was trained on files is saved, and `train start --resume` goes on from there; samples
    that were taken wait again. A server that learns in this home is found by itself, others by
    --url; it then learns no more of this adapter until `train policy`, or a client, says so. The
    key is read from HYPRSTREAM_API_KEY.
    """
    from hyprstream.runtime import TrainingPlace, load_settings, open_adapters
    from hyprstream.runtime.remote import found_server, is_learning

    output, settings = session_of(ctx).output, load_settings()
    if url is None:
        with open_adapters(settings) as adapters:
            adapters.history(name)  # refuse a wrong name
        place = TrainingPlace(settings.training_folder, name)
        if place.is_held():
            if not place.stop(timeout):
                raise UnavailableError(
                    f"the training of {name} has not stopped within {timeout:g} seconds",
                    hint="It stops after its current step; look again, or wait longer with "
                    "--timeout.",
                )
            output.done(f"the training of {name} has stopped")
            return
        url = found_server(settings)
    if url is None:
        if is_learning(settings):
            raise UnavailableError(
                "a process learns in this home, and does not say where it can be reached",
                hint="Name the server with --url.",
            )
        output.done(f"no training of {name} is going on")
        return
    with server_at(settings, url) as server:
        if server.status(name)["learns"]:
            server.stop_learning(name)
            output.done(f"the server at {server.url} learns no more of {name}")
        else:
            output.done(f"no training of {name} is going on, and {server.url} learns nothing of it")


@grouped
def forget(
    ctx: Context,
    *,
    user: Annotated[
        str, typer.Option(metavar="USER", help="Whose samples go, as callers named them.")
    ] = "",
    key: Annotated[
        str, typer.Option(metavar="ID", help="Id of the key with which they came.")
    ] = "",
    url: UrlOption = None,
    yes: YesOption = False,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Delete all samples of a user, or of a key, from the files of this home.

    Versions that had learnt from them are listed: they, and those that came after them, keep
    what they learnt. A server that learns in this home is asked to do it, or that of --url; the
    key is read from HYPRSTREAM_API_KEY.
    """
    from hyprstream.runtime import erase_samples, load_settings, open_adapters
    from hyprstream.runtime.remote import found_server

    output, settings = session_of(ctx).output, load_settings()
    if not user and not key:
        raise InvalidRequestError("nobody is named", hint="Name whose samples go: --user or --key.")
    named = " and ".join(f"{what} {who}" for what, who in (("user", user), ("key", key)) if who)
    if not output.confirm(f"delete the samples of {named}?", yes=yes):
        return
    url = url or found_server(settings)
    if url is not None:
        with server_at(settings, url) as server:
            record = server.erase(user, key)
    else:
        with open_adapters(settings) as adapters:
            record = erase_samples(adapters, settings, user, key).record()
    versions = [f"{name}@{v[:12]}" for name, found in record["versions"].items() for v in found]
    shown = {
        "deleted": str(record["deleted"]),
        "adapters": ", ".join(record["adapters"]) or "-",
        "versions that learnt from them": ", ".join(versions) or "none",
    }
    output.record(record, format, shown=shown)
    if versions:
        output.hint(
            "What they learnt stays in them; `hyprstream lora promote` moves a name to another."
        )
