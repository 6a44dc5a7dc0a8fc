"""Samples that callers send or take back, while adapters learn. Calls wait for the disk."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

from hyprstream.errors import HyprstreamError, InvalidRequestError
from hyprstream.refs import AdapterName
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.learning import Learning
from hyprstream.runtime.recorder import TrafficRecorder
from hyprstream.runtime.retention import Erased, erase, remove_expired
from hyprstream.runtime.retention_config import RetentionConfig
from hyprstream.train.buffer import NOBODY, Added, Kept, Owner
from hyprstream.train.encode import SampleMaker
from hyprstream.train.records import Preference, Rated, parse_record
from hyprstream.train.sample import Sample

log = logging.getLogger(__name__)

MAX_USER_CHARS = 512
"""Longest name of a user."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentLine:
    """One record that was sent.

    Attributes:
        number: Its line, from 1.
        samples: What it became: more than one of a long text.
        owner: Whose words it holds.
        error: Why it became nothing.
    """

    number: int
    samples: tuple[Sample, ...] = ()
    owner: Owner = NOBODY
    error: HyprstreamError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TakenLine:
    """What became of a record that was sent.

    Attributes:
        number: Its line, from 1.
        recorded: What became of each of its samples.
        error: Why there are none.
    """

    number: int
    recorded: tuple[Added, ...] = ()
    error: HyprstreamError | None = None


def read_lines(
    lines: Iterable[tuple[int, bytes]], maker: SampleMaker, owner: Owner
) -> list[SentLine]:
    """Read records, one JSON object each; what is wrong with one is its own affair.

    A record may have `user` beside what its form has; it then stands for the owner's.
    """
    return [_read_line(number, line, maker, owner) for number, line in lines]


class KeptSamples:
    """What is kept to learn from, for callers who add to it or take from it.

    Call it on one thread, that on which exchanges are recorded: what somebody takes back is
    then not on its way into the buffer at the same time.

    Args:
        learning: The loop, its buffer and its journal.
        recorder: Remembers exchanges.
        adapters: With their policies.
        config: What is kept of an adapter whose policy says nothing.

    Attributes:
        config: The same; it may be set anew at any time.
    """

    def __init__(
        self,
        learning: Learning,
        recorder: TrafficRecorder,
        adapters: Adapters,
        config: RetentionConfig,
    ) -> None:
        self._learning = learning
        self._recorder = recorder
        self._adapters = adapters
        self.config = config

    def keep(self, name: AdapterName, lines: Sequence[SentLine], source: str) -> list[TakenLine]:
        """Keep samples; those that were taken are on the disk when this returns.

        Raises:
            UnavailableError: The journal cannot be written. Lines before that are kept.
        """
        add = self._learning.buffer.add
        return [
            TakenLine(
                number=line.number,
                recorded=tuple(add(name, sample, source, line.owner) for sample in line.samples),
                error=line.error,
            )
            for line in lines
        ]

    def erase(
        self, owner: Owner, may_remove: Callable[[AdapterName], bool] = lambda _: True
    ) -> Erased:
        """Delete what is kept of somebody, and give up the versions that are being made of it.

        Raises:
            UnavailableError: As `Journal.remove_of`.
        """
        erased, removed = erase(self._learning.journal, owner, may_remove)
        self._let_go(removed)
        num_remembered = self._recorder.forget(
            lambda exchange: (
                exchange.adapter is not None
                and may_remove(exchange.adapter)
                and owner.user in ("", exchange.owner.user)
                and owner.key in ("", exchange.owner.key)
            )
        )
        return replace(erased, num_remembered=num_remembered)

    def expire(self) -> int:
        """Delete what the policies of adapters do not allow to be kept any more; say how much."""
        removed = remove_expired(self._learning.journal, self._adapters, self.config, time.time())
        self._let_go(removed)
        return len(removed)

    def _let_go(self, removed: Sequence[Kept]) -> None:
        self._learning.buffer.discard(removed)
        for name in {kept.adapter for kept in removed}:
            self._learning.loop.abandon(name)


def _read_line(number: int, line: bytes, maker: SampleMaker, owner: Owner) -> SentLine:
    try:
        row = _row(line)
        user = row.pop("user", owner.user)
        if not isinstance(user, str) or len(user) > MAX_USER_CHARS:
            raise InvalidRequestError(
                "the user of a record is no short text",
                hint=f"Give a text of up to {MAX_USER_CHARS} characters.",
            )
        record = parse_record(row)
        if isinstance(record, Preference | Rated):
            raise InvalidRequestError(
                "a choice between answers is no sample", hint="Send the better answer alone."
            )
        samples = maker.samples(record)
    except HyprstreamError as error:
        return SentLine(number=number, error=error)
    owner = Owner(user=user, key=owner.key)
    return SentLine(number=number, samples=tuple(samples), owner=owner)


def _row(line: bytes) -> dict[str, object]:
    try:
        row = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse)
        json.dumps(row, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError):
        raise InvalidRequestError(
            "a line is no JSON", hint="Send one JSON object on each line, in UTF-8."
        ) from None
    if not isinstance(row, dict):
        raise InvalidRequestError(
            "a line is no JSON object", hint="Send one JSON object on each line."
        )
    return row


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
