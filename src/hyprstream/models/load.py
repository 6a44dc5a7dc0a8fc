"""A path to a model: find the family, read its numbers, place its weights.

`open_model` looks and costs milliseconds; `OpenModel.load` places the weights.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from hyprstream import lookup
from hyprstream.errors import (
    CorruptWeightsError,
    InvalidSettingsError,
    ModelNotFoundError,
    UnsupportedArchitectureError,
    UnsupportedFormatError,
)
from hyprstream.models import arch
from hyprstream.models.changes import NO_CHANGES
from hyprstream.models.checkpoint import Checkpoint, GgufFile, open_checkpoint
from hyprstream.models.config import Fields, ModelConfig, Pooling
from hyprstream.models.decoder import Decoder
from hyprstream.models.encoder import Encoder
from hyprstream.models.quant import Quantization
from hyprstream.models.tokenizer import Tokenizer
from hyprstream.models.weights import (
    CheckpointWeights,
    Names,
    Placement,
    Source,
    gguf_names,
    hf_names,
)

_MAX_JSON_BYTES = 16 << 20
_MAX_FACTORS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenModel:
    """A model whose description has been read and checked, and whose weights lie mapped.

    Attributes:
        path: The file or folder.
        format: `gguf` or `safetensors`.
        config: What the model is made of.
        checkpoint: Its tensors.
        folder: Where files beside the weights lie; None for a GGUF file.
    """

    path: Path
    format: str
    config: ModelConfig
    checkpoint: Checkpoint
    folder: Path | None
    family: ModuleType

    def load(
        self,
        *,
        device: torch.device,
        dtype: torch.dtype,
        quantization: Quantization | None = None,
        expand: bool = False,
        context_length: int | None = None,
    ) -> Decoder | Encoder:
        """Place the weights and compose the model.

        Args:
            device: Where to compute.
            dtype: Dtype of activations and dense weights.
            quantization: Storage format for dense linear layers; None keeps them.
            expand: Turn quantised weights into dense ones of `dtype`.
            context_length: Most positions to serve; None serves what the model was made for.

        Raises:
            CorruptWeightsError: A tensor is missing or has a wrong shape.
            InvalidSettingsError: The context is longer than the model's.
        """
        config = self.config
        if context_length is not None:
            config = _served(config, context_length)
        kind = "GGUF" if self.folder is None else "HF"
        source = Source(
            path=self.path,
            checkpoint=self.checkpoint,
            names=self._names(),
            changes=getattr(self.family, f"{kind}_CHANGES", NO_CHANGES),
        )
        placement = Placement(device=device, dtype=dtype, quantization=quantization, expand=expand)
        weights = CheckpointWeights(source, config, placement)
        model: Decoder | Encoder = self.family.build(config, weights)
        # Repacking has read the whole file; mapped pages that are used come back by themselves.
        self.checkpoint.release_all()
        return model

    def tokenizer(self) -> Tokenizer:
        """Read the tokenizer that came with the model.

        Raises:
            HyprstreamError: There is none, or it is damaged or of an unknown kind.
        """
        if self.folder is not None:
            return Tokenizer.from_folder(self.folder)
        assert isinstance(self.checkpoint, GgufFile)
        return Tokenizer.from_gguf(self.checkpoint.metadata)

    def _names(self) -> Names:
        return hf_names if self.folder is not None else gguf_names(self.family.GGUF_NAMES)


def open_model(path: Path) -> OpenModel:
    """Read a model's description and map its weights, without placing them.

    Args:
        path: A GGUF file, a SafeTensors file with `config.json` beside it, or a folder.

    Raises:
        ModelNotFoundError: Nothing is there, or no weights are in the folder.
        UnsupportedArchitectureError: No file in `models/arch` serves the family.
        UnsupportedFormatError: The weights are stored in a way that is not read here.
        CorruptWeightsError: A file breaks the rules of its format.
    """
    checkpoint = open_checkpoint(path)
    if isinstance(checkpoint, GgufFile):
        return _open_gguf(path, checkpoint)
    folder = path if path.is_dir() else path.parent
    hf = read_json(folder / "config.json")
    if hf is None:
        raise ModelNotFoundError(
            f"{folder} has weights and no config.json",
            hint="Put the model's config.json and tokenizer.json beside its weights.",
        )
    if hf.get("quantization_config"):
        method = hf["quantization_config"]
        name = method.get("quant_method", method) if isinstance(method, Mapping) else method
        raise UnsupportedFormatError(
            f"{folder} is quantised by {name!r}, which is not read here",
            hint="Use the original model with --quantize int8 or int4, or a GGUF file of it.",
        )
    family = _family(Fields(hf, "config.json").word("model_type"))
    return OpenModel(
        path=path,
        format="safetensors",
        config=_with_sentence_settings(family.parse(hf), folder),
        checkpoint=checkpoint,
        folder=folder,
        family=family,
    )


def _open_gguf(path: Path, file: GgufFile) -> OpenModel:
    metadata = dict(file.metadata)
    name = Fields(metadata, str(path)).word("general.architecture")
    family = _family(name)
    if not hasattr(family, "parse_gguf"):
        raise UnsupportedArchitectureError(f"{path}: no GGUF form of {name!r} is known")
    if "token_embd.weight" in file:  # vocab_size is an optional key; the table is there anyway
        metadata[f"{name}.vocab_size"] = file.info("token_embd.weight").shape[0]

    def factors(tensor: str) -> tuple[float, ...]:
        if tensor not in file:
            return ()
        info = file.info(tensor)
        if info.kind != "F32" or len(info.shape) != 1 or info.shape[0] > _MAX_FACTORS:
            raise CorruptWeightsError(path, f"tensor {tensor} is no short F32 vector")
        return tuple(file.tensor(tensor).tolist())

    config = family.parse_gguf(Fields(metadata, str(path), prefix=f"{name}."), factors)
    return OpenModel(
        path=path, format="gguf", config=config, checkpoint=file, folder=None, family=family
    )


def _family(model_type: str) -> ModuleType:
    return lookup.load(
        "hyprstream.models.arch",
        model_type,
        kind="model family",
        aliases=arch.ALIASES,
        error=UnsupportedArchitectureError,
    )


def _served(config: ModelConfig, context_length: int) -> ModelConfig:
    if not 1 <= context_length <= config.context_length:
        raise InvalidSettingsError(
            f"context is {context_length}, the model was made for {config.context_length}",
            hint=f"Choose a context from 1 to {config.context_length}.",
        )
    return config.with_context(context_length)


def _with_sentence_settings(config: ModelConfig, folder: Path) -> ModelConfig:
    """Add what a sentence-transformers folder says about turning states into vectors."""
    pooling = read_json(folder / "1_Pooling" / "config.json")
    if pooling is None:
        return config
    chosen: dict[str, Pooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
    }
    modes = [mode for key, mode in chosen.items() if pooling.get(key) is True]
    if len(modes) != 1:
        raise UnsupportedArchitectureError(
            f"{folder}: its pooling is not one of mean, cls and last token"
        )
    limits = Fields(read_json(folder / "sentence_bert_config.json") or {}, str(folder))
    max_tokens = limits.integer("max_seq_length", config.context_length)
    return config.with_pooling(modes[0], normalize=_normalizes(folder), max_tokens=max_tokens)


def _normalizes(folder: Path) -> bool:
    modules = folder / "modules.json"
    return modules.is_file() and "models.Normalize" in modules.read_text("utf-8")[:_MAX_JSON_BYTES]


def read_json(file: Path) -> dict[str, Any] | None:
    """Read a small JSON object; None where there is no such file.

    Raises:
        CorruptWeightsError: The file is too large or holds anything else.
    """
    if not file.is_file():
        return None
    if file.stat().st_size > _MAX_JSON_BYTES:
        raise CorruptWeightsError(file, f"it is over {_MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptWeightsError(file, f"it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise CorruptWeightsError(file, "it is not a JSON object")
    return value
