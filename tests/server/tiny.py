"""A tiny model over bytes that chats and calls tools, and adapters for it."""

import json
from pathlib import Path

from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.model import Model
from hyprstream.runtime.settings import Settings
from tests.models.reference import make_model, variants
from tests.runtime.adapted_models import commit, trained
from tests.runtime.test_text import byte_tokenizer

TEMPLATE = (
    "{% if tools %}tools:{% for t in tools %}{{ t.function.name }},{% endfor %}<tool_call>;"
    "{% endif %}{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments.x }}"
    "{% endfor %};{% endfor %}assistant:"
)
ADAPTERS = ("poet", "team/clerk")


def make_home(home: Path) -> Model:
    """Put a model, `home/model`, and its adapters into a home."""
    folder = home / "model"
    folder.mkdir(parents=True)
    config = {**variants("llama")["plain"], "vocab_size": 256, "max_position_embeddings": 2048}
    make_model(config).save_pretrained(folder)
    byte_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    settings = Settings(home=home)
    model = Model.load(folder, settings=settings)
    with open_adapters(settings) as adapters:
        for number, name in enumerate(ADAPTERS):
            commit(adapters, name, model, trained(model, number + 1))
    return model
