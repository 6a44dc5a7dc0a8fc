"""An adapter that PEFT has trained, against what PEFT recorded with it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hyprstream.lora.bank import LoraBank
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.decoder import Decoder
from tests.lora.adapters import make_bank, of_tokens, packed_logits, random_adapter
from tests.lora.peft_folder import read_peft_folder
from tests.models.reference import load_decoder

ADAPTER = "lora/trained_on_stories260K/stories260K_r8_qv"


@pytest.fixture(scope="module")
def folder(test_data) -> Path:
    return test_data / ADAPTER


@pytest.fixture(scope="module")
def model(test_data) -> Decoder:
    return load_decoder(test_data / "stories260K" / "hf")


@pytest.fixture(scope="module")
def weights(folder) -> LoraWeights:
    return read_peft_folder(folder)


@pytest.fixture
def bank(model, weights) -> LoraBank:
    bank = make_bank(model.linears)
    bank.write(1, random_adapter(model.linears, [3, 5], seed=1))
    bank.write(3, weights)
    return bank


def cases(folder: Path) -> list[dict]:
    return json.loads((folder / "reference.json").read_text())["cases"]


def test_logits_equal_those_of_peft_whatever_else_is_in_the_batch(model, folder, bank):
    recorded = cases(folder)
    prompts = [torch.tensor(case["input_ids"]) for case in recorded]
    slots = [3, 1, 3, 0, 3]
    sequences = [prompts[0], prompts[1], prompts[1], prompts[0], prompts[2]]
    scores = packed_logits(model, sequences, bank.view(of_tokens(slots, sequences)))
    for case, ours in zip(recorded, (scores[0], scores[2], scores[4]), strict=True):
        theirs = torch.from_numpy(np.load(folder / case["adapter_logits"]))
        torch.testing.assert_close(ours, theirs.reshape(ours.shape), atol=1e-4, rtol=1e-4)


def test_greedy_tokens_equal_those_of_peft(model, folder, bank):
    for case in cases(folder):
        prompt, expected = case["input_ids"], case["adapter_greedy_48_ids"]
        ids = torch.tensor(prompt + expected)
        scores = packed_logits(model, [ids], bank.view([3] * len(ids)))[0]
        assert scores[len(prompt) - 1 : -1].argmax(-1).tolist() == expected, case["prompt"]


def test_greedy_tokens_of_the_base_model_are_still_its_own(model, folder, bank):
    for case in cases(folder):
        prompt, expected = case["input_ids"], case["base_greedy_48_ids"]
        ids = torch.tensor(prompt + expected)
        other = torch.arange(5)
        view = bank.view(of_tokens([3, 0], [other, ids]))
        scores = packed_logits(model, [other, ids], view)[1]
        assert scores[len(prompt) - 1 : -1].argmax(-1).tolist() == expected, case["prompt"]
