"""Where the organs meet: what the faces and Python programs talk to.

Names load on first use, so that a command which computes nothing imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyprstream.catalog.card import Progress
    from hyprstream.catalog.catalog import Catalog
    from hyprstream.catalog.credentials import Provider
    from hyprstream.catalog.many import Found, registry_statuses, search_models
    from hyprstream.catalog.offer import Offer, RegistryStatus
    from hyprstream.catalog.records import CachedModel, CacheStatus, Damage, Leftover, Repair
    from hyprstream.catalog.upkeep import Upkeep
    from hyprstream.engine.request import Grammar, SamplingParams
    from hyprstream.engine.stats import EngineStats
    from hyprstream.lora.exchange.coverage import Coverage
    from hyprstream.lora.spec import LoraSpec
    from hyprstream.lora.summary import ModuleChange, ModuleSummary
    from hyprstream.runtime.accounts import Account, Accounts, open_accounts
    from hyprstream.runtime.adapted import (
        LoadedAdapter,
        Recipe,
        base_model_ref,
        commit_fresh,
        create_adapter,
        load_adapter,
    )
    from hyprstream.runtime.adapter_records import AdapterDiff, AdapterInfo, Committed
    from hyprstream.runtime.adapters import Adapters, open_adapters
    from hyprstream.runtime.canary import Trial
    from hyprstream.runtime.coverage import AdapterCoverage, adapter_coverage
    from hyprstream.runtime.device import set_threads
    from hyprstream.runtime.enrolment import learner_of
    from hyprstream.runtime.environment import Check, environment_report
    from hyprstream.runtime.exchange import (
        Destination,
        Source,
        export_adapter,
        import_adapter,
    )
    from hyprstream.runtime.info import ModelInfo, describe, kept_info, remove_weights
    from hyprstream.runtime.journal_rows import Decision
    from hyprstream.runtime.learners import LessonProgress
    from hyprstream.runtime.learning_report import LearningStatus, learning_status
    from hyprstream.runtime.learning_stats import LearningStats
    from hyprstream.runtime.model import Model
    from hyprstream.runtime.models import open_catalog
    from hyprstream.runtime.policy import LearningPolicy, Policies
    from hyprstream.runtime.retention import erase_samples
    from hyprstream.runtime.runtime import Runtime
    from hyprstream.runtime.sample_training import SampleTraining
    from hyprstream.runtime.samples import (
        Sent,
        conversation,
        retry_samples,
        sample_maker,
        samples_of_files,
        send_samples,
    )
    from hyprstream.runtime.settings import Settings, load_settings
    from hyprstream.runtime.text import Completion, Generation, TextDelta
    from hyprstream.runtime.text_service import Caller
    from hyprstream.runtime.trained import evaluate_adapter, finish_training
    from hyprstream.runtime.training import Training, TrainingRun
    from hyprstream.runtime.training_place import TrainingPlace
    from hyprstream.runtime.training_records import Evaluated, Trained, TrainingPlan
    from hyprstream.store.records import Adapter, Canary, Collected, Move, Note
    from hyprstream.train.augment import AugmentConfig
    from hyprstream.train.buffer import Owner
    from hyprstream.train.curriculum import CurriculumConfig
    from hyprstream.train.dataset import DataConfig
    from hyprstream.train.run import Point, TrainingProgress
    from hyprstream.vdb.learned.rate import Target
    from hyprstream.vdb.statistics import GridStatistics

_HOMES = {
    "Account": "hyprstream.runtime.accounts",
    "Accounts": "hyprstream.runtime.accounts",
    "Adapter": "hyprstream.store.records",
    "AdapterCoverage": "hyprstream.runtime.coverage",
    "AdapterDiff": "hyprstream.runtime.adapter_records",
    "AdapterInfo": "hyprstream.runtime.adapter_records",
    "Adapters": "hyprstream.runtime.adapters",
    "AugmentConfig": "hyprstream.train.augment",
    "CacheStatus": "hyprstream.catalog.records",
    "CachedModel": "hyprstream.catalog.records",
    "Caller": "hyprstream.runtime.text_service",
    "Canary": "hyprstream.store.records",
    "Catalog": "hyprstream.catalog.catalog",
    "Check": "hyprstream.runtime.environment",
    "Collected": "hyprstream.store.records",
    "Committed": "hyprstream.runtime.adapter_records",
    "Completion": "hyprstream.runtime.text",
    "Coverage": "hyprstream.lora.exchange.coverage",
    "CurriculumConfig": "hyprstream.train.curriculum",
    "Damage": "hyprstream.catalog.records",
    "DataConfig": "hyprstream.train.dataset",
    "Decision": "hyprstream.runtime.journal_rows",
    "Destination": "hyprstream.runtime.exchange",
    "EngineStats": "hyprstream.engine.stats",
    "Evaluated": "hyprstream.runtime.training_records",
    "Found": "hyprstream.catalog.many",
    "Generation": "hyprstream.runtime.text",
    "Grammar": "hyprstream.engine.request",
    "GridStatistics": "hyprstream.vdb.statistics",
    "LearningPolicy": "hyprstream.runtime.policy",
    "LearningStats": "hyprstream.runtime.learning_stats",
    "LearningStatus": "hyprstream.runtime.learning_report",
    "Leftover": "hyprstream.catalog.records",
    "LessonProgress": "hyprstream.runtime.learners",
    "LoadedAdapter": "hyprstream.runtime.adapted",
    "LoraSpec": "hyprstream.lora.spec",
    "Model": "hyprstream.runtime.model",
    "ModelInfo": "hyprstream.runtime.info",
    "ModuleChange": "hyprstream.lora.summary",
    "ModuleSummary": "hyprstream.lora.summary",
    "Move": "hyprstream.store.records",
    "Note": "hyprstream.store.records",
    "Offer": "hyprstream.catalog.offer",
    "Owner": "hyprstream.train.buffer",
    "Point": "hyprstream.train.run",
    "Policies": "hyprstream.runtime.policy",
    "Progress": "hyprstream.catalog.card",
    "Provider": "hyprstream.catalog.credentials",
    "Recipe": "hyprstream.runtime.adapted",
    "RegistryStatus": "hyprstream.catalog.offer",
    "Repair": "hyprstream.catalog.records",
    "Runtime": "hyprstream.runtime.runtime",
    "SampleTraining": "hyprstream.runtime.sample_training",
    "SamplingParams": "hyprstream.engine.request",
    "Sent": "hyprstream.runtime.samples",
    "Settings": "hyprstream.runtime.settings",
    "Source": "hyprstream.runtime.exchange",
    "Target": "hyprstream.vdb.learned.rate",
    "TextDelta": "hyprstream.runtime.text",
    "Trained": "hyprstream.runtime.training_records",
    "Training": "hyprstream.runtime.training",
    "TrainingPlace": "hyprstream.runtime.training_place",
    "TrainingPlan": "hyprstream.runtime.training_records",
    "TrainingProgress": "hyprstream.train.run",
    "TrainingRun": "hyprstream.runtime.training",
    "Trial": "hyprstream.runtime.canary",
    "Upkeep": "hyprstream.catalog.upkeep",
    "adapter_coverage": "hyprstream.runtime.coverage",
    "base_model_ref": "hyprstream.runtime.adapted",
    "commit_fresh": "hyprstream.runtime.adapted",
    "conversation": "hyprstream.runtime.samples",
    "create_adapter": "hyprstream.runtime.adapted",
    "describe": "hyprstream.runtime.info",
    "environment_report": "hyprstream.runtime.environment",
    "erase_samples": "hyprstream.runtime.retention",
    "evaluate_adapter": "hyprstream.runtime.trained",
    "export_adapter": "hyprstream.runtime.exchange",
    "finish_training": "hyprstream.runtime.trained",
    "import_adapter": "hyprstream.runtime.exchange",
    "kept_info": "hyprstream.runtime.info",
    "learner_of": "hyprstream.runtime.enrolment",
    "learning_status": "hyprstream.runtime.learning_report",
    "load_adapter": "hyprstream.runtime.adapted",
    "load_settings": "hyprstream.runtime.settings",
    "open_accounts": "hyprstream.runtime.accounts",
    "open_adapters": "hyprstream.runtime.adapters",
    "open_catalog": "hyprstream.runtime.models",
    "registry_statuses": "hyprstream.catalog.many",
    "remove_weights": "hyprstream.runtime.info",
    "retry_samples": "hyprstream.runtime.samples",
    "sample_maker": "hyprstream.runtime.samples",
    "samples_of_files": "hyprstream.runtime.samples",
    "search_models": "hyprstream.catalog.many",
    "send_samples": "hyprstream.runtime.samples",
    "set_threads": "hyprstream.runtime.device",
}

__all__ = [
    "Account",
    "Accounts",
    "Adapter",
    "AdapterCoverage",
    "AdapterDiff",
    "AdapterInfo",
    "Adapters",
    "AugmentConfig",
    "CacheStatus",
    "CachedModel",
    "Caller",
    "Canary",
    "Catalog",
    "Check",
    "Collected",
    "Committed",
    "Completion",
    "Coverage",
    "CurriculumConfig",
    "Damage",
    "DataConfig",
    "Decision",
    "Destination",
    "EngineStats",
    "Evaluated",
    "Found",
    "Generation",
    "Grammar",
    "GridStatistics",
    "LearningPolicy",
    "LearningStats",
    "LearningStatus",
    "Leftover",
    "LessonProgress",
    "LoadedAdapter",
    "LoraSpec",
    "Model",
    "ModelInfo",
    "ModuleChange",
    "ModuleSummary",
    "Move",
    "Note",
    "Offer",
    "Owner",
    "Point",
    "Policies",
    "Progress",
    "Provider",
    "Recipe",
    "RegistryStatus",
    "Repair",
    "Runtime",
    "SampleTraining",
    "SamplingParams",
    "Sent",
    "Settings",
    "Source",
    "Target",
    "TextDelta",
    "Trained",
    "Training",
    "TrainingPlace",
    "TrainingPlan",
    "TrainingProgress",
    "TrainingRun",
    "Trial",
    "Upkeep",
    "adapter_coverage",
    "base_model_ref",
    "commit_fresh",
    "conversation",
    "create_adapter",
    "describe",
    "environment_report",
    "erase_samples",
    "evaluate_adapter",
    "export_adapter",
    "finish_training",
    "import_adapter",
    "kept_info",
    "learner_of",
    "learning_status",
    "load_adapter",
    "load_settings",
    "open_accounts",
    "open_adapters",
    "open_catalog",
    "registry_statuses",
    "remove_weights",
    "retry_samples",
    "sample_maker",
    "samples_of_files",
    "search_models",
    "send_samples",
    "set_threads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
