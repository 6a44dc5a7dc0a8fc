"""Where the organs meet: what the faces and Python programs talk to.

Names load on first use, so that a command which computes nothing imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyprstream.catalog.card import Progress
    from hyprstream.catalog.catalog import Catalog
    from hyprstream.engine.request import Grammar, SamplingParams
    from hyprstream.runtime.device import set_threads
    from hyprstream.runtime.environment import Check, environment_report
    from hyprstream.runtime.info import ModelInfo, describe
    from hyprstream.runtime.model import Model
    from hyprstream.runtime.models import open_catalog
    from hyprstream.runtime.settings import Settings, load_settings
    from hyprstream.runtime.text import Completion, Generation, TextDelta

_HOMES = {
    "Catalog": "hyprstream.catalog.catalog",
    "Check": "hyprstream.runtime.environment",
    "Completion": "hyprstream.runtime.text",
    "Generation": "hyprstream.runtime.text",
    "Grammar": "hyprstream.engine.request",
    "Model": "hyprstream.runtime.model",
    "ModelInfo": "hyprstream.runtime.info",
    "Progress": "hyprstream.catalog.card",
    "SamplingParams": "hyprstream.engine.request",
    "Settings": "hyprstream.runtime.settings",
    "TextDelta": "hyprstream.runtime.text",
    "describe": "hyprstream.runtime.info",
    "environment_report": "hyprstream.runtime.environment",
    "load_settings": "hyprstream.runtime.settings",
    "open_catalog": "hyprstream.runtime.models",
    "set_threads": "hyprstream.runtime.device",
}

__all__ = [
    "Catalog",
    "Check",
    "Completion",
    "Generation",
    "Grammar",
    "Model",
    "ModelInfo",
    "Progress",
    "SamplingParams",
    "Settings",
    "TextDelta",
    "describe",
    "environment_report",
    "load_settings",
    "open_catalog",
    "set_threads",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
