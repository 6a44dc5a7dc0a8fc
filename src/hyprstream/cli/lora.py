"""`hyprstream lora`: adapters, from their creation to answers with them."""

from typing import Annotated

import typer

from hyprstream.cli import lora_make, lora_names, train
from hyprstream.cli.chat import TalkOptions, talk
from hyprstream.cli.infer import AskOptions, answer
from hyprstream.cli.lora_shown import (
    diff_record,
    info_record,
    plot,
    show_diff,
    show_info,
)
from hyprstream.cli.options import (
    AdapterArgument,
    BaseModelOption,
    ForceOption,
    FormatOption,
    LoadOptions,
    QuietOption,
    SamplingOptions,
    grouped,
)
from hyprstream.cli.output import Format
from hyprstream.cli.session import Context, load_model, session_of
from hyprstream.cli.text import in_bytes
from hyprstream.errors import InvalidRequestError

app = typer.Typer(no_args_is_help=True, help="Make, look at, move, compress and use adapters.")

app.command()(lora_make.create)
app.add_typer(train.app, name="train")
app.command("import")(lora_make.import_)


@app.command("list")
def list_adapters(
    ctx: Context,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """List the adapters; with --quiet, their names only."""
    from hyprstream.runtime import load_settings, open_adapters

    output = session_of(ctx).output
    output.quiet |= quiet
    with open_adapters(load_settings()) as adapters:
        found = adapters.list()
    output.table(
        (
            {
                "name": adapter.name,
                "version": adapter.version,
                "base_model": adapter.base,
                "codec": adapter.codec,
                "size_bytes": adapter.size_bytes,
                "moved_at": adapter.moved_at.isoformat(timespec="seconds"),
            }
            for adapter in found
        ),
        format,
        identifier="name",
        shown=(
            {
                "name": adapter.name,
                "version": adapter.version[:12],
                "base model": adapter.base,
                "codec": adapter.codec,
                "size": in_bytes(adapter.size_bytes),
                "since": f"{adapter.moved_at.astimezone():%Y-%m-%d %H:%M}",
            }
            for adapter in found
        ),
    )
    if not found:
        output.hint("There is no adapter; `hyprstream lora create --name NAME` makes one.")


@app.command()
def info(
    ctx: Context,
    adapter: AdapterArgument,
    include_stats: Annotated[
        bool,
        typer.Option("--include-stats", help="Count what it consists of as a grid of voxels."),
    ] = False,
    draw: Annotated[
        bool, typer.Option("--plot", help="Draw norm and density by layer and module.")
    ] = False,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Describe an adapter: what it was made to be, how it is stored, what it adds where."""
    from hyprstream.runtime import Policies, load_settings, open_adapters

    output = session_of(ctx).output
    if draw and format is not Format.TABLE:
        raise InvalidRequestError(
            f"--plot draws for people, and --format {format} is for programs",
            hint="Leave out one of the two; the record holds what is drawn.",
        )
    with open_adapters(load_settings()) as adapters:
        found = adapters.info(adapter)
        policies = Policies(adapters)
        learning = {
            "learn": policies.of(found.ref.name).learn,
            "trusted": list(policies.trusted(found.ref.name)),
            "canary": policies.of(found.ref.name).canary,
        }
        stats = adapters.grid(adapter) if include_stats else None
    if format is Format.TABLE:
        show_info(output, found, stats, learning)
    else:
        output.record({**info_record(found, stats), "learning": learning}, format)
    if draw:
        output.text(plot(found.modules))


app.command()(lora_names.history)
app.command()(lora_names.promote)
app.command()(lora_names.rollback)
app.command()(lora_names.tag)


@app.command()
def diff(
    ctx: Context,
    first: AdapterArgument,
    second: AdapterArgument,
    format: FormatOption = Format.TABLE,  # noqa: A002
) -> None:
    """Compare two versions: what they were made to be, and what they add to each layer."""
    from hyprstream.runtime import load_settings, open_adapters

    output = session_of(ctx).output
    with open_adapters(load_settings()) as adapters:
        found = adapters.diff(first, second)
    if format is Format.TABLE:
        show_diff(output, found)
    else:
        output.record(diff_record(found), format)


app.command()(lora_make.compress)
app.command()(lora_make.export)
app.command()(lora_names.delete)
app.command()(lora_names.cleanup)


@app.command("infer")
@grouped
def infer_with(
    ctx: Context,
    *,
    adapter: AdapterArgument,
    base_model: BaseModelOption = None,
    force: ForceOption = False,
    asking: AskOptions,
    sampling: SamplingOptions,
    loading: LoadOptions,
) -> None:
    """Answer one prompt with an adapter, as `hyprstream infer --adapter` does."""
    session = session_of(ctx)
    answer(
        session,
        asking,
        sampling,
        lambda: load_model(session, base_model, loading, adapter=adapter, force=force),
    )


@app.command("chat")
@grouped
def chat_with(
    ctx: Context,
    *,
    adapter: AdapterArgument,
    base_model: BaseModelOption = None,
    force: ForceOption = False,
    talking: TalkOptions,
    sampling: SamplingOptions,
    loading: LoadOptions,
) -> None:
    """Talk with a model and an adapter, as `hyprstream chat --adapter` does."""
    session = session_of(ctx)
    talk(
        session,
        talking,
        sampling,
        lambda: load_model(session, base_model, loading, adapter=adapter, force=force),
    )
