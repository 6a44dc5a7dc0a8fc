"""Adapters that learn from what a runtime serves: who learns, what of, and who is told.

The loop runs between the steps of the engine. Everything here that waits for a disk does so
on one thread of its own, in order: feedback on an answer finds what became of the answer.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from hyprstream.engine.background import BackgroundWork
from hyprstream.engine.engine import Engine
from hyprstream.errors import HyprstreamError
from hyprstream.refs import AdapterName, RequestId, adapter_name
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.enrolment import learner_of
from hyprstream.runtime.events import Events
from hyprstream.runtime.journal_rows import Decision
from hyprstream.runtime.kept_samples import KeptSamples, SentLine, TakenLine
from hyprstream.runtime.learners import LessonProgress
from hyprstream.runtime.learning import Learning, installer, open_learning
from hyprstream.runtime.learning_stats import LearningStats, Progress
from hyprstream.runtime.model import Model
from hyprstream.runtime.policy import LearningPolicy, Policies
from hyprstream.runtime.recorder import Exchange, Opinion, Policy, Recorded, TrafficRecorder
from hyprstream.runtime.retention import Erased
from hyprstream.runtime.retention_config import RetentionConfig
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.text_service import Answered
from hyprstream.store.manifest import check_base
from hyprstream.train.buffer import Owner

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
        progress: Told of steps.
    """

    def __init__(
        self,
        model: Model,
        adapters: Adapters,
        settings: Settings,
        learning: Learning,
        progress: Progress,
    ) -> None:
        self._model = model
        self._adapters = adapters
        self._settings = settings
        self._learning = learning
        self._progress = progress
        self._policies = Policies(adapters)
        self._is_wanted = False
        self._is_ending = False
        self._is_closed = False
        self._enrolling: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._chosen: frozenset[AdapterName] = frozenset()
        self._asked: frozenset[AdapterName] = frozenset()  # to learn, whatever their policies
        self._io = ThreadPoolExecutor(1, thread_name_prefix="hyprstream-traffic")
        self._turn = threading.Lock()
        self._num_pending = 0
        self._end = end_token(model)
        self._recorder = TrafficRecorder(
            learning.buffer,
            learning.journal,
            {},
            encode=self._encode,
            observe=lambda name, version, is_bad, was_bad: learning.loop.observe(
                name, version, is_bad=is_bad, was_bad=was_bad
            ),
            answered=learning.loop.answered,
            config=settings.train.traffic,
        )
        self._kept = KeptSamples(learning, self._recorder, adapters, settings.train.retention)

    @classmethod
    def open(
        cls,
        model: Model,
        adapters: Adapters,
        settings: Settings,
        engine: Engine,
        events: Events,
    ) -> "LiveLearning":
        """Take up what the last process left.

        Args:
            model: The base model.
            adapters: The store.
            settings: Where things are, and how adapters learn.
            engine: Serves.
            events: Told of what happens; of the event loop that the engine is used on.

        Raises:
            CacheBusyError: Another process learns in this home.
            CorruptStoreError: The journal is damaged.
        """
        progress = Progress()

        def tell(told: LessonProgress | Decision) -> None:
            events.tell(told)
            if not isinstance(told, Decision):
                progress.follow(told)

        learning = open_learning(
            model.decoder,
            adapters,
            settings.journal_file,
            [],
            install=installer(engine, events.loop),
            tell=tell,
            config=settings.train,
        )
        return cls(model, adapters, settings, learning, progress)

    @property
    def work(self) -> BackgroundWork:
        """What the engine does between steps."""
        return self._learning.loop

    @property
    def stats(self) -> LearningStats:
        """What learning has come to since the process began."""
        return self._progress.stats(
            decided=dict(self._learning.journal.decided),
            samples=self._learning.buffer.counts(),
            has_failed=self._learning.loop.failure is not None,
        )

    def start(self) -> None:
        """Begin to enrol the adapters whose policies say so; on the event loop.

        Not waited for: what an adapter is held by is text of the base model's own, which it
        writes once. What is served meanwhile is kept already.
        """
        self._is_wanted = True
        if self._enrolling is None or self._enrolling.done():
            self._enrolling = asyncio.create_task(self._enrol_all())
        if self._keeping is None:
            self._keeping = asyncio.create_task(self._look_again_and_again())

    async def stop(self) -> None:
        """Enrol no more; on the event loop, before the engine stops."""
        self._is_ending = True
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._enrolling is not None:
            await self._enrolling

    def close(self) -> None:
        """Wait for what is on its way to the disk, and let go of the journal."""
        with self._turn:
            self._is_closed = True
        self._io.shutdown(wait=True)
        self._learning.close()

    def note(self, answered: Answered) -> None:
        """Take an answer that is over. On the event loop; what comes of it comes later."""
        with self._turn:
            if self._is_closed:
                return
            if self._num_pending >= _MAX_PENDING:
                log.warning("the disk is too slow for the traffic: an exchange is not kept")
                return
            self._num_pending += 1
            self._io.submit(self._finished, answered)

    async def feedback(
        self,
        answer: RequestId,
        opinion: Opinion,
        correction: str | None = None,
        *,
        may_use: Callable[[AdapterName], bool],
    ) -> Recorded:
        """Take what a user said of an answer; see `TrafficRecorder.feedback`."""
        return await self._in_order(
            lambda: self._recorder.feedback(answer, opinion, correction, may_use=may_use)
        )

    async def check(self, name: str) -> AdapterName:
        """Make sure that an adapter is there, and for this model; return its name.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            IncompatibleAdapterError: It was made for another model.
        """
        return await self._in_order(lambda: self._check(name))

    async def keep(
        self, name: AdapterName, lines: Sequence[SentLine], source: str
    ) -> list[TakenLine]:
        """Keep samples that were sent; see `KeptSamples.keep`."""
        return await self._in_order(lambda: self._kept.keep(name, lines, source))

    async def erase(self, owner: Owner, *, may_use: Callable[[AdapterName], bool]) -> Erased:
        """Delete what is kept of somebody; see `KeptSamples.erase`."""
        return await self._in_order(lambda: self._kept.erase(owner, may_use))

    async def train(self, name: str) -> None:
        """Let an adapter learn from what waits and what is sent, until it is stopped.

        What is kept of the traffic stays what its policy says.

        Raises:
            HyprstreamError: As `check`.
        """
        self._asked |= {await self.check(name)}
        self.start()

    def set_retention(self, config: RetentionConfig) -> None:
        """Say how long, and how many, samples are kept where no policy says it."""
        self._kept.config = config

    def learns(self, name: AdapterName) -> bool:
        """Tell whether an adapter learns here, or is about to."""
        return name in self._asked or name in self._chosen

    async def refresh(self) -> None:
        """Let the adapters learn whose policies say so now, and no others.

        Raises:
            HyprstreamError: The store cannot be read.
        """
        await self._in_order(self._choose)
        self.start()

    async def set_policy(self, name: str, policy: LearningPolicy) -> None:
        """Say what an adapter learns from; what is served from now on is kept by that.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            IncompatibleAdapterError: It was made for another model.
        """
        await self._in_order(lambda: self._set_policy(name, policy))
        self.start()

    async def stop_learning(self, name: str) -> None:
        """Let an adapter learn no more; the rest of its policy stays. Errors as `set_policy`."""

        def stop() -> None:
            self._asked -= {self._check(name)}
            self._set_policy(name, replace(self._policies.of(name), learn="off"))

        await self._in_order(stop)

    def _set_policy(self, name: str, policy: LearningPolicy) -> None:
        self._check(name)
        self._policies.set(name, policy)
        self._kept.expire()
        self._choose()

    def _check(self, name: str) -> AdapterName:
        manifest = self._adapters.manifest(self._adapters.resolve(name))
        check_base(manifest, self._model.fingerprint)
        return adapter_name(name)

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._kept.config.check_s)
            try:
                number = await self._in_order(self._kept.expire)
                before = self._chosen
                await self._in_order(self._choose)
            except HyprstreamError as error:
                log.warning("old samples are not deleted: %s", error.code)
                continue
            if number:
                log.info("%d samples were kept for as long as they may be", number)
            if self._chosen != before:  # somebody set a policy without asking the server
                self.start()

    async def _enrol_all(self) -> None:
        while self._is_wanted and not self._is_ending:
            self._is_wanted = False
            try:
                chosen = await self._in_order(self._choose)
                await asyncio.to_thread(self._enrol, chosen)
            except HyprstreamError as error:
                log.warning("no adapter learns: %s", error.code)

    def _choose(self) -> list[AdapterName]:
        """Find the adapters that learn, dismiss the others, and tell the recorder."""
        base = self._model.fingerprint
        chosen: dict[AdapterName, Policy] = {}
        asked = []
        for adapter in self._adapters.list():
            if self._adapters.manifest(adapter.version).base.fingerprint == base:
                policy = self._policies.of(adapter.name)
                if policy.learn != "off":
                    chosen[adapter.name] = policy.learn
                elif adapter.name in self._asked:
                    asked.append(adapter.name)
                else:
                    self._learning.loop.dismiss(adapter.name)
        self._asked &= set(asked)  # one that was deleted is asked for no more
        self._look_at_canaries()
        self._chosen = frozenset(chosen)
        self._recorder.set_policies(chosen)
        return [*chosen, *asked]

    def _look_at_canaries(self) -> None:
        """Find out which canaries are out: other processes move names too."""
        loop, canaries = self._learning.loop, self._adapters.canaries
        self._learning.io.submit(lambda: loop.compare(canaries.all())).result()

    def _enrol(self, names: Sequence[AdapterName]) -> None:
        settings = self._settings
        for name in names:
            if self._is_ending:
                return
            try:
                learner = learner_of(
                    self._adapters,
                    name,
                    self._model,
                    settings.train,
                    anchors=settings.anchors_folder,
                )
                self._learning.loop.enrol(learner)
            except HyprstreamError as error:
                log.warning("%s does not learn: %s", name, error.code)
                self._learning.loop.dismiss(name)

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
                    owner=answered.owner,
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
