"""What of the traffic may be learnt from, and how feedback changes that. No torch.

Calls wait for the disk: make them on a thread that may. Nothing is kept of an exchange whose
caller objects, or of an adapter that does not learn, but the numbers of its row in the journal.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from hyprstream.errors import InvalidRequestError, InvalidSettingsError
from hyprstream.refs import AdapterName, RequestId, VersionId
from hyprstream.runtime.canary import COMPLETE
from hyprstream.runtime.journal_rows import RequestRow
from hyprstream.train.buffer import NOBODY, Added, Owner, SampleBuffer
from hyprstream.train.sample import Sample

Policy = Literal["off", "feedback", "all"]
"""Nothing is learnt; what users liked or corrected; every complete answer nobody disliked."""

Opinion = Literal["good", "bad", "correction"]

Recorded = Added | Literal["off", "refused", "incomplete", "noted", "withdrawn", "unknown"]
"""What became of an exchange, or of feedback: a sample, or why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderConfig:
    """Bounds of what is remembered of exchanges, for feedback that may come."""

    max_remembered: int = 4096
    """Most exchanges; the oldest go first."""
    max_remembered_tokens: int = 4_000_000
    """Most tokens of them."""
    max_correction_chars: int = 65_536
    """Longest correction."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        for name in ("max_remembered", "max_remembered_tokens", "max_correction_chars"):
            if getattr(self, name) < 1:
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint="Make it 1 or more."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A request that is over.

    Attributes:
        id: Of the request.
        adapter: The adapter that it named; None for the base model.
        version: The version that answered.
        prompt: Tokens of the prompt.
        answer: Tokens of the answer, with the token that ended it.
        outcome: How it ended: `stop` is complete, all else is not.
        may_be_learnt: The caller does not object.
        owner: Whose words they are.
    """

    id: RequestId
    adapter: AdapterName | None
    version: VersionId | None
    prompt: Sequence[int]
    answer: Sequence[int]
    outcome: str
    may_be_learnt: bool = True
    owner: Owner = NOBODY

    @property
    def num_tokens(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.answer)


@runtime_checkable
class RequestLog(Protocol):
    """Where requests outlive the process: `Journal`."""

    def request(self, row: RequestRow) -> None:
        """Keep how a request ended."""
        ...

    def find(self, request_id: str) -> RequestRow | None:
        """Return a request; None if it is unknown."""
        ...

    def feedback(self, request_id: str, feedback: str) -> None:
        """Keep what a user said of an answer."""
        ...


class TrafficRecorder:
    """Turns exchanges and feedback into samples. For any thread.

    Invariants, checked by `test_recorder.py`: an answer that was disliked is never learnt from
    after that; nothing of a caller who objects becomes a sample; what is remembered is bounded.

    Args:
        buffer: Takes the samples.
        log: Takes the rows.
        policies: Of the adapters that learn; all others are off.
        encode: Turns a corrected answer into tokens, the end token included.
        observe: Told of each opinion: adapter, version, whether it is bad, and whether an earlier
            one on the same answer was; None if there was none.
        answered: Told of each answer that was given to its end: adapter and version.
        config: Bounds.
    """

    def __init__(
        self,
        buffer: SampleBuffer,
        log: RequestLog,
        policies: Mapping[AdapterName, Policy],
        *,
        encode: Callable[[str], Sequence[int]],
        observe: Callable[[AdapterName, VersionId, bool, bool | None], None],
        answered: Callable[[AdapterName, VersionId], None] = lambda _adapter, _version: None,
        config: RecorderConfig,
    ) -> None:
        self._buffer = buffer
        self._log = log
        self._policies = dict(policies)
        self._encode = encode
        self._observe = observe
        self._answered = answered
        self._config = config
        self._lock = threading.Lock()
        self._remembered: OrderedDict[RequestId, Exchange] = OrderedDict()
        self._num_tokens = 0

    def set_policies(self, policies: Mapping[AdapterName, Policy]) -> None:
        """Say which adapters learn from now on, and of what; all others are off."""
        self._policies = dict(policies)

    @property
    def num_remembered(self) -> tuple[int, int]:
        """Exchanges, and their tokens, for which feedback may still make a sample."""
        with self._lock:
            return len(self._remembered), self._num_tokens

    def finished(self, exchange: Exchange) -> Recorded:
        """Take a request that is over.

        Raises:
            UnavailableError: The journal cannot be written.
        """
        self._log.request(
            RequestRow(
                id=exchange.id,
                adapter=exchange.adapter,
                version=exchange.version,
                outcome=exchange.outcome,
                prompt_tokens=len(exchange.prompt),
                completion_tokens=len(exchange.answer),
            )
        )
        if exchange.adapter and exchange.version and exchange.outcome in COMPLETE:
            self._answered(exchange.adapter, exchange.version)
        policy = self._policy(exchange.adapter)
        if policy == "off" or exchange.adapter is None:
            return "off"
        if not exchange.may_be_learnt:
            return "refused"
        if not exchange.prompt or not exchange.answer:
            return "incomplete"
        self._remember(exchange)
        if exchange.outcome != "stop":  # a correction may still complete it
            return "incomplete"
        if policy == "feedback":
            return "noted"
        return self._add(exchange.adapter, exchange, exchange.answer)

    def feedback(
        self,
        request_id: RequestId,
        opinion: Opinion,
        correction: str | None = None,
        *,
        may_use: Callable[[AdapterName], bool] = lambda _: True,
    ) -> Recorded:
        """Take what a user said of an answer.

        A correction becomes the answer. What is disliked is withdrawn, if it was not learnt
        from yet, and is not learnt again; a later opinion on it changes nothing. Of an adapter
        that is not the user's to use, every answer is unknown.

        Raises:
            InvalidRequestError: A correction is missing, empty, too long, or not wanted.
            UnavailableError: The journal cannot be written.
        """
        words = self._checked(opinion, correction)
        row = self._log.find(request_id)
        if row is None or (row.adapter is not None and not may_use(row.adapter)):
            return "unknown"
        self._log.feedback(request_id, opinion)
        if row.adapter is not None and row.version is not None:
            was_bad = None if row.feedback is None else row.feedback != "good"
            self._observe(row.adapter, row.version, opinion != "good", was_bad)
        with self._lock:
            exchange = self._remembered.get(request_id)
        if opinion == "good":
            if exchange is None or exchange.adapter is None:
                return "unknown"
            if exchange.outcome != "stop":
                return "incomplete"
            return self._add(exchange.adapter, exchange, exchange.answer)
        # An exchange that was forgotten meanwhile may have left a sample all the same.
        self._buffer.withdraw(request_id)
        self._forget(request_id)
        if opinion == "bad" or exchange is None or exchange.adapter is None:
            return "withdrawn"
        return self._add(exchange.adapter, exchange, self._encode(words))

    def forget(self, is_meant: Callable[[Exchange], bool]) -> int:
        """Forget exchanges of which no sample shall be made any more; return how many."""
        with self._lock:
            found = [exchange.id for exchange in self._remembered.values() if is_meant(exchange)]
        for request_id in found:
            self._forget(request_id)
        return len(found)

    def _checked(self, opinion: Opinion, correction: str | None) -> str:
        most = self._config.max_correction_chars
        if (opinion == "correction") != bool(correction and correction.strip()):
            raise InvalidRequestError(
                f"feedback is {opinion!r}, and the correction {correction!r:.80}",
                hint="Give the corrected answer with a correction, and only then.",
            )
        if correction is not None and len(correction) > most:
            raise InvalidRequestError(
                f"a correction has {len(correction)} characters, {most} are admitted",
                hint="Shorten it.",
            )
        return correction or ""

    def _policy(self, adapter: AdapterName | None) -> Policy:
        return "off" if adapter is None else self._policies.get(adapter, "off")

    def _add(self, adapter: AdapterName, exchange: Exchange, answer: Sequence[int]) -> Recorded:
        sample = Sample.answer(exchange.prompt, answer)
        return self._buffer.add(adapter, sample, exchange.id, exchange.owner)

    def _remember(self, exchange: Exchange) -> None:
        config = self._config
        with self._lock:
            self._remembered[exchange.id] = exchange
            self._num_tokens += exchange.num_tokens
            while (
                len(self._remembered) > config.max_remembered
                or self._num_tokens > config.max_remembered_tokens
            ):
                _, oldest = self._remembered.popitem(last=False)
                self._num_tokens -= oldest.num_tokens

    def _forget(self, request_id: RequestId) -> None:
        with self._lock:
            exchange = self._remembered.pop(request_id, None)
            if exchange is not None:
                self._num_tokens -= exchange.num_tokens
