"""`hyprstream model`: what a model is, and which models are on this machine."""

from typing import Annotated

import typer

from hyprstream.cli import cache, models_listed
from hyprstream.cli.options import FormatOption, QuietOption, RefArgument, YesOption
from hyprstream.cli.output import Format
from hyprstream.cli.session import Context, ModelInfo, session_of
from hyprstream.cli.text import in_bytes, in_millions
from hyprstream.refs import ModelRef

app = typer.Typer(no_args_is_help=True, help="Fetch, find, list, describe and remove models.")


@app.command()
def pull(
    ctx: Context,
    ref: RefArgument,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--files",
            metavar="PATTERN",
            help="Fetch the files that fit, as in *.json, in place of those that a model needs; "
            "several with commas, or by repeating the option.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Fetch it even if it is on this machine.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Fetch a model into the cache and print where it is."""
    from hyprstream.runtime import load_settings, open_catalog

    output = session_of(ctx).output
    output.quiet |= quiet
    with output.progress() as progress:
        path = open_catalog(load_settings()).pull(
            ModelRef.parse(ref),
            progress,
            force=force,
            files=[pattern for option in files or () for pattern in option.split(",") if pattern],
        )
    output.text(f"{path}\n")


app.command("list")(models_listed.list_models)
app.command("search")(models_listed.search_models)


@app.command()
def info(
    ctx: Context,
    ref: Annotated[
        str, typer.Argument(metavar="REF_OR_PATH", help="A path, or a model that was pulled.")
    ],
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Describe a model without loading it; json and yaml hold the chat template too."""
    from hyprstream.runtime import describe, kept_info, load_settings, open_catalog

    catalog, named = open_catalog(load_settings()), ModelRef.parse(ref)
    model = kept_info(catalog, named) or describe(catalog.find(named))
    session_of(ctx).output.record(model.to_dict(), format, shown=_shown(model))


@app.command()
def remove(
    ctx: Context,
    ref: RefArgument,
    keep_metadata: Annotated[
        bool,
        typer.Option("--keep-metadata", help="Remove the weights only; `info` still knows it."),
    ] = False,
    yes: YesOption = False,
) -> None:
    """Remove a model from the cache; without a revision, all its revisions."""
    from hyprstream.runtime import load_settings, open_catalog

    output = session_of(ctx).output
    catalog, named = open_catalog(load_settings()), ModelRef.parse(ref)
    what = f"the weights of {ref}" if keep_metadata else ref
    if not output.confirm(f"Remove {what} from the cache?", yes=yes):
        return
    if keep_metadata:
        from hyprstream.runtime import remove_weights

        freed_bytes = remove_weights(catalog, named)
    else:
        freed_bytes = catalog.remove(named)
    output.done(f"removed {what}, {in_bytes(freed_bytes)} freed")


app.command("registries")(models_listed.list_registries)
app.add_typer(cache.app, name="cache")


def _shown(model: ModelInfo) -> dict[str, str]:
    template = model.chat_template
    heads = f"{model.num_heads} query, {model.num_kv_heads} key/value"
    return {
        "name": model.name,
        "path": str(model.path),
        "format": model.format,
        "architecture": f"{model.architecture} ({model.kind})",
        "parameters": in_millions(model.num_parameters),
        "size": in_bytes(model.size_bytes),
        "tensors": ", ".join(f"{count} {kind}" for kind, count in model.tensor_types.items()),
        "context": f"{model.context_length} tokens",
        "shape": f"{model.num_layers} layers, width {model.width}, {heads} heads",
        "vocabulary": str(model.vocab_size),
        "tokenizer": model.tokenizer,
        "chat template": "none" if template is None else f"{len(template)} characters",
        "license": model.license or "not stated",
    }
