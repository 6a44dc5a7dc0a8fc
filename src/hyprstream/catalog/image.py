"""Manifests of Ollama's registries: which content a model consists of. They are not trusted."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyprstream.errors import RegistryAnswerError, UnsupportedFormatError

_KIND = "application/vnd.ollama.image."
_DIGEST = r"^sha256:[0-9a-f]{64}$"
_MAX_LAYERS = 100
_MAX_BYTES = 1 << 42

# What the layers of a kind are called beside the model; tensors are refused, others left out.
_NAMES: Mapping[str, tuple[str, str]] = {
    "template": ("template", ".txt"),
    "params": ("params", ".json"),
    "license": ("license", ".txt"),
    "system": ("system", ".txt"),
    "messages": ("messages", ".json"),
    "adapter": ("adapter", ".gguf"),
    "projector": ("projector", ".gguf"),
}


class _Layer(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    mediaType: Annotated[str, Field(max_length=400)]  # noqa: N815 - the format's name
    digest: Annotated[str, Field(pattern=_DIGEST, max_length=71)]
    size: Annotated[int, Field(ge=0, le=_MAX_BYTES)]


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    layers: Annotated[list[_Layer], Field(min_length=1, max_length=_MAX_LAYERS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Content that a manifest names.

    Attributes:
        size_bytes: Its length.
        sha256: Its hash, 64 hexadecimal digits.
    """

    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a manifest lists.

    Attributes:
        model: The weights, one GGUF file.
        others: What lies beside them, by the name that it gets.
    """

    model: Layer
    others: Mapping[str, Layer]


def read_image(content: bytes, source: str) -> Image:
    """Read a manifest.

    Args:
        content: JSON, of a bounded length.
        source: Where it is from, for messages.

    Raises:
        RegistryAnswerError: It is not JSON, or breaks the format.
        UnsupportedFormatError: The model is not exactly one GGUF file.
    """
    try:
        manifest = _Manifest.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "all of it"
        raise RegistryAnswerError(
            f"{source} is not a manifest of a model: {where}: {problem['msg']}",
            hint="Check the name; report it to whoever runs the registry.",
        ) from error
    models: list[Layer] = []
    others: dict[str, Layer] = {}
    for entry in manifest.layers:
        layer = Layer(size_bytes=entry.size, sha256=entry.digest.removeprefix("sha256:"))
        kind = entry.mediaType.partition(";")[0].strip().removeprefix(_KIND)
        if kind == "tensor":
            models.clear()
            break
        if kind == "model":
            models.append(layer)
        elif kind in _NAMES:
            stem, suffix = _NAMES[kind]
            number = sum(name.startswith(stem) for name in others)
            others[f"{stem}-{number + 1}{suffix}" if number else f"{stem}{suffix}"] = layer
    if len(models) != 1:
        raise UnsupportedFormatError(
            f"{source} is not a model in one GGUF file",
            hint="Choose another tag, one that is quantised.",
        )
    return Image(model=models[0], others=others)
