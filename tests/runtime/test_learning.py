"""Learning beside serving, with nothing faked: engine, trainer, store, journal, a tiny model."""

import asyncio

import pytest
import torch

from hyprstream.engine.assembly import build_core
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.engine import Engine
from hyprstream.engine.request import Request, SamplingParams
from hyprstream.errors import CacheBusyError
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights, pack, unpack
from hyprstream.refs import AdapterName, ModelFingerprint, RequestId, VersionId
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.learners import Learner, LearnerConfig
from hyprstream.runtime.learning import installer, norm, open_learning
from hyprstream.runtime.learning_config import LearningConfig
from hyprstream.store.manifest import Draft
from hyprstream.store.store import AdapterStore
from hyprstream.train.buffer import BufferConfig
from hyprstream.train.config import TrainConfig
from hyprstream.train.gate import GateConfig
from hyprstream.train.sample import Sample
from tests.models.reference import load_decoder, make_model, variants

NAME = AdapterName("a")
SPEC = LoraSpec(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj", "up_proj"))
BASE = ModelFingerprint(name="tiny", config_sha256="0" * 64, weights_sha256="1" * 64)
CONFIG = LearningConfig(
    buffer=BufferConfig(held_out_share=0.3, replay_share=0.1),
    gate=GateConfig(min_trusted=8, max_norm_growth=10.0),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("learning")
    make_model(variants("llama")["plain"]).save_pretrained(folder)
    return load_decoder(folder)


def counting(start: int) -> Sample:
    """Text that counts upwards."""
    return Sample.text([(start + step) % 97 for step in range(14)])


LEARNER = Learner(
    name=NAME,
    trusted={"counting": [counting(start) for start in range(0, 96, 8)] * 2},
    uniform_loss=20.0,  # a random model makes guesses that are worse than none
    spec=SPEC,
    training=TrainConfig(learning_rate=2e-2, batch_tokens=128),
    config=LearnerConfig(min_waiting=24, max_samples=64, epochs=6.0),
)


def make_request(number: int, version: VersionId) -> Request:
    params = SamplingParams(
        temperature=0.0 if number % 2 else 0.9, max_tokens=24, ignore_eos=True, logprobs=2,
        seed=number,
    )  # fmt: skip
    tokens = tuple((7 * step + number) % 97 for step in range(6))
    return Request(id=RequestId(f"r{number}"), token_ids=tokens, params=params, adapter=version)


class Watched:
    """A loop, and how many of its slices ran while a request was being answered."""

    def __init__(self, loop, engine: Engine):
        self._loop = loop
        self._engine = engine
        self.ready = loop.ready
        self.num_beside = 0

    def run_slice(self) -> None:
        self.num_beside += self._engine.num_requests > 0
        self._loop.run_slice()


async def answers(engine: Engine, version: VersionId, number: int = 4):
    """One request after the other: which ones share a step would depend on the moment."""
    found = []
    for n in range(number):
        stream = engine.submit(make_request(n, version))
        tokens = [event.token async for event in stream]
        found.append([(token.token_id, token.logprobs) for token in tokens if token])
    return found


def make_engine(model) -> Engine:
    # As much learning as there can be between two steps.
    config = EngineConfig(
        background_share=1.0, background_every=1, background_burst_s=10.0, kv_memory_bytes=1 << 22
    )
    return Engine(build_core(model, config), config)


async def serve_alone(model, weights: LoraWeights, version: VersionId):
    async with make_engine(model) as engine:
        await engine.install(version, weights)
        return await answers(engine, version)


@pytest.mark.timeout(120)
def test_a_model_learns_while_it_serves_and_requests_do_not_notice(model, tmp_path):
    adapters = Adapters(AdapterStore(tmp_path / "adapters"))
    start = create(SPEC, model.linears, seed=3)
    draft = Draft(base=BASE, kinds=("low_rank",), spec={}, codec="zstd")
    first = adapters.commit(pack(start), draft).version
    adapters.create(NAME, first)
    expected = asyncio.run(serve_alone(model, start, first))

    async def main():
        engine = make_engine(model)
        install = installer(engine, asyncio.get_running_loop())
        journal_file = tmp_path / "journal.db"
        learning = open_learning(
            model, adapters, journal_file, [LEARNER], install=install, config=CONFIG
        )
        with pytest.raises(CacheBusyError):
            open_learning(model, adapters, journal_file, [LEARNER], install=install)
        work = Watched(learning.loop, engine)
        engine.start(work)
        await engine.install(first, start)
        for number in range(97):
            await asyncio.to_thread(learning.buffer.add, NAME, counting(number), f"r{number}")
        while adapters.resolve(NAME) == first:
            assert learning.loop.failure is None, learning.loop.failure
            assert await answers(engine, first) == expected
        second = adapters.resolve(NAME)
        changed = await answers(engine, second)
        # Requests that began on the old version, or name it, still get what they did.
        assert await answers(engine, first) == expected
        adapters.rollback(NAME)
        back = adapters.resolve(NAME)
        assert back == first
        assert await answers(engine, back) == expected
        await engine.stop()
        learning.close()
        return second, changed, work.num_beside

    second, changed, num_beside = asyncio.run(main())
    assert num_beside > 50
    assert changed != expected
    stored = unpack(adapters.tensors(second))
    assert asyncio.run(serve_alone(model, stored, second)) == changed
    assert norm(stored) > norm(start)
    assert adapters.manifest(second).parent == first
    assert adapters.manifest(second).metrics["held_out"] < 0
    adapters.close()


def test_the_norm_is_that_of_all_parameters(model):
    weights = create(SPEC, model.linears, seed=3)
    flat = [t.flatten() for delta in weights.modules.values() for t in delta.tensors().values()]
    assert norm(weights) == pytest.approx(torch.cat(flat).norm().item(), rel=1e-6)
