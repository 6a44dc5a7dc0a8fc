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

    from hyprstream.runtime import (
        AdapterDiff,
        AdapterInfo,
        Adapters,
        CachedModel,
        CacheStatus,
        Canary,
        Collected,
        Completion,
        Coverage,
        Damage,
        Decision,
        Generation,
        GridStatistics,
        LearningPolicy,
        LearningStatus,
        Leftover,
        LessonProgress,
        Model,
        ModelInfo,
        ModuleChange,
        ModuleSummary,
        Offer,
        Point,
        Progress,
        Repair,
        SampleTraining,
        SamplingParams,
        Sent,
        Settings,
        Trained,
        TrainingRun,
        Trial,
        Upkeep,
    )
else:
    AdapterDiff = AdapterInfo = Adapters = Collected = Coverage = object
    GridStatistics = ModuleChange = ModuleSummary = object
    CachedModel = CacheStatus = Damage = Leftover = Offer = Progress = Repair = Upkeep = object
    Point = Trained = TrainingRun = object
    Decision = LearningPolicy = LearningStatus = LessonProgress = SampleTraining = Sent = object
    Canary = Trial = object
    Completion = Generation = Model = ModelInfo = SamplingParams = Settings = object
    Context = typer.Context.__base__  # what typer gives to commands; the tests check types

__all__ = [
    "AdapterDiff",
    "AdapterInfo",
    "Adapters",
    "CacheStatus",
    "CachedModel",
    "Canary",
    "Collected",
    "Completion",
    "Context",
    "Coverage",
    "Damage",
    "Decision",
    "Generation",
    "GridStatistics",
    "LearningPolicy",
    "LearningStatus",
    "Leftover",
    "LessonProgress",
    "Model",
    "ModelInfo",
    "ModuleChange",
    "ModuleSummary",
    "Offer",
    "Point",
    "Progress",
    "Repair",
    "SampleTraining",
    "SamplingParams",
    "Sent",
    "Session",
    "Settings",
    "Trained",
    "TrainingRun",
    "Trial",
    "Upkeep",
    "load_base",
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


def load_model(
    session: Session,
    ref: str | None,
    options: LoadOptions,
    *,
    adapter: str | None = None,
    force: bool = False,
) -> Model:
    """Load a model, and the adapter that it shall answer with, showing a download if there is one.

    Args:
        session: Of the command.
        ref: The model; None takes that of the adapter, or of the settings.
        options: How to load it.
        adapter: Reference of an adapter.
        force: Take an adapter that was made for another model.

    Raises:
        HyprstreamError: Whatever stands against it.
    """
    from hyprstream.runtime import load_settings, set_threads

    settings = load_settings()
    if options.threads is not None:
        set_threads(options.threads)
    if adapter is None:
        return _load(session, settings.model.ref if ref is None else ref, options, settings)
    from hyprstream.runtime import load_adapter, open_adapters

    with open_adapters(settings) as adapters:
        model = load_base(session, adapters, adapter, ref, options)
        loaded = load_adapter(adapters, adapter, model, force=force)
    if loaded.warning:
        session.output.warn(loaded.warning)
    return model.adapted(loaded.weights, f"{adapter.partition('@')[0]}@{loaded.version[:12]}")


def load_base(
    session: Session, adapters: Adapters, adapter: str, ref: str | None, options: LoadOptions
) -> Model:
    """Load the model of `ref`, or the one that an adapter was made for.

    Raises:
        HyprstreamError: Whatever stands against it.
    """
    from hyprstream.runtime import base_model_ref, load_settings

    settings = load_settings()
    adapters.resolve(adapter)  # refuse a wrong name before weights are loaded
    base = ref or base_model_ref(adapters, adapter, settings)
    return _load(session, base, options, settings)


def _load(session: Session, ref: str, options: LoadOptions, settings: Settings) -> Model:
    from hyprstream.runtime import Model

    with session.output.progress() as progress:
        return Model.load(
            ref,
            device=options.device,
            dtype=options.dtype,
            quantize=options.quantize,
            context=options.context,
            progress=progress,
            settings=settings,
        )
