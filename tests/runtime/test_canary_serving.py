"""Canaries on a runtime: a tiny model answers, users say what they think, the loop decides."""

import asyncio
import itertools
import math

import pytest

from hyprstream.engine.config import EngineConfig
from hyprstream.engine.request import SamplingParams
from hyprstream.lora.weights import pack
from hyprstream.refs import AdapterName, RequestId
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.canary import ENDED_ELSEWHERE, CanaryConfig, Side
from hyprstream.runtime.learning_config import LearningConfig
from hyprstream.runtime.learning_report import learning_status
from hyprstream.runtime.model import Model
from hyprstream.runtime.runtime import Runtime
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.text_service import Caller
from hyprstream.train.buffer import Owner
from tests.runtime.adapted_models import made_for, make_folder, trained

NAME = AdapterName("poet")
MESSAGES = [{"role": "user", "content": "Hello"}]
GREEDY = SamplingParams(temperature=0, max_tokens=3, logprobs=2, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return Model.load(make_folder(folder / "model"), settings=Settings(home=folder))


class Scene:
    """A home with an adapter and a canary of it, and a user on each side."""

    def __init__(self, model: Model, home, *, share: float = 0.5, **config):
        self.model = model
        usual = {"max_answers": 4, "min_answers": 2, "min_opinions": 4}
        self.settings = Settings(
            home=home,
            engine=EngineConfig(kv_memory_bytes=1 << 22, max_sequences=16),
            train=LearningConfig(canary=CanaryConfig(**{**usual, **config})),
        )
        with open_adapters(self.settings) as adapters:
            self.old, self.new = (
                adapters.commit(pack(trained(model, seed)), made_for(model)).version
                for seed in (1, 2)
            )
            adapters.create(NAME, self.old)
            self.canary = adapters.canaries.begin(NAME, self.new, parent=self.old, share=share)
        self.users = {
            self.canary.takes(NAME, Caller(owner=Owner(user=user)).key): user
            for user in map(str, range(100))
        }
        self._ids = map(str, itertools.count())

    def serve(self, use):
        async def main():
            async with Runtime(self.model, self.settings) as runtime:
                return await use(runtime)

        return asyncio.run(main())

    async def ask(self, runtime, adapter=str(NAME), *, user=""):
        """Ask once; return the id, the version, and all that was answered."""
        owner = Owner(user=user)
        caller = Caller(id=RequestId(f"r{next(self._ids)}"), adapter=adapter, owner=owner)
        answers = await runtime.text.chat(MESSAGES, GREEDY, caller)
        deltas = [delta async for delta in answers]
        return caller.id, answers.version, [(delta.text, delta.tokens) for delta in deltas]

    async def opine(self, runtime, opinion, number, *, new):
        """Give answers on one side, and let users say something of each."""
        for _ in range(number):
            answer, version, _ = await self.ask(runtime, user=self.users[new])
            assert version == (self.new if new else self.old)
            await runtime.learning.feedback(answer, opinion, may_use=lambda _: True)

    @property
    def status(self):
        with open_adapters(self.settings) as adapters:
            [status] = learning_status(adapters, self.settings, NAME)
        return status

    async def decision(self):
        """Wait for the first decision."""
        async with asyncio.timeout(60):
            while not (decisions := (await asyncio.to_thread(lambda: self.status)).decisions):
                await asyncio.sleep(0.01)
        return decisions[0]


def test_a_canary_answers_its_share_and_each_user_is_always_answered_by_one(model, tmp_path):
    scene = Scene(model, tmp_path, share=0.3, max_answers=10_000)

    keys = [Caller(owner=Owner(user=f"user {n}")).key for n in range(400)]
    keys += [Caller().key for _ in range(400)]

    async def use(runtime):
        versions = [runtime.adapters.resolve("poet", key) for key in keys]
        asked = [
            (await scene.ask(runtime, ref, user=user))[1]
            for ref in ("poet", f"poet@{scene.old[:12]}", f"poet@{scene.new[:12]}", "poet:canary")
            for user in scene.users.values()
        ]
        nobody = [await scene.ask(runtime) for _ in range(6)]
        vectors = [
            await runtime.text.embed(["a"], Caller(adapter="poet", owner=Owner(user=user)))
            for user in scene.users.values()
        ]
        return versions, asked, nobody, vectors, await runtime.resolve("poet")

    versions, asked, nobody, vectors, resolved = scene.serve(use)
    for part in (versions[:400], versions[400:]):
        # Five deviations: which keys it takes hangs on the id of the version.
        bound = 5 * math.sqrt(400 * 0.3 * 0.7)
        assert abs(part.count(scene.new) - 0.3 * 400) <= bound
    sides = {True: scene.new, False: scene.old}
    by_name, old, new, tagged = asked[:2], asked[2:4], asked[4:6], asked[6:]
    assert by_name == [sides[is_new] for is_new in scene.users]
    assert (set(old), set(new), set(tagged)) == ({scene.old}, {scene.new}, {scene.new})
    for answer, version, _ in nobody:  # each request for itself
        assert version == sides[scene.canary.takes(NAME, Caller(id=answer).key)]
    assert vectors[0] == vectors[1]  # comparable, whoever asks
    assert resolved == scene.old


def test_a_canary_that_users_dislike_is_withdrawn_and_all_is_as_before(model, tmp_path):
    scene = Scene(model, tmp_path, max_answers=10_000)

    async def use(runtime):
        await scene.ask(runtime, f"poet@{scene.old}")  # its prompt is known then, as later on
        _, _, before = await scene.ask(runtime, f"poet@{scene.old}")
        _, _, other = await scene.ask(runtime, user=scene.users[True])
        await scene.opine(runtime, "good", 5, new=False)
        await scene.opine(runtime, "bad", 4, new=True)
        decision = await scene.decision()
        _, version, after = await scene.ask(runtime, user=scene.users[True])
        return before, other, decision, version, after

    before, other, decision, version, after = scene.serve(use)
    assert other != before
    assert (version, after) == (scene.old, before)
    assert (decision.action, decision.version) == ("withdrawn", scene.new)
    assert decision.reasons == (
        "4 of 4 opinions on it are dislikes, of those on its parent 0 of 5",
    )
    assert decision.numbers["chance"] == pytest.approx(1 / math.comb(9, 4))
    assert (decision.numbers["answers"], decision.numbers["parent_answers"]) == (5, 7)
    with open_adapters(scene.settings) as adapters:
        assert [move.version for move in adapters.history(NAME)] == [scene.old]
        assert adapters.tags(NAME) == {}


def test_a_canary_goes_on_in_the_next_process_until_it_is_promoted(model, tmp_path):
    scene = Scene(model, tmp_path)

    async def begin(runtime):
        await scene.opine(runtime, "good", 1, new=False)
        await scene.opine(runtime, "good", 2, new=True)

    async def go_on(runtime):
        assert scene.status.trial.own == Side(answers=2, good=2)
        await scene.opine(runtime, "good", 2, new=True)
        decision = await scene.decision()
        return decision, [(await scene.ask(runtime, user=user))[1] for user in scene.users.values()]

    scene.serve(begin)
    status = scene.status
    assert status.trial.canary == scene.canary
    assert (status.trial.own, status.trial.others) == (
        Side(answers=2, good=2), Side(answers=1, good=1),
    )  # fmt: skip
    assert status.waits_for_canary
    decision, versions = scene.serve(go_on)
    assert (decision.action, decision.version) == ("promoted", scene.new)
    assert decision.numbers["answers"] == 4
    assert decision.numbers["good"] >= 3  # the last answer decides before anybody speaks of it
    assert versions == [scene.new, scene.new]
    assert scene.status.trial is None


def test_people_who_roll_back_end_a_canary_and_the_journal_tells(model, tmp_path):
    scene = Scene(model, tmp_path)
    with open_adapters(scene.settings) as adapters:
        adapters.untag("poet:canary")
        adapters.move(NAME, scene.new, expected=scene.old)
        adapters.canaries.begin(NAME, scene.old, parent=scene.new, share=0.5)

    async def use(runtime):
        with open_adapters(scene.settings) as adapters:  # as another process does
            assert adapters.rollback(NAME) == scene.old
        await runtime.learning.refresh()
        return await scene.decision()

    decision = scene.serve(use)
    assert (decision.action, decision.version) == ("promoted", scene.old)
    assert decision.reasons == (ENDED_ELSEWHERE,)
