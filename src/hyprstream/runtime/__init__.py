"""Where the organs meet: what the faces and Python programs talk to.

Names load on first use, so that a command which computes nothing imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyprstream.catalog.card import Progress
    from hyprstream.catalog.catalog import Catalog
    from hyprstream.engine.request import Grammar, SamplingParams
    from hyprstream.lora.exchange.coverage import Coverage
    from hyprstream.lora.spec import LoraSpec
    from hyprstream.lora.summary import ModuleChange, ModuleSummary
    from hyprstream.runtime.adapted import (
        LoadedAdapter,
        Recipe,
        base_model_ref,
        create_adapter,
        load_adapter,
    )
    from hyprstream.runtime.adapter_records import AdapterDiff, AdapterInfo, Committed
    from hyprstream.runtime.adapters import Adapters, open_adapters
    from hyprstream.runtime.device import set_threads
    from hyprstream.runtime.environment import Check, environment_report
    from hyprstream.runtime.exchange import (
        Destination,
        Source,
        export_adapter,
        import_adapter,
    )
    from hyprstream.runtime.info import ModelInfo, describe
    from hyprstream.runtime.model import Model
    from hyprstream.runtime.models import open_catalog
    from hyprstream.runtime.settings import Settings, load_settings
    from hyprstream.runtime.text import Completion, Generation, TextDelta
    from hyprstream.runtime.trained import evaluate_adapter, finish_training
    from hyprstream.runtime.training import Training, TrainingRun
    from hyprstream.runtime.training_records import Evaluated, Trained, TrainingPlan
    from hyprstream.store.records import Note
    from hyprstream.train.augment import AugmentConfig
    from hyprstream.train.curriculum import CurriculumConfig
    from hyprstream.train.dataset import DataConfig
    from hyprstream.train.run import Point, TrainingProgress
    from hyprstream.vdb.learned.rate import Target
    from hyprstream.vdb.statistics import GridStatistics

_HOMES = {
    "AdapterDiff": "hyprstream.runtime.adapter_records",
    "AdapterInfo": "hyprstream.runtime.adapter_records",
    "Adapters": "hyprstream.runtime.adapters",
    "AugmentConfig": "hyprstream.train.augment",
    "Catalog": "hyprstream.catalog.catalog",
    "Check": "hyprstream.runtime.environment",
    "Committed": "hyprstream.runtime.adapter_records",
    "Completion": "hyprstream.runtime.text",
    "Coverage": "hyprstream.lora.exchange.coverage",
    "CurriculumConfig": "hyprstream.train.curriculum",
    "DataConfig": "hyprstream.train.dataset",
    "Destination": "hyprstream.runtime.exchange",
    "Evaluated": "hyprstream.runtime.training_records",
    "Generation": "hyprstream.runtime.text",
    "Grammar": "hyprstream.engine.request",
    "GridStatistics": "hyprstream.vdb.statistics",
    "LoadedAdapter": "hyprstream.runtime.adapted",
    "LoraSpec": "hyprstream.lora.spec",
    "Model": "hyprstream.runtime.model",
    "ModelInfo": "hyprstream.runtime.info",
    "ModuleChange": "hyprstream.lora.summary",
    "ModuleSummary": "hyprstream.lora.summary",
    "Note": "hyprstream.store.records",
    "Point": "hyprstream.train.run",
    "Progress": "hyprstream.catalog.card",
    "Recipe": "hyprstream.runtime.adapted",
    "SamplingParams": "hyprstream.engine.request",
    "Settings": "hyprstream.runtime.settings",
    "Source": "hyprstream.runtime.exchange",
    "Target": "hyprstream.vdb.learned.rate",
    "TextDelta": "hyprstream.runtime.text",
    "Trained": "hyprstream.runtime.training_records",
    "Training": "hyprstream.runtime.training",
    "TrainingPlan": "hyprstream.runtime.training_records",
    "TrainingProgress": "hyprstream.train.run",
    "TrainingRun": "hyprstream.runtime.training",
    "base_model_ref": "hyprstream.runtime.adapted",
    "create_adapter": "hyprstream.runtime.adapted",
    "describe": "hyprstream.runtime.info",
    "environment_report": "hyprstream.runtime.environment",
    "evaluate_adapter": "hyprstream.runtime.trained",
    "export_adapter": "hyprstream.runtime.exchange",
    "finish_training": "hyprstream.runtime.trained",
    "import_adapter": "hyprstream.runtime.exchange",
    "load_adapter": "hyprstream.runtime.adapted",
    "load_settings": "hyprstream.runtime.settings",
    "open_adapters": "hyprstream.runtime.adapters",
    "open_catalog": "hyprstream.runtime.models",
    "set_threads": "hyprstream.runtime.device",
}

__all__ = [
    "AdapterDiff",
    "AdapterInfo",
    "Adapters",
    "AugmentConfig",
    "Catalog",
    "Check",
    "Committed",
    "Completion",
    "Coverage",
    "CurriculumConfig",
    "DataConfig",
    "Destination",
    "Evaluated",
    "Generation",
    "Grammar",
    "GridStatistics",
    "LoadedAdapter",
    "LoraSpec",
    "Model",
    "ModelInfo",
    "ModuleChange",
    "ModuleSummary",
    "Note",
    "Point",
    "Progress",
    "Recipe",
    "SamplingParams",
    "Settings",
    "Source",
    "Target",
    "TextDelta",
    "Trained",
    "Training",
    "TrainingPlan",
    "TrainingProgress",
    "TrainingRun",
    "base_model_ref",
    "create_adapter",
    "describe",
    "environment_report",
    "evaluate_adapter",
    "export_adapter",
    "finish_training",
    "import_adapter",
    "load_adapter",
    "load_settings",
    "open_adapters",
    "open_catalog",
    "set_threads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
