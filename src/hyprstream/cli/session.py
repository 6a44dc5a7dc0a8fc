"""What one run of the program carries from its global options to a command.

What computes brings torch with it and takes seconds to import. It is imported inside the
functions that need it; its types, which signatures name, are known to the type checker only.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from hyprstream.cli.options import LoadOptions
from hyprstream.cli.output import Output

if TYPE_CHECKING:
    from typer import Context

    from hyprstream.runtime import Completion, Generation, Model, ModelInfo, SamplingParams
else:
    Completion = Generation = Model = ModelInfo = SamplingParams = object
    Context = typer.Context.__base__  # what typer gives to commands; the tests check types

__all__ = [
    "Completion",
    "Context",
    "Generation",
    "Model",
    "ModelInfo",
    "SamplingParams",
    "Session",
    "load_model",
    "session_of",
]


@dataclass(slots=True, kw_only=True)
class Session:
    """One run of the program.

    Attributes:
        output: What the commands print with.
        debug: Show the traceback of an error.
    """

    output: Output
    debug: bool = False


def session_of(ctx: Context) -> Session:
    """Return the session that `main` gave to the command line."""
    session = ctx.find_object(Session)
    assert session is not None, "the command line was run without a session"
    return session


def load_model(session: Session, ref: str | None, options: LoadOptions) -> Model:
    """Load the model of `ref`, or of the settings, showing a download if there is one.

    Raises:
        HyprstreamError: Whatever stands against it.
    """
    from hyprstream.runtime import Model, load_settings, set_threads

    settings = load_settings()
    if options.threads is not None:
        set_threads(options.threads)
    with session.output.progress() as progress:
        return Model.load(
            settings.model.ref if ref is None else ref,
            device=options.device,
            dtype=options.dtype,
            quantize=options.quantize,
            context=options.context,
            progress=progress,
            settings=settings,
        )
