"""Lists of models and registries: what is here, what there is elsewhere."""

from collections.abc import Sequence
from typing import Annotated

import typer

from hyprstream.cli.options import FormatOption, QuietOption
from hyprstream.cli.output import Format, Output
from hyprstream.cli.session import CachedModel, Context, Offer, session_of
from hyprstream.cli.text import in_bytes, in_millions
from hyprstream.errors import InvalidRequestError

_RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry", metavar="NAME", help="Of this registry only, such as hf.", show_default=False
    ),
]
_LimitOption = Annotated[
    int, typer.Option("--limit", metavar="N", min=1, max=1000, help="Most models to show.")
]


def list_models(
    ctx: Context,
    registry: _RegistryOption = None,
    search: Annotated[
        str,
        typer.Option(
            "--search", metavar="TEXT", help="Only what has this in its name.", show_default=False
        ),
    ] = "",
    remote: Annotated[
        bool, typer.Option("--remote", help="List what the registries have, not the cache.")
    ] = False,
    limit: Annotated[
        int,
        typer.Option("--limit", metavar="N", min=1, max=1000, help="Most to show, with --remote."),
    ] = 20,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """List the models in the cache; with --quiet, their references only."""
    from hyprstream.runtime import load_settings, open_catalog

    output = session_of(ctx).output
    output.quiet |= quiet
    if remote:
        _search(output, search, registry, limit, format)
        return
    catalog = open_catalog(load_settings())
    if registry is not None and registry not in catalog.schemes:
        raise InvalidRequestError(
            f"{registry!r} is not a registry", hint=f"There are: {', '.join(catalog.schemes)}."
        )
    models = [
        model
        for model in catalog.list()
        if registry in (None, model.card.ref.scheme)
        and search.casefold() in str(model.card.ref).casefold()
    ]
    _show_cached(output, models, format)
    if not models and (registry or search):
        output.hint("Nothing in the cache fits; `hyprstream model list` shows all of it.")
    elif not models:
        output.hint("The cache is empty; `hyprstream pull REF` fetches a model.")


def search_models(
    ctx: Context,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for.")],
    registry: _RegistryOption = None,
    limit: _LimitOption = 20,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """Look for models in the registries; with --quiet, print their references only."""
    output = session_of(ctx).output
    output.quiet |= quiet
    _search(output, text, registry, limit, format)


def list_registries(
    ctx: Context,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """List where models can come from, and whether it answers."""
    from hyprstream.runtime import load_settings, open_catalog, registry_statuses

    output = session_of(ctx).output
    output.quiet |= quiet
    settings = load_settings()
    statuses = registry_statuses(open_catalog(settings))
    output.table(
        [
            {
                "name": status.scheme,
                "address": status.address,
                "state": status.state,
                "authenticated": status.authenticated,
                "custom": status.scheme in settings.registries,
                "problem": status.problem,
            }
            for status in statuses
        ],
        format,
        identifier="name",
        shown=[
            {
                "name": status.scheme,
                "address": status.address,
                "state": status.state,
                "token": "yes" if status.authenticated else "no",
                "problem": status.problem or "",
            }
            for status in statuses
        ],
    )


def _search(
    output: Output,
    text: str,
    registry: str | None,
    limit: int,
    format: Format,  # noqa: A002
) -> None:
    from hyprstream.runtime import load_settings, open_catalog, search_models

    found = search_models(open_catalog(load_settings()), text, registry=registry, limit=limit)
    if found.failures and not found.offers:
        raise found.failures[0].error
    output.table(
        [
            {
                "ref": str(offer.ref),
                "description": offer.description,
                "size_bytes": offer.size_bytes,
                "downloads": offer.downloads,
                "updated_at": offer.updated_at and offer.updated_at.isoformat(timespec="seconds"),
            }
            for offer in found.offers
        ],
        format,
        identifier="ref",
        shown=[_shown(offer) for offer in found.offers],
    )
    for failure in found.failures:
        output.warn(f"{failure.scheme} gave no answer: {failure.error}")
        output.hint(failure.error.hint)
    if not found.offers:
        output.hint("Nothing was found; `hyprstream model registries` says where was looked.")


def _shown(offer: Offer) -> dict[str, str]:
    return {
        "ref": str(offer.ref),
        "size": "" if offer.size_bytes is None else in_bytes(offer.size_bytes),
        "downloads": "" if offer.downloads is None else in_millions(offer.downloads),
        "updated": "" if offer.updated_at is None else f"{offer.updated_at:%Y-%m-%d}",
        "description": offer.description,
    }


def _show_cached(
    output: Output,
    models: Sequence[CachedModel],
    format: Format,  # noqa: A002
) -> None:
    output.table(
        [
            {
                "ref": str(model.card.ref),
                "size_bytes": model.card.size_bytes,
                "fetched_at": model.fetched_at.isoformat(timespec="seconds"),
                "state": model.state,
                "path": str(model.path),
                "source": model.card.source,
            }
            for model in models
        ],
        format,
        identifier="ref",
        shown=[
            {
                "ref": str(model.card.ref),
                "size": in_bytes(model.card.size_bytes),
                "fetched": f"{model.fetched_at.astimezone():%Y-%m-%d %H:%M}",
                "state": model.state,
            }
            for model in models
        ],
    )
