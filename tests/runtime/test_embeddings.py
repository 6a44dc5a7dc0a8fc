"""Texts to vectors: what transformers computes, with the adapter that was asked for."""

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from hyprstream.errors import InvalidRequestError
from hyprstream.runtime.model import Model
from tests.lora.adapters import save_merged
from tests.runtime.adapted_models import make_folder, trained

TEXTS = ["a cat sat", "the price of tea in 1924", "x", "a cat sat!"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("embeddings") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return Model.load(folder, dtype="float32")


def reference(folder, model, texts, pooling):
    """Each text alone through transformers, pooled by hand."""
    judge = transformers.AutoModel.from_pretrained(folder).eval().float()
    vectors = []
    for text in texts:
        ids = torch.tensor([model.tokenizer.encode(text)])
        with torch.no_grad():
            hidden = judge(input_ids=ids).last_hidden_state[0]
        vector = hidden.mean(0) if pooling == "mean" else hidden[-1]
        vectors.append((vector / vector.norm()).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_decoder_embeds_as_transformers_does(folder, model, pooling):
    expected = reference(folder, model, TEXTS, pooling)
    np.testing.assert_allclose(model.embed(TEXTS, pooling=pooling), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_vector_is_that_of_the_model_with_the_adapter_in_its_weights(
    folder, model, tmp_path, pooling
):
    weights = trained(model, seed=3)
    save_merged(folder, weights, tmp_path / "merged")
    expected = reference(tmp_path / "merged", model, TEXTS, pooling)
    ours = model.adapted(weights).embed(TEXTS, pooling=pooling)
    np.testing.assert_allclose(ours, expected, atol=1e-5)


def test_other_texts_and_other_adapters_have_other_vectors(model):
    adapted = [model.adapted(trained(model, seed)).embed(TEXTS) for seed in (1, 2)]
    vectors = np.concatenate([model.embed(TEXTS), *adapted])
    similarity = vectors @ vectors.T
    assert similarity[~np.eye(len(vectors), dtype=bool)].max() < 0.9999
    np.testing.assert_allclose(np.diag(similarity), 1, atol=1e-5)


def test_the_files_of_a_model_say_how_it_embeds(folder, model, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    (tmp_path / "model" / "1_Pooling").mkdir()
    pooling = {"pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    limits = {"max_seq_length": 5}
    (tmp_path / "model" / "sentence_bert_config.json").write_text(json.dumps(limits))
    told = Model.load(tmp_path / "model", dtype="float32")
    vectors = told.embed(["a cat sat"])
    cut = model.embed(["a cat"], pooling="mean")
    np.testing.assert_allclose(vectors / np.linalg.norm(vectors), cut, atol=1e-5)
    assert abs(np.linalg.norm(vectors) - 1) > 0.01  # no file asks for unit length


def test_a_decoder_without_settings_takes_its_last_state(model):
    assert (model.embed(TEXTS) == model.embed(TEXTS, pooling="last")).all()


def test_what_says_nothing_of_a_text_is_refused(model):
    with pytest.raises(InvalidRequestError, match="'cls'"):
        model.embed(["a"], pooling="cls")
    with pytest.raises(InvalidRequestError, match="no tokens"):
        model.embed(["a", ""])
