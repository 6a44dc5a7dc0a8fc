"""`hyprstream lora`: adapters, from their creation to answers with them."""

from typing import Annotated, Any, Literal

import typer

from hyprstream.cli.chat import TalkOptions, talk
from hyprstream.cli.infer import AskOptions, answer
from hyprstream.cli.lora_shown import (
    diff_record,
    info_record,
    plot,
    show_diff,
    show_info,
    warn_of_price,
)
from hyprstream.cli.options import (
    AdapterArgument,
    AdapterNameArgument,
    BaseModelOption,
    ForceOption,
    FormatOption,
    LoadOptions,
    QuietOption,
    SamplingOptions,
    WhyOption,
    YesOption,
    grouped,
)
from hyprstream.cli.output import Format
from hyprstream.cli.session import Context, load_model, session_of
from hyprstream.cli.text import in_bytes, in_millions
from hyprstream.errors import InvalidRequestError
from hyprstream.refs import AdapterRef

app = typer.Typer(no_args_is_help=True, help="Make, look at, move, compress and use adapters.")

_BY = "hyprstream lora"
_CODES = "raw and zstd keep every bit; neural keeps what the adapter adds, up to an error."


@app.command()
@grouped
def create(
    ctx: Context,
    *,
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What to call it: support, team/poet.")
    ],
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model",
            metavar="MODEL",
            help="The model that it is for. Without it: the setting model.ref.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="low_rank adds A B to W, sparse single elements, tiny a core in W's own basis."
        ),
    ] = "low_rank",
    rank: Annotated[int, typer.Option(help="Width of A B, or of the core.")] = 16,
    alpha: Annotated[
        float | None,
        typer.Option(help="A B is scaled by alpha / rank. Without it: twice the rank."),
    ] = None,
    dropout: Annotated[
        float, typer.Option(help="Share of inputs that training hides from the adapter.")
    ] = 0.0,
    target_modules: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="Linear layers to change: paths or last names, with commas between; "
            "all is every one but the head.",
        ),
    ] = "q_proj,v_proj",
    sparsity: Annotated[
        float, typer.Option(help="Share of elements that stay zero for good, 0 to 0.999.")
    ] = 0.0,
    sparsity_structure: Annotated[
        Literal["unstructured", "leaf"],
        typer.Option(help="Which elements: any, or whole leaves of the grid, 512 in a row."),
    ] = "unstructured",
    mask: Annotated[
        Literal["seed", "magnitude"],
        typer.Option(help="What the choice of elements follows: the seed, or the largest of W."),
    ] = "seed",
    codec: Annotated[
        str | None,
        typer.Option(help=f"How versions are stored; without it zstd. {_CODES}"),
    ] = None,
    neural_compression: Annotated[
        bool, typer.Option("--neural-compression", help="The same as --codec neural.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Decides everything that is random.")] = 0,
    learning_rate: Annotated[
        float | None, typer.Option(help="Kept in the spec, for training.", show_default=False)
    ] = None,
    loading: LoadOptions,
) -> None:
    """Make an adapter that adds nothing yet, and print its reference.

    Its first version is stored exactly; neural holds for versions that add something.
    """
    from hyprstream.runtime import (
        LoraSpec,
        Note,
        Recipe,
        create_adapter,
        load_settings,
        open_adapters,
    )

    session = session_of(ctx)
    spec = LoraSpec(
        rank=rank,
        alpha=2.0 * rank if alpha is None else alpha,
        targets=tuple(target.strip() for target in target_modules.split(",")),
        kind=kind,
        sparsity=sparsity,
        structure=sparsity_structure,
        mask=mask,
        dropout=dropout,
    )
    recipe = Recipe(
        spec=spec,
        seed=seed,
        codec=_codec(codec, neural=neural_compression),
        extra={} if learning_rate is None else {"learning_rate": learning_rate},
    )
    with open_adapters(load_settings()) as adapters:
        adapters.check_free(name)
        model = load_model(session, base_model, loading)
        done = create_adapter(adapters, name, model, recipe, Note(by=_BY))
    warn_of_price(session.output, kind, sparsity)
    values = in_millions(done.report.num_values)
    session.output.done(
        f"{kind} for {model.ref}: {values} elements, {in_bytes(done.report.size_bytes)} "
        f"in {done.codec}"
    )
    session.output.text(f"{name}@{done.version[:12]}\n")


def _codec(codec: str | None, *, neural: bool) -> str:
    if neural and codec not in (None, "neural"):
        raise InvalidRequestError(
            f"--neural-compression and --codec {codec} exclude each other",
            hint="Leave out one of the two.",
        )
    return "neural" if neural else codec or "zstd"


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
        [
            {
                "name": adapter.name,
                "version": adapter.version,
                "base_model": adapter.base,
                "codec": adapter.codec,
                "size_bytes": adapter.size_bytes,
                "moved_at": adapter.moved_at.isoformat(timespec="seconds"),
            }
            for adapter in found
        ],
        format,
        identifier="name",
        shown=[
            {
                "name": adapter.name,
                "version": adapter.version[:12],
                "base model": adapter.base,
                "codec": adapter.codec,
                "size": in_bytes(adapter.size_bytes),
                "since": f"{adapter.moved_at.astimezone():%Y-%m-%d %H:%M}",
            }
            for adapter in found
        ],
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
    from hyprstream.runtime import load_settings, open_adapters

    output = session_of(ctx).output
    if draw and format is not Format.TABLE:
        raise InvalidRequestError(
            f"--plot draws for people, and --format {format} is for programs",
            hint="Leave out one of the two; the record holds what is drawn.",
        )
    with open_adapters(load_settings()) as adapters:
        found = adapters.info(adapter)
        stats = adapters.grid(adapter) if include_stats else None
    if format is Format.TABLE:
        show_info(output, found, stats)
    else:
        output.record(info_record(found, stats), format)
    if draw:
        output.text(plot(found.modules))


@app.command()
def delete(ctx: Context, name: AdapterNameArgument, yes: YesOption = False) -> None:
    """Delete an adapter, with its history and its versions."""
    from hyprstream.runtime import load_settings, open_adapters

    output = session_of(ctx).output
    with open_adapters(load_settings()) as adapters:
        adapters.history(name)  # refuse a wrong name before asking
        if output.confirm(f"Delete adapter {name} and its history?", yes=yes):
            freed = adapters.delete(name).freed_bytes
            output.done(
                f"deleted {name}, {in_bytes(freed)} freed; versions of the last day go with "
                "a later delete"
            )


@app.command()
def history(
    ctx: Context,
    name: AdapterNameArgument,
    format: FormatOption = Format.TABLE,  # noqa: A002
    quiet: QuietOption = False,
) -> None:
    """List where a name has pointed, the first version first; with --quiet, versions only."""
    from hyprstream.runtime import load_settings, open_adapters

    output = session_of(ctx).output
    output.quiet |= quiet
    with open_adapters(load_settings()) as adapters:
        moves = adapters.history(name)
    output.table(
        [
            {
                "version": move.version,
                "action": move.action,
                "at": move.at.isoformat(timespec="seconds"),
                "by": move.note.by,
                "why": move.note.why,
            }
            for move in moves
        ],
        format,
        identifier="version",
        shown=[
            {
                "version": move.version[:12],
                "action": move.action,
                "at": f"{move.at.astimezone():%Y-%m-%d %H:%M:%S}",
                "by": move.note.by,
                "why": move.note.why,
            }
            for move in moves
        ],
    )


@app.command()
def promote(ctx: Context, adapter: AdapterArgument, why: WhyOption = "") -> None:
    """Let a name point at one of its versions: that of NAME:TAG or NAME@VERSION."""
    from hyprstream.runtime import Note, load_settings, open_adapters

    with open_adapters(load_settings()) as adapters:
        version = adapters.promote(adapter, Note(by=_BY, why=why))
        name = AdapterRef.parse(adapter).name
    session_of(ctx).output.text(f"{name}@{version[:12]}\n")


@app.command()
def rollback(ctx: Context, name: AdapterNameArgument, why: WhyOption = "") -> None:
    """Undo the last promotion that was not undone yet; twice goes back two."""
    from hyprstream.runtime import Note, load_settings, open_adapters

    with open_adapters(load_settings()) as adapters:
        version = adapters.rollback(name, Note(by=_BY, why=why))
    session_of(ctx).output.text(f"{name}@{version[:12]}\n")


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


@app.command()
def compress(
    ctx: Context,
    adapter: AdapterArgument,
    codec: Annotated[str, typer.Option(help=f"The code. {_CODES}")] = "neural",
    error: Annotated[
        float | None,
        typer.Option(
            help="neural: largest error of what it adds, as a share; without it 0.15, which "
            "keeps about 99% of what it has learnt.",
            show_default=False,
        ),
    ] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(
            help="neural: the largest size; the error is what it then is.",
            metavar="BYTES",
            show_default=False,
        ),
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option(
            help="Put this tag on the new version; the name stays where it is.",
            metavar="TAG",
            show_default=False,
        ),
    ] = None,
    why: WhyOption = "",
) -> None:
    """Store an adapter again in another code, as a new version, and print its reference."""
    from hyprstream.runtime import Note, Target, load_settings, open_adapters

    given = {"error": error, "size_bytes": max_bytes}
    aims: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if aims and codec != "neural":
        raise InvalidRequestError(
            f"{codec} keeps every bit, so neither --error nor --max-bytes has a meaning",
            hint="Leave them out, or choose --codec neural.",
        )
    target = Target(**aims)
    output = session_of(ctx).output
    with open_adapters(load_settings()) as adapters:
        before = adapters.manifest(adapters.resolve(adapter)).payload.size_bytes
        done = adapters.compress(adapter, codec, target=target, tag=tag, note=Note(by=_BY, why=why))
        after = adapters.manifest(done.version).payload.size_bytes
        name = AdapterRef.parse(adapter).name
    lost = done.report.relative_error
    error_text = f", error {lost:.3f} of what it adds" if lost else ", every bit kept"
    output.done(f"{in_bytes(after)} in {codec} instead of {in_bytes(before)}{error_text}")
    output.text(f"{name}@{done.version[:12]}\n")


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
