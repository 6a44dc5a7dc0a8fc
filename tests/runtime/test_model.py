"""A loaded model as a program sees it."""

import json
import re

import numpy as np
import pytest
import torch

from hyprstream.engine.request import Grammar
from hyprstream.errors import (
    ChatTemplateError,
    InvalidRequestError,
    ModelNotFoundError,
    UnsupportedError,
)
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.models.quant import DenseWeight
from hyprstream.runtime.info import describe
from hyprstream.runtime.model import Model
from tests.models.reference import make_model, variants
from tests.runtime.test_text import byte_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny model over bytes, with a chat template."""
    folder = tmp_path_factory.mktemp("model")
    make_model({**variants("llama")["plain"], "vocab_size": 256}).save_pretrained(folder)
    byte_tokenizer(folder)
    template = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
    config = {"chat_template": template + "{% if add_generation_prompt %}assistant:{% endif %}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def model(folder) -> Model:
    return Model.load(folder)


def test_stream_and_generate_agree(model):
    streamed = model.stream("abc", temperature=0, max_tokens=9)
    text = "".join(delta.text for delta in streamed)
    assert model.generate("abc", temperature=0, max_tokens=9).text == text
    assert streamed.completion.usage.prompt_tokens == 3


def test_the_seed_that_was_drawn_reproduces_the_answer(model):
    first = model.generate("abc", max_tokens=20)
    again = model.generate("abc", max_tokens=20, seed=first.seed)
    assert again.text == first.text


def test_chat_goes_through_the_template(model):
    messages = [{"role": "user", "content": "hi"}]
    expected = model.tokenizer.encode("user:hi;assistant:")
    assert model.chat_tokens(messages) == expected
    assert model.chat(messages, max_tokens=2).usage.prompt_tokens == len(expected)


def test_a_model_without_a_template_cannot_chat(folder, tmp_path):
    for file in folder.iterdir():
        if file.name != "tokenizer_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ChatTemplateError, match="no chat template"):
        Model.load(tmp_path).chat([{"role": "user", "content": "hi"}])


def test_a_parameter_that_does_not_exist_is_named(model):
    with pytest.raises(InvalidRequestError, match="'max_token'") as caught:
        model.generate("abc", max_token=3)
    assert "max_tokens" in caught.value.hint


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelNotFoundError, match="nothing-here"):
        Model.load(tmp_path / "nothing-here")


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantised_at_load_is_close_to_the_original(folder, model, quantize):
    exact = model.generate("abc", temperature=0, max_tokens=1, logprobs=0)
    rounded = Model.load(folder, quantize=quantize).generate(
        "abc", temperature=0, max_tokens=1, logprobs=0
    )
    tolerance = {"int8": 0.05, "int4": 0.7}[quantize]
    first, second = (c.tokens[0].logprobs for c in (exact, rounded))
    assert first is not None
    assert second is not None
    assert second.chosen == pytest.approx(first.chosen, abs=tolerance)


def test_a_model_is_described_without_its_weights(folder):
    info = describe(folder)
    assert (info.architecture, info.kind, info.num_layers) == ("llama", "decoder", 3)
    reference = make_model({**variants("llama")["plain"], "vocab_size": 256})
    assert info.num_parameters == sum(p.numel() for p in reference.parameters())
    assert info.tensor_types == {"F32": 30}
    assert json.loads(json.dumps(info.to_dict()))["vocab_size"] == 256


def test_a_model_without_a_tokenizer_can_still_be_described(folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    assert describe(tmp_path).tokenizer.startswith("unusable: ")


def test_embeddings_do_not_depend_on_their_neighbours(embedding_model):
    model = Model.load(embedding_model, dtype="float32")
    texts = ["short", "a longer text " * 40, "", "x" * 3000, "short"]
    together = model.embed(texts)
    alone = np.concatenate([model.embed([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1.0, atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 0.05
    assert model.embed([]).shape == (0, model.info.width)


def test_a_named_dtype_expands_quantised_weights(default_model):
    opened = open_model(default_model)
    cpu = torch.device("cpu")
    stored = opened.load(device=cpu, dtype=torch.float32)
    dense = opened.load(device=cpu, dtype=torch.float32, expand=True)
    assert isinstance(stored, Decoder)
    assert isinstance(dense, Decoder)
    assert not isinstance(stored._head.weight, DenseWeight)
    assert isinstance(dense._head.weight, DenseWeight)


def test_an_encoder_generates_no_text(embedding_model):
    with pytest.raises(UnsupportedError, match="embedding model"):
        Model.load(embedding_model).generate("a")


def test_an_answer_follows_a_grammar(model):
    grammar = Grammar(kind="regex", text="(ab|cd){3}")
    answer = model.generate("abc", grammar=grammar, max_tokens=20)
    assert re.fullmatch("(ab|cd){3}", answer.text)
    assert answer.finish_reason == "stop"
