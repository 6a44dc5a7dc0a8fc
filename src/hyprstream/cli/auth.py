"""`hyprstream auth`: log in to registries, see how one stands with them, log out."""

import sys
from typing import Annotated

import typer

from hyprstream.cli import keys
from hyprstream.cli.options import FormatOption, QuietOption
from hyprstream.cli.output import Format, Output
from hyprstream.cli.session import Context, session_of
from hyprstream.errors import InvalidRequestError

app = typer.Typer(
    no_args_is_help=True, help="Log in to registries, and out; keys of the server's callers."
)
app.add_typer(keys.app, name="key")

_MAX_TOKEN_CHARS = 8192

ProviderOption = Annotated[
    str,
    typer.Option(
        "--provider", metavar="NAME", help="Whom to log in to; `hyprstream auth providers` lists."
    ),
]


@app.command()
def login(
    ctx: Context,
    provider: ProviderOption = "hf",
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            metavar="TOKEN",
            help="The token. It stays in the history of the shell and shows in lists of processes.",
            show_default=False,
        ),
    ] = None,
    stdin: Annotated[bool, typer.Option("--stdin", help="Read the token from stdin.")] = False,
) -> None:
    """Check a token with its provider and keep it; asks for it if no option gives it."""
    from hyprstream.runtime import load_settings, open_accounts

    output = session_of(ctx).output
    accounts = open_accounts(load_settings())
    known = accounts.provider(provider)
    if token is not None and stdin:
        raise InvalidRequestError("--token and --stdin exclude each other")
    if token is not None:
        output.warn(
            "the token is in the history of the shell now, and showed in lists of processes; "
            "--stdin, or no option, keeps it out of there"
        )
    elif stdin:
        token = sys.stdin.readline(_MAX_TOKEN_CHARS)
    else:
        if known.page:
            output.hint(f"A token is made at {known.page}; one that can read is enough.")
        token = output.ask_secret(f"Token for {known.name}: ")
    account = accounts.login(known.name, token)
    who = f" as {account.name}" if account.name else ", which cannot check the token"
    output.done(f"logged in to {known.address}{who}; the token is in {account.place}")
    in_use = accounts.in_use(known.name)
    if in_use != account.place:
        output.warn(f"another token goes first, the one in {in_use}")


@app.command()
def status(
    ctx: Context,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """Say for each provider whose token there is, where it lies, and whether it is accepted."""
    from hyprstream.runtime import load_settings, open_accounts

    output = session_of(ctx).output
    output.quiet |= quiet
    accounts = open_accounts(load_settings()).status()
    output.table(
        [
            {
                "provider": account.provider,
                "address": account.address,
                "state": account.state,
                "account": account.name,
                "place": account.place,
                "problem": account.problem,
            }
            for account in accounts
        ],
        format,
        identifier="provider",
        shown=[
            {
                "provider": account.provider,
                "address": account.address,
                "token": "none" if account.state == "none" else account.state,
                "account": account.name or "-",
                "where": account.place or "-",
            }
            for account in accounts
        ],
    )
    _explain(output, {account.provider: account.problem for account in accounts})


@app.command()
def logout(ctx: Context, provider: ProviderOption = "hf") -> None:
    """Forget a token that `login` kept."""
    from hyprstream.runtime import load_settings, open_accounts

    output = session_of(ctx).output
    accounts = open_accounts(load_settings())
    name = accounts.provider(provider).name
    if accounts.logout(name):
        output.done(
            f"forgot the token of {name}; the provider still accepts it until you revoke it"
        )
    else:
        output.done(f"there is no token of {name} to forget")
    left = accounts.in_use(name)
    if left is not None:
        output.warn(f"a token of {name} is still used, the one in {left}")


@app.command()
def providers(
    ctx: Context,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """List who takes tokens; other registries need none, or have a configuration of their own."""
    from hyprstream.runtime import load_settings, open_accounts

    output = session_of(ctx).output
    output.quiet |= quiet
    known = open_accounts(load_settings()).providers()
    output.table(
        [
            {
                "name": provider.name,
                "address": provider.address,
                "variables": list(provider.variables),
                "page": provider.page or None,
            }
            for provider in known
        ],
        format,
        identifier="name",
        shown=[
            {
                "name": provider.name,
                "address": provider.address,
                "environment": ", ".join(provider.variables) or "-",
                "tokens are made at": provider.page or "-",
            }
            for provider in known
        ],
    )
    output.hint(
        "Models of ollama:// and https:// are public and need no token; pypi:// uses pip's "
        "configuration."
    )


def _explain(output: Output, problems: dict[str, str | None]) -> None:
    for name, problem in problems.items():
        if problem is not None:
            output.warn(f"{name}: {problem}")
