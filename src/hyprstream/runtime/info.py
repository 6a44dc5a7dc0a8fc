"""What a model is, told without loading its weights or touching the network."""

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hyprstream.catalog.catalog import Catalog
from hyprstream.catalog.records import CachedModel
from hyprstream.errors import HyprstreamError
from hyprstream.models.checkpoint import GgufFile
from hyprstream.models.load import OpenModel, open_model
from hyprstream.models.tokenizer import Tokenizer
from hyprstream.refs import ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What `hyprstream model info` shows."""

    name: str
    path: Path
    format: str
    architecture: str
    kind: Literal["decoder", "encoder"]
    num_parameters: int
    size_bytes: int
    tensor_types: dict[str, int]
    """Storage type -> number of tensors stored so."""
    context_length: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    tokenizer: str
    """Kind and size of the vocabulary, or why it cannot be used."""
    chat_template: str | None
    license: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON and YAML."""
        return {**asdict(self), "path": str(self.path)}


def describe_model(model: OpenModel, tokenizer: Tokenizer | HyprstreamError) -> ModelInfo:
    """Describe a model that has been opened.

    Args:
        model: The model.
        tokenizer: Its tokenizer, or why it has none: it can still be looked at.
    """
    config, checkpoint = model.config, model.checkpoint
    infos = [checkpoint.info(name) for name in checkpoint.names()]
    metadata = checkpoint.metadata if isinstance(checkpoint, GgufFile) else {}
    if isinstance(tokenizer, HyprstreamError):
        vocabulary, template = f"unusable: {tokenizer}", None
    else:
        vocabulary, template = tokenizer.description, tokenizer.chat_template
    return ModelInfo(
        name=str(metadata.get("general.name") or model.path.name),
        path=model.path,
        format=model.format,
        architecture=config.architecture,
        kind="decoder" if config.causal else "encoder",
        num_parameters=sum(math.prod(info.shape) for info in infos),
        size_bytes=sum(info.size_bytes for info in infos),
        tensor_types=dict(Counter(info.kind for info in infos).most_common()),
        context_length=config.context_length,
        width=config.width,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        vocab_size=config.vocab_size,
        tokenizer=vocabulary,
        chat_template=template,
        license=str(metadata["general.license"]) if "general.license" in metadata else None,
    )


def remove_weights(catalog: Catalog, ref: ModelRef) -> int:
    """Remove the weights of a cached model; `kept_info` still tells what it was.

    Returns:
        How many bytes of disk became free; content that other models share stays.

    Raises:
        ModelNotFoundError: It is not in the cache.
        CacheBusyError: It is being fetched right now.
    """

    def for_later(model: CachedModel) -> bytes:
        try:
            return json.dumps(describe(model.path).to_dict()).encode()
        except HyprstreamError:  # it could not be looked at before either
            return b""

    return catalog.upkeep.remove_weights(ref, for_later)


def kept_info(catalog: Catalog, ref: ModelRef) -> ModelInfo | None:
    """Describe a model of which the weights were removed; None for any other."""
    if ref.is_path:
        return None
    text = catalog.upkeep.description(ref)
    try:
        values = json.loads(text or b"null")
        return ModelInfo(**{**values, "path": Path(values["path"])}) if values else None
    except (ValueError, TypeError, KeyError):  # damaged, or of another version of this program
        return None


def describe(path: Path) -> ModelInfo:
    """Describe the model at `path`.

    Raises:
        HyprstreamError: Nothing is there, or it is damaged or of an unknown family.
    """
    model = open_model(path)
    try:
        return describe_model(model, model.tokenizer())
    except HyprstreamError as error:
        return describe_model(model, error)
