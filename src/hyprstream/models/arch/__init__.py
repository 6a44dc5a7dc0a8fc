"""Model families: one file each, named as `config.json` names its `model_type`."""

from collections.abc import Mapping

ALIASES: Mapping[str, str] = {}
