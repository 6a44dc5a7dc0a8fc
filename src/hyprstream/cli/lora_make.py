"""The commands of `hyprstream lora` that make versions and files of them."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from hyprstream.cli.lora_names import BY
from hyprstream.cli.lora_shown import say_coverage, warn_of_price
from hyprstream.cli.options import (
    AdapterArgument,
    BaseModelOption,
    ForceOption,
    LoadOptions,
    WhyOption,
    grouped,
)
from hyprstream.cli.session import Context, load_base, load_model, session_of
from hyprstream.cli.text import in_bytes, in_millions
from hyprstream.errors import InvalidRequestError
from hyprstream.refs import AdapterRef

_CODES = "raw and zstd keep every bit; neural keeps what the adapter adds, up to an error."

_NameOption = Annotated[
    str, typer.Option("--name", metavar="NAME", help="What to call it: support, team/poet.")
]
_ForModelOption = Annotated[
    str | None,
    typer.Option(
        "--base-model",
        metavar="MODEL",
        help="The model that it is for. Without it: the setting model.ref.",
        show_default=False,
    ),
]


@grouped
def create(
    ctx: Context,
    *,
    name: _NameOption,
    base_model: _ForModelOption = None,
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
        float | None,
        typer.Option(
            help="Highest learning rate of its training, above 0 and at most 1; kept with it. "
            "Without it training takes its own.",
            show_default=False,
        ),
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
        training={} if learning_rate is None else {"learning_rate": learning_rate},
    )
    with open_adapters(load_settings()) as adapters:
        adapters.check_free(name)
        model = load_model(session, base_model, loading)
        done = create_adapter(adapters, name, model, recipe, Note(by=BY))
        size_bytes = adapters.manifest(done.version).payload.size_bytes
    warn_of_price(session.output, kind, sparsity)
    values = in_millions(done.report.num_values)
    session.output.done(
        f"{kind} for {model.ref}: {values} elements, {in_bytes(size_bytes)} in {done.codec}"
    )
    session.output.text(f"{name}@{done.version[:12]}\n")


def _codec(codec: str | None, *, neural: bool) -> str:
    if neural and codec not in (None, "neural"):
        raise InvalidRequestError(
            f"--neural-compression and --codec {codec} exclude each other",
            hint="Leave out one of the two.",
        )
    return "neural" if neural else codec or "zstd"


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
        done = adapters.compress(adapter, codec, target=target, tag=tag, note=Note(by=BY, why=why))
        after = adapters.manifest(done.version).payload.size_bytes
        name = AdapterRef.parse(adapter).name
    lost = done.report.relative_error
    error_text = f", error {lost:.3f} of what it adds" if lost else ", every bit kept"
    output.done(f"{in_bytes(after)} in {codec} instead of {in_bytes(before)}{error_text}")
    output.text(f"{name}@{done.version[:12]}\n")


@grouped
def import_(
    ctx: Context,
    *,
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH",
            help="A PEFT folder, or a file: SafeTensors, GGUF of llama.cpp, PyTorch.",
        ),
    ],
    name: _NameOption,
    base_model: _ForModelOption = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="A B is scaled by alpha / rank, where the file does not say by what."),
    ] = None,
    allow_pickle: Annotated[
        bool,
        typer.Option(
            "--allow-pickle",
            help="Read a pickled file, in a process of its own: only of people you trust.",
        ),
    ] = False,
    codec: Annotated[str, typer.Option(help=f"How it is stored. {_CODES}")] = "zstd",
    why: WhyOption = "",
    loading: LoadOptions,
) -> None:
    """Take in an adapter that another program made, and print its reference."""
    from hyprstream.runtime import Note, Source, import_adapter, load_settings, open_adapters

    session = session_of(ctx)
    source = Source(path=path.expanduser(), alpha=alpha, allow_pickle=allow_pickle)
    note = Note(by=BY, why=why)
    with open_adapters(load_settings()) as adapters:
        adapters.check_free(name)
        session.output.done(f"{source.path} is an adapter in the format {source.format}")
        model = load_model(session, base_model, loading)
        done, coverage = import_adapter(adapters, name, model, source, codec=codec, note=note)
    say_coverage(session.output, coverage)
    session.output.text(f"{name}@{done.version[:12]}\n")


@grouped
def export(
    ctx: Context,
    *,
    adapter: AdapterArgument,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="PATH", help="The folder or file that shall be."),
    ],
    to: Annotated[
        str, typer.Option(help="The form: peft, safetensors, gguf or pytorch.", metavar="FORMAT")
    ] = "peft",
    fused: Annotated[
        bool,
        typer.Option(
            "--fused",
            help="Write the whole model with the adapter in its weights, --to safetensors or gguf.",
        ),
    ] = False,
    values: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="What values become. Without it they stay.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    base_model: BaseModelOption = None,
    force: ForceOption = False,
    loading: LoadOptions,
) -> None:
    """Write an adapter for other programs, and print where it is."""
    from hyprstream.runtime import Destination, export_adapter, load_settings, open_adapters

    session = session_of(ctx)
    destination = Destination(
        path=output.expanduser(), format=to, values=values, fused=fused, overwrite=overwrite
    )
    with open_adapters(load_settings()) as adapters:
        model = load_base(session, adapters, adapter, base_model, loading)
        warning = export_adapter(adapters, adapter, model, destination, force=force)
    if warning:
        session.output.warn(warning)
    session.output.text(f"{destination.path}\n")
