"""A version of an adapter for one request: some steps on its own prompt, then it is forgotten.

The steps are slices between those of the engine, in turns with all other background work. What
comes of them is known to the engine under a random id, which nobody else can name, for as long
as the request is answered. Keys and values are cached by version, so none are shared either.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

from hyprstream.errors import EngineStoppedError, InvalidRequestError, QueueFullError
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights, pack
from hyprstream.refs import AdapterName, VersionId, adapter_name
from hyprstream.runtime.adapted import load_adapter
from hyprstream.runtime.adapters import EXACT, Adapters
from hyprstream.runtime.exchange import spec_of
from hyprstream.runtime.fitting_config import FittingConfig
from hyprstream.runtime.fitting_request import Fit, Fitted, FittingStats
from hyprstream.runtime.lesson import run
from hyprstream.runtime.model import Message, Model
from hyprstream.store.manifest import Draft, SpecValue
from hyprstream.store.records import Note
from hyprstream.train.config import TrainConfig
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer

_BATCH_TOKENS = 256  # computed at a time, where no text alone is longer
_LEARNT_ROLES = frozenset({"system", "developer", "user"})
_NAME = AdapterName("prompt")  # in a trainer of its own

Result = TypeVar("Result")
Pieces = Generator[None, None, Result]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Start:
    """What is fitted: weights, their shape, what a manifest says of that, and of which version."""

    weights: LoraWeights
    spec: LoraSpec
    kinds: tuple[str, ...]
    recorded: Mapping[str, SpecValue]
    version: VersionId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Learnt:
    weights: LoraWeights
    before: float
    after: float


@runtime_checkable
class VersionHost(Protocol):
    """What is told of versions: `Engine`."""

    async def install(self, version: VersionId) -> None:
        """Let requests use a version."""
        ...

    async def retire(self, version: VersionId) -> None:
        """Refuse it to new requests."""
        ...


class Fitting:
    """Fits adapters to prompts, one at a time. On the event loop.

    Invariants, checked by `test_fitting.py`: when a request is over, however it ended, nothing
    of what was fitted for it is in the engine or here, and nothing in the store unless it was to
    be kept; other requests are answered as if there had been none.

    Args:
        model: The base model.
        adapters: The store.
        config: Bounds.
        engine: Is told of versions; it asks `weights_of` for them.
        pool: Threads that may wait for the disk.
        in_slices: Does pieces of work between the steps of the engine, and waits for them.
    """

    def __init__(
        self,
        model: Model,
        adapters: Adapters,
        config: FittingConfig,
        *,
        engine: VersionHost,
        pool: Executor,
        in_slices: Callable[[Pieces[Any]], Awaitable[Any]],
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._config = config
        self._engine = engine
        self._pool = pool
        self._in_slices = in_slices
        self._weights: dict[VersionId, LoraWeights] = {}
        self._num_open = 0
        self._stats = FittingStats()

    @property
    def num_open(self) -> int:
        """Requests that are fitted, wait for it, or are answered by what came of it."""
        return self._num_open

    @property
    def stats(self) -> FittingStats:
        """What it has come to since the process began."""
        return replace(self._stats)

    def weights_of(self, version: VersionId) -> LoraWeights | None:
        """Return what a version adds, if it was fitted for a request; from any thread."""
        return self._weights.get(version)

    def check(self, fit: Fit) -> None:
        """Refuse what is out of bounds, before anything is done.

        Raises:
            InvalidRequestError: It is.
        """
        most, highest = self._config.max_steps, self._config.max_learning_rate
        if not 1 <= fit.steps <= most:
            raise InvalidRequestError(
                f"adapt.steps is {fit.steps}", hint=f"Make it 1 or more, and at most {most}."
            )
        if not 0 < fit.learning_rate <= highest:
            raise InvalidRequestError(
                f"adapt.learning_rate is {fit.learning_rate}",
                hint=f"Make it above 0, and at most {highest}.",
            )

    @asynccontextmanager
    async def fitted(
        self, adapter: str | None, fit: Fit, texts: Sequence[Sequence[int]]
    ) -> AsyncIterator[Fitted]:
        """Give a version that was fitted to texts; the engine knows it in this block.

        Args:
            adapter: Reference of what it begins with; None begins with a low-rank adapter that
                adds nothing.
            fit: How.
            texts: Tokens of each text of the prompt.

        Raises:
            InvalidRequestError: Something is out of bounds, or there is nothing to learn from.
            NotFoundError: There is no such adapter or version.
            IncompatibleAdapterError: It was made for another model.
            AdapterExistsError: It is to be kept by a name that is taken.
            QueueFullError: As many requests are fitted as may be.
            NonFiniteTrainingError: The rate was too high.
            EngineStoppedError: The engine does not run.
        """
        self.check(fit)
        samples = self._samples(texts)
        if self._num_open >= self._config.max_at_a_time:
            raise QueueFullError(max_waiting=self._config.max_at_a_time)
        self._num_open += 1
        version = VersionId(secrets.token_hex(32))
        try:
            try:
                found = await self._make(version, adapter, fit, samples)
            except BaseException:
                self._stats.num_failed += 1
                raise
            self._stats.num_fitted += 1
            self._stats.num_steps += fit.steps
            yield found
        finally:
            self._num_open -= 1
            if self._weights.pop(version, None) is not None:
                # Shielded: who goes away in the middle of it leaves nothing behind either.
                await asyncio.shield(self._retire(version))

    async def _make(
        self, version: VersionId, adapter: str | None, fit: Fit, samples: Sequence[Sample]
    ) -> Fitted:
        kept = None if fit.keep is None else adapter_name(fit.keep)
        start = await self._in_pool(lambda: self._start(adapter, kept))
        learnt = await self._in_slices(_steps(self._model, start, fit, samples))
        if kept is not None:
            await self._in_pool(lambda: self._keep(kept, start, fit, learnt))
        self._weights[version] = learnt.weights
        await self._engine.install(version)
        return Fitted(
            version=version,
            steps=fit.steps,
            num_tokens=sum(sum(sample.counts[1:]) for sample in samples),
            loss_before=learnt.before,
            loss_after=learnt.after,
            kept=kept,
        )

    def _samples(self, texts: Sequence[Sequence[int]]) -> list[Sample]:
        most, number = self._config.max_prompt_tokens, sum(map(len, texts))
        if number > most:
            raise InvalidRequestError(
                f"the prompt has {number} tokens to adapt to",
                hint=f"Make it {most} or fewer, or leave adapt out.",
            )
        found = [Sample.text(text) for text in texts if len(text) > 1]
        if not found:
            raise InvalidRequestError(
                "there is nothing in the prompt to adapt to",
                hint="Send a text of two tokens or more, or leave adapt out.",
            )
        return found

    def _start(self, adapter: str | None, kept: AdapterName | None) -> _Start:
        """Find what is to be fitted; waits for the disk."""
        if kept is not None:
            self._adapters.check_free(kept)
        if adapter is not None:
            loaded = load_adapter(self._adapters, adapter, self._model)
            manifest = self._adapters.manifest(loaded.version)
            return _Start(
                weights=loaded.weights,
                # Dropout would hide other inputs each time that a piece of a pass is computed.
                spec=replace(spec_of(manifest.spec), dropout=0.0),
                kinds=tuple(manifest.kinds),
                recorded=manifest.spec,
                version=loaded.version,
            )
        decoder, rank = self._model.decoder, self._config.rank
        names = (path.rpartition(".")[2] for path in decoder.linears if path != "lm_head")
        spec = LoraSpec(rank=rank, alpha=2.0 * rank, targets=tuple(dict.fromkeys(names)))
        return _Start(
            weights=create(spec, decoder.linears),
            spec=spec,
            kinds=(spec.kind,),
            recorded={**spec.plain(), "seed": 0},
            version=None,
        )

    def _keep(self, name: AdapterName, start: _Start, fit: Fit, learnt: _Learnt) -> None:
        """Make a new adapter of what was learnt; waits for the disk."""
        draft = Draft(
            base=self._model.fingerprint,
            kinds=start.kinds,
            spec=start.recorded,
            codec=EXACT,
            parent=start.version,
            metrics={"loss_before": learnt.before, "loss_after": learnt.after},
        )
        seed = start.recorded.get("seed")
        version = self._adapters.commit(
            pack(learnt.weights), draft, seed=seed if type(seed) is int else None
        ).version
        why = f"{fit.steps} steps on the prompt of a request"
        self._adapters.create(name, version, Note(by="adapt", why=why))

    async def _retire(self, version: VersionId) -> None:
        # It is not known there if it could not be installed; and an engine that has ended
        # holds nothing.
        with suppress(EngineStoppedError):
            await self._engine.retire(version)

    async def _in_pool(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)


def learnt_texts(messages: Sequence[Message]) -> list[str]:
    """Return what of a chat is adapted to: what was not said by the model or by tools."""
    found: list[str] = []
    for message in messages:
        if message.get("role") in _LEARNT_ROLES:
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"text": content}]
            texts = (part.get("text") for part in parts)
            found += [text for text in texts if isinstance(text, str)]
    return found


def _steps(model: Model, start: _Start, fit: Fit, samples: Sequence[Sample]) -> Pieces[_Learnt]:
    """Take the steps, a piece at a time."""
    trainer = Trainer(model.decoder)
    batch_tokens = max(_BATCH_TOKENS, *(len(sample.token_ids) for sample in samples))
    config = TrainConfig(
        learning_rate=fit.learning_rate,
        batch_tokens=batch_tokens,
        recompute=batch_tokens > _BATCH_TOKENS,  # a long text would keep 1.5 MB a token
    )
    trainer.open(_NAME, start.weights, spec=start.spec, config=config)
    yield
    losses = []
    for _ in range(fit.steps):
        yield from run(trainer.begin(_NAME, samples))
        report = yield from run(trainer.begin_apply(_NAME))
        losses.append(report.loss)
    weights = yield from run(trainer.begin_snapshot(_NAME))
    found = yield from run(trainer.begin_evaluation(weights, samples, batch_tokens=batch_tokens))
    counted = [sum(sample.counts[1:]) for sample in samples]
    after = sum(loss * n for loss, n in zip(found, counted, strict=True)) / sum(counted)
    return _Learnt(weights=weights, before=losses[0], after=after)
