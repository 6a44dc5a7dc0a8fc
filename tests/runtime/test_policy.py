"""What an adapter learns from: kept with its name, checked when it is read."""

import pytest

from hyprstream.errors import (
    AdapterNotFoundError,
    CorruptError,
    InvalidDatasetError,
    InvalidRequestError,
    InvalidSettingsError,
    NotFoundError,
)
from hyprstream.refs import AdapterName
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.learners import Budget
from hyprstream.runtime.policy import LearningPolicy, Policies
from hyprstream.store.store import AdapterStore
from hyprstream.train.rows import read_rows
from tests.store.fakes import draft
from tests.train.makers import write

NAME = AdapterName("team/poet")


@pytest.fixture
def adapters(tmp_path):
    store = AdapterStore(tmp_path / "adapters")
    store.create(NAME, store.commit(b"one", draft()))
    with Adapters(store) as adapters:
        yield adapters


def test_nothing_is_learnt_from_traffic_until_somebody_says_so(adapters):
    assert Policies(adapters).of(NAME) == LearningPolicy(learn="off")


def test_a_policy_is_kept_with_the_name_and_goes_with_it(adapters, tmp_path):
    policy = LearningPolicy(learn="feedback", steps_per_day=5, seconds_per_day=1.5)
    Policies(adapters).set(NAME, policy)
    with Adapters(AdapterStore(tmp_path / "adapters")) as again:
        assert Policies(again).of(NAME) == policy
    version = adapters.resolve(NAME)
    adapters.create("other", version)
    adapters.delete(NAME)
    adapters.create(NAME, version)
    assert Policies(adapters).of(NAME) == LearningPolicy()


def test_a_budget_is_the_usual_one_but_for_what_was_set():
    usual = Budget(steps=10, seconds=20.0, tokens=30)
    assert LearningPolicy().budget(usual) == usual
    own = LearningPolicy(steps_per_day=0, tokens_per_day=7)
    assert own.budget(usual) == Budget(steps=0, seconds=20.0, tokens=7)


@pytest.mark.parametrize(
    "data", [b"{", b"[]", b'{"learn": "some"}', b'{"steps_per_day": -1}', b'{"steps_per_day": "x"}']
)
def test_a_damaged_policy_is_named_and_can_be_set_again(adapters, data):
    adapters.belongings.put(NAME, "learning", data)
    with pytest.raises(CorruptError, match="policy of team/poet"):
        Policies(adapters).of(NAME)
    Policies(adapters).set(NAME, LearningPolicy(learn="all"))
    assert Policies(adapters).of(NAME).learn == "all"


@pytest.mark.parametrize(
    "wrong", [{"steps_per_day": -1}, {"tokens_per_day": -1}, {"seconds_per_day": float("nan")}]
)
def test_a_policy_that_cannot_be_is_refused(wrong):
    with pytest.raises(InvalidSettingsError, match=next(iter(wrong))):
        LearningPolicy(**wrong)


def test_trusted_records_are_kept_by_their_content(adapters, tmp_path):
    policies = Policies(adapters)
    file = write(tmp_path, {"prompt": "say", "completion": " yes"}, {"text": "some words"})
    content = file.read_bytes()
    assert policies.trust(NAME, file) == 2
    file.unlink()
    assert policies.trusted(NAME) == {file.name: len(content)}
    with policies.unpacked(NAME, file.name) as copy:
        assert copy.read_bytes() == content
        assert len(list(read_rows(copy))) == 2
    policies.distrust(NAME, file.name)
    assert policies.trusted(NAME) == {}
    with pytest.raises(NotFoundError, match="no trusted set"):
        policies.distrust(NAME, file.name)
    with pytest.raises(NotFoundError, match="no trusted set"), policies.unpacked(NAME, file.name):
        pass


def test_what_nothing_can_be_measured_by_is_not_trusted(adapters, tmp_path):
    policies = Policies(adapters)
    choice = write(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"})
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for file in (choice, broken, empty, tmp_path / "missing.jsonl"):
        with pytest.raises(InvalidDatasetError, match=file.name) as caught:
            policies.trust(NAME, file)
        assert str(tmp_path) in str(caught.value)
    odd = tmp_path / "a b.jsonl"
    odd.write_text('{"text": "a"}')
    with pytest.raises(InvalidRequestError, match="cannot be the name"):
        policies.trust(NAME, odd)
    with pytest.raises(AdapterNotFoundError):
        policies.trust("nobody", choice)
    assert policies.trusted(NAME) == {}


def test_the_number_of_trusted_sets_is_bounded(adapters, tmp_path):
    policies = Policies(adapters)
    for number in range(16):
        file = tmp_path / f"{number}.jsonl"
        file.write_text('{"text": "a"}')
        policies.trust(NAME, file)
    assert policies.trust(NAME, tmp_path / "3.jsonl") == 1  # takes the place of the one before
    more = tmp_path / "more.jsonl"
    more.write_text('{"text": "a"}')
    with pytest.raises(InvalidRequestError, match="16 trusted sets"):
        policies.trust(NAME, more)
