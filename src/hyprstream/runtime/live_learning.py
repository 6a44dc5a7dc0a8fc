"""Adapters that learn from what a runtime serves: who learns, what of, and who is told.

The loop runs between the steps of the engine. Everything here that waits for a disk does so
on one thread of its own, in order: feedback on an answer finds what became of the answer.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hyprstream.engine.background import BackgroundWork
from hyprstream.engine.engine import Engine
from hyprstream.errors import EngineStoppedError, HyprstreamError
from hyprstream.refs import AdapterName, RequestId
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.enrolment import learner_of
from hyprstream.runtime.learning import Learning, installer, open_learning
from hyprstream.runtime.model import Model
from hyprstream.runtime.policy import LearningPolicy, Policies
from hyprstream.runtime.recorder import Exchange, Opinion, Recorded, TrafficRecorder
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.text_service import Answered
from hyprstream.runtime.unrelated import unrelated_samples
from hyprstream.store.manifest import check_base
from hyprstream.train.sample import Sample

log = logging.getLogger(__name__)

_MAX_PENDING = 4096  # exchanges on their way to the disk; beyond it they are not learnt from

Result = TypeVar("Result")


class LiveLearning:
    """The learning of one runtime.

    Open it on the event loop's thread or another one, give `work` to the engine, and close it
    on another thread once the engine has stopped.

    Args:
        model: The base model.
        adapters: The store.
        settings: Where things are, and how adapters learn.
        learning: The loop and what it works with.
    """

    def __init__(
        self, model: Model, adapters: Adapters, settings: Settings, learning: Learning
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._settings = settings
        self._learning = learning
        self._policies = Policies(adapters)
        self._unrelated: Sequence[Sample] | None = None
        self._is_ending = False
        self._enrolling: asyncio.Task[None] | None = None
        self._io = ThreadPoolExecutor(1, thread_name_prefix="hyprstream-traffic")
        self._turn = threading.Lock()
        self._num_pending = 0
        self._end = end_token(model)
        self._recorder = TrafficRecorder(
            learning.buffer,
            learning.journal,
            {},
            encode=self._encode,
            observe=lambda name, version, bad: learning.loop.observe(name, version, is_bad=bad),
            config=settings.train.traffic,
        )

    @classmethod
    def open(
        cls,
        model: Model,
        adapters: Adapters,
        settings: Settings,
        engine: Engine,
        event_loop: asyncio.AbstractEventLoop,
    ) -> "LiveLearning":
        """Take up what the last process left.

        Raises:
            CacheBusyError: Another process learns in this home.
            CorruptStoreError: The journal is damaged.
        """
        learning = open_learning(
            model.decoder,
            adapters,
            settings.journal_file,
            [],
            install=installer(engine, event_loop),
            config=settings.train,
        )
        return cls(model, adapters, settings, learning)

    @property
    def work(self) -> BackgroundWork:
        """What the engine does between steps."""
        return self._learning.loop

    def start(self) -> None:
        """Begin to enrol the adapters whose policies say so; on the event loop.

        Not waited for: before the first one learns, the base model says something about this
        and that, which takes a minute, once. What is served meanwhile is kept already.
        """
        if self._enrolling is None or self._enrolling.done():
            self._enrolling = asyncio.create_task(self._enrol_all())

    async def stop(self) -> None:
        """Enrol no more; on the event loop, before the engine stops."""
        self._is_ending = True
        if self._enrolling is not None:
            await self._enrolling

    def close(self) -> None:
        """Wait for what is on its way to the disk, and let go of the journal."""
        self._io.shutdown(wait=True)
        self._learning.close()

    def note(self, answered: Answered) -> None:
        """Take an answer that is over. On the event loop; what comes of it comes later."""
        with self._turn:
            if self._num_pending >= _MAX_PENDING:
                log.warning("the disk is too slow for the traffic: an exchange is not kept")
                return
            self._num_pending += 1
        self._io.submit(self._finished, answered)

    async def feedback(
        self, answer: RequestId, opinion: Opinion, correction: str | None = None
    ) -> Recorded:
        """Take what a user said of an answer; errors as in `TrafficRecorder.feedback`."""
        return await self._in_order(lambda: self._recorder.feedback(answer, opinion, correction))

    async def refresh(self) -> None:
        """Let the adapters learn whose policies say so now, and no others.

        Raises:
            HyprstreamError: The store cannot be read.
        """
        await self._in_order(self._refresh)

    async def set_policy(self, name: str, policy: LearningPolicy) -> None:
        """Say what an adapter learns from.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            IncompatibleAdapterError: It was made for another model.
            HyprstreamError: It cannot learn; what was said before still holds.
        """
        await self._in_order(lambda: self._set_policy(name, policy))
        if policy.learn != "off" and self._unrelated is None:
            self.start()

    async def _enrol_all(self) -> None:
        try:
            await self._in_order(self._refresh)  # what is served is kept from now on
            if await self._in_order(self._anybody_wants):
                await asyncio.to_thread(self._prepare)
                await self._in_order(self._refresh)
        except HyprstreamError as error:
            log.warning("no adapter learns: %s", error.code)

    def _prepare(self) -> None:
        """Have the base model say something about this and that; takes a minute, once."""
        if self._unrelated is None:
            folder = self._settings.unrelated_folder
            self._unrelated = unrelated_samples(self._model, folder, self._go_on)

    def _go_on(self, *_: int) -> None:
        if self._is_ending:
            raise EngineStoppedError("the runtime ends", hint="Start it again.")

    def _anybody_wants(self) -> bool:
        return any(
            self._policies.of(adapter.name).learn != "off" for adapter in self._adapters.list()
        )

    def _set_policy(self, name: str, policy: LearningPolicy) -> None:
        manifest = self._adapters.manifest(self._adapters.resolve(name))
        check_base(manifest, self._model.fingerprint)
        before = self._policies.of(name)
        self._policies.set(name, policy)
        try:
            self._refresh(only=AdapterName(name))
        except HyprstreamError:
            self._policies.set(name, before)
            raise

    def _refresh(self, only: AdapterName | None = None) -> None:
        """Enrol and dismiss; an adapter that cannot learn is logged, or raised if it is `only`."""
        base = self._model.fingerprint
        wanted = {}
        for adapter in self._adapters.list():
            if self._adapters.manifest(adapter.version).base.fingerprint != base:
                continue
            try:
                policy = self._policies.of(adapter.name)
                if policy.learn != "off":
                    if self._unrelated is not None:
                        self._enrol(adapter.name, self._unrelated)
                    wanted[adapter.name] = policy.learn
                    continue
            except HyprstreamError as error:
                if adapter.name == only:
                    raise
                log.warning("%s does not learn: %s", adapter.name, error.code)
            self._learning.loop.dismiss(adapter.name)
        self._recorder.set_policies(wanted)

    def _enrol(self, name: AdapterName, unrelated: Sequence[Sample]) -> None:
        config = self._settings.train
        learner = learner_of(self._adapters, name, self._model, config, unrelated=unrelated)
        self._learning.loop.enrol(learner)

    def _finished(self, answered: Answered) -> None:
        try:
            self._recorder.finished(
                Exchange(
                    id=answered.id,
                    adapter=answered.adapter,
                    version=answered.version,
                    prompt=answered.prompt,
                    answer=answered.answer,
                    outcome=answered.outcome,
                    may_be_learnt=answered.may_be_learnt,
                )
            )
        except HyprstreamError as error:
            log.warning("an exchange is not kept: %s", error.code)
        finally:
            with self._turn:
                self._num_pending -= 1

    def _encode(self, text: str) -> list[int]:
        return [*self._model.tokenizer.encode(text, add_special=False), *self._end]

    async def _in_order(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._io, work)


def end_token(model: Model) -> tuple[int, ...]:
    """Return the token by which a model ends its answers, if it has one.

    Of several end tokens it is the one that the chat template writes behind an answer.
    """
    eos = model.tokenizer.eos_ids
    if model.has_chat_template:
        chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        try:
            tokens = model.chat_tokens(chat, add_generation_prompt=False)
        except HyprstreamError:  # a template may refuse what it likes
            tokens = []
        for token in reversed(tokens):
            if token in eos:
                return (token,)
    return (min(eos),) if eos else ()
