"""Augmentations change prompts and never an answer, its marks, or what does not belong to them."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import InvalidSettingsError
from hyprstream.train.augment import (
    AugmentConfig,
    Copier,
    change_case,
    mixing,
    rephrase,
    shuffle_words,
    without_tokens,
)
from hyprstream.train.dataset import DataConfig, read_dataset
from hyprstream.train.records import Chat, Completion, Instruction, Lesson, Text
from hyprstream.train.sample import Sample
from tests.train.makers import BPE, counted, maker, write

TEXT = st.text(st.characters(codec="ascii"), min_size=1, max_size=30)
WORDS = st.lists(st.sampled_from(["what", "is", "Rome", "a", "{}", "{0}"]), max_size=12).map(
    " ".join
)


def chat(asked: str, said: str) -> Chat:
    turns = [("system", "be brief"), ("user", asked), ("assistant", said), ("user", "more"),
             ("assistant", "no")]  # fmt: skip
    return Chat(messages=tuple({"role": role, "content": text} for role, text in turns))


def lessons(asked: str, said: str) -> list[Lesson]:
    return [
        Completion(prompt=asked, answer=said, weight=0.5),
        Instruction(instruction=asked, context="it", answer=said),
        chat(asked, said),
        Text(text=f"{asked} {said}"),
    ]


CHANGES = {
    "rephrase": rephrase,
    "change_case": change_case,
    "shuffle_words": shuffle_words,
    "mixing": mixing(["one text", "an\x00other"]),
}


@settings(deadline=None)
@pytest.mark.parametrize("name", CHANGES)
@given(asked=WORDS, said=TEXT, seed=st.integers(0, 999))
def test_the_answer_stays_whatever_happens_to_the_prompt(name, asked, said, seed):
    change = CHANGES[name]
    for lesson in lessons(asked, said):
        found, again = (change(lesson, torch.Generator().manual_seed(seed)) for _ in range(2))
        assert found == again, "it follows from the seed"
        match lesson:
            case Completion():
                assert isinstance(found, Completion)
                assert dataclasses.replace(found, prompt=lesson.prompt) == lesson
                assert found.prompt.split(" ")[-1] == lesson.prompt.split(" ")[-1] or name in (
                    "rephrase",
                    "mixing",
                )
                assert found.prompt.endswith(lesson.prompt.split(" ")[-1])
            case Instruction():
                assert isinstance(found, Instruction)
                assert dataclasses.replace(found, instruction=lesson.instruction) == lesson
            case Chat():
                assert isinstance(found, Chat)
                changed = [
                    m for m, n in zip(found.messages, lesson.messages, strict=True) if m != n
                ]
                assert all(m["role"] == "user" for m in changed)
                assert len(changed) <= 1
                assert found.messages[2:] == lesson.messages[2:]
            case _:
                assert found == lesson


@settings(deadline=None, max_examples=8)
@given(asked=WORDS, said=st.sampled_from([" yes", " no way", "1 2 3"]), seed=st.integers(0, 99))
def test_what_counts_is_the_same_text(asked, said, seed):
    config = AugmentConfig(copies=3, rephrase=1, casing=1, shuffling=1, context=1)
    if not asked.strip():
        return
    for lesson in lessons(asked, said)[1:3]:
        copies = Copier(config, ["a text"], seed).copies(lesson)
        assert len(copies) == 3
        expected = counted(BPE, maker(max_tokens=900).sample(lesson))
        for copy in copies:
            assert copy != lesson
            assert counted(BPE, maker(max_tokens=900).sample(copy)) == expected


def test_chances_are_those_that_were_asked_for():
    found = [Completion(prompt=f"what is {n} of Rome", answer=str(n)) for n in range(300)]

    def copies(config: AugmentConfig, seed: int) -> list[Lesson]:
        copier = Copier(config, ["a text"], seed)
        return [copy for lesson in found for copy in copier.copies(lesson)]

    assert copies(AugmentConfig(copies=2, rephrase=0, casing=0), 0) == []
    half = AugmentConfig(copies=1, rephrase=0, casing=0, context=0.5)
    assert 100 < len(copies(half, 1)) < 200
    assert copies(half, 1) == copies(half, 1)
    assert copies(half, 1) != copies(half, 2)


def test_copies_are_trained_on_and_never_held_out(tmp_path):
    rows = [{"prompt": f"what is {n} of Rome", "completion": str(n)} for n in range(40)]
    config = DataConfig(held_out_share=0.3)
    more = AugmentConfig(copies=2, rephrase=1)
    file = write(tmp_path, *rows)
    plain = read_dataset([file], maker(), config)
    found = read_dataset([file], maker(), config, augment=more, seed=3)
    assert found.held_out == plain.held_out
    assert set(plain.trained.samples) < set(found.trained.samples)
    assert len(found.trained.samples) > 2 * len(plain.trained.samples)
    assert read_dataset([file], maker(), config, augment=more, seed=3) == found


@settings(deadline=None)
@given(
    length=st.integers(2, 40),
    first=st.integers(1, 39),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
def test_tokens_go_only_before_what_counts(length, first, share, seed):
    first = min(first, length - 1)
    sample = Sample(tuple(range(length)), tuple(i >= first for i in range(length)), 2.0)
    generator = torch.Generator().manual_seed(seed)
    found = without_tokens(sample, generator, share=share, kept={3, 5})
    gone = set(sample.token_ids) - set(found.token_ids)
    assert list(found.token_ids) == sorted(found.token_ids)
    assert not gone & {0, 3, 5, first - 1}
    assert all(token < first for token in gone)
    assert found.weight == 2.0
    assert [t for t, c in zip(found.token_ids, found.counts, strict=True) if c] == list(
        range(first, length)
    )
    if share == 0:
        assert found == sample


def test_as_many_tokens_go_as_were_asked_for():
    sample = Sample(tuple(range(5000)), (False,) * 4990 + (True,) * 10)
    found = without_tokens(sample, torch.Generator().manual_seed(1), share=0.3, kept=())
    assert len(found.token_ids) == pytest.approx(3500, abs=120)


@pytest.mark.parametrize("wrong", [{"copies": -1}, {"rephrase": 2}, {"token_dropout": 1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidSettingsError):
        AugmentConfig(**wrong)
