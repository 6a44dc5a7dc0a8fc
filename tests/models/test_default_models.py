"""The two default models, real weights, against transformers and recorded references."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.runtime.model import Model
from tests.models.reference import packed_logits

QUESTIONS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "What is 12 plus 30?",
    "Translate 'good morning' to Spanish.",
    "Name three fruits.",
    "Who wrote Romeo and Juliet?",
    "Why is the sky blue?",
    "Give me a haiku about autumn.",
    "What does a compiler do?",
    "Say hello in Japanese.",
)
NUM_TOKENS = 24
# Logits of the two implementations differ by a few 1e-4 in float32; a choice between two
# tokens that are closer than this may go either way.
NEAR_TIE = 2e-3


@pytest.fixture(scope="module")
def reference(default_model):
    """The same file in transformers, its weights expanded to float32."""
    return transformers.AutoModelForCausalLM.from_pretrained(
        default_model.parent, gguf_file=default_model.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def ours(default_model) -> Decoder:
    model = open_model(default_model).load(device=torch.device("cpu"), dtype=torch.float32)
    assert isinstance(model, Decoder)
    return model


@pytest.fixture(scope="module")
def prompts(default_model) -> list[list[int]]:
    model = open_model(default_model)
    tokenizer = model.tokenizer()
    from hyprstream.models.chat import ChatTemplate, encode_chat

    assert tokenizer.chat_template is not None
    template = ChatTemplate(tokenizer.chat_template, tokenizer.special_tokens)
    return [
        encode_chat(tokenizer, template, [{"role": "user", "content": question}])
        for question in QUESTIONS
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "which",
    [slice(4), pytest.param(slice(4, None), marks=pytest.mark.slow)],
    ids=["some", "others"],
)
def test_greedy_answers_to_ten_questions_equal_those_of_transformers(
    ours, reference, prompts, which
):
    for question, prompt in zip(QUESTIONS[which], prompts[which], strict=True):
        answer = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=NUM_TOKENS,
            do_sample=False,
        )[0]
        with torch.no_grad():
            scores = packed_logits(ours, answer)[0][len(prompt) - 1 : -1]
        chosen = scores.gather(1, answer[len(prompt) :, None])[:, 0]
        behind = scores.amax(dim=-1) - chosen
        assert behind.max() < NEAR_TIE, question


def test_chat_prompts_equal_those_of_transformers(default_model, prompts):
    tokenizer = transformers.AutoTokenizer.from_pretrained(
        default_model.parent, gguf_file=default_model.name
    )
    for question, prompt in zip(QUESTIONS, prompts, strict=True):
        theirs = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        assert tokenizer(theirs, add_special_tokens=False)["input_ids"] == prompt


def test_quantised_arithmetic_in_bfloat16_keeps_the_loss(default_model, ours, test_data):
    """Tiles with bfloat16 scales and activations cost less than half a percent of loss."""
    text = (test_data / "corpora" / "cs336" / "tinystories_sample.txt").read_text()[:2500]
    opened = open_model(default_model)
    ids = torch.tensor(opened.tokenizer().encode(text))
    fast = opened.load(device=torch.device("cpu"), dtype=torch.bfloat16)
    assert isinstance(fast, Decoder)

    def loss(model: Decoder) -> float:
        with torch.no_grad():
            scores = packed_logits(model, ids)[0].float().log_softmax(-1)
        return -scores[:-1].gather(1, ids[1:, None]).mean().item()

    assert loss(fast) == pytest.approx(loss(ours), rel=5e-3)


def test_embeddings_equal_the_recorded_reference(embedding_model, test_data):
    folder = test_data / "minilm" / "reference"
    recorded = json.loads((folder / "reference.json").read_text())
    model = Model.load(embedding_model, dtype="float32")
    vectors = model.embed(recorded["sentences"])
    expected = np.load(folder / "embeddings_normalized.npy")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    encoded = [model.tokenizer.encode(text) for text in recorded["sentences"]]
    for ids, theirs in zip(encoded, recorded["input_ids"], strict=True):
        assert ids[: len(theirs) - 1] == theirs[:-1]


def test_embeddings_equal_those_of_transformers(embedding_model):
    """The same statement without recorded data: mean of hidden states, scaled to length 1."""
    reference = transformers.AutoModel.from_pretrained(embedding_model).eval().float()
    tokenizer = transformers.AutoTokenizer.from_pretrained(embedding_model)
    texts = ["A cat sat.", "Quite another sentence, about the price of tea in 1924.", "x"]
    ours = Model.load(embedding_model, dtype="float32").embed(texts)
    for text, vector in zip(texts, ours, strict=True):
        with torch.no_grad():
            hidden = reference(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        expected = torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
        np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_a_quantised_gguf_of_the_encoder_is_close(test_data, embedding_model):
    file = test_data / "minilm" / "gguf" / "all-MiniLM-L6-v2-Q8_0.gguf"
    texts = ["A cat sat.", "Quite another sentence."]
    exact = Model.load(embedding_model, dtype="float32").embed(texts)
    quantised = Model.load(Path(file)).embed(texts)
    assert (exact * quantised).sum(axis=1).min() > 0.999
