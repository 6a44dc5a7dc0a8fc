"""Model families: one file each, named as `config.json` names its `model_type`.

A decoder's file has

    parse(hf) -> ModelConfig                  config.json to ours
    parse_gguf(fields, factors) -> ModelConfig    GGUF metadata to ours
    build(config, weights) -> Decoder         composes the parts of models/layers.py
    GGUF_NAMES                                our paths -> names in a GGUF file

and, where layers compute at once what others compute apart,

    JOINED, joined_rows(config)                end of a path -> its parts; their outputs

and, where the formats store weights differently from how they are used, HF_CHANGES or
GGUF_CHANGES: path suffix -> change applied while loading. In SafeTensors files names are
our paths behind a prefix.
"""

from collections.abc import Mapping

ALIASES: Mapping[str, str] = {
    "gemma3": "gemma3_text",
    "qwen3moe": "qwen3_moe",
}
"""Other names that files use for a family."""
