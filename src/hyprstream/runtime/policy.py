"""What an adapter learns from, within which budget, and what it must not get worse on.

Kept with the adapter's name in the store: a policy outlives versions and processes, and goes
with the adapter. Files of trusted records are kept by their content. No torch.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter, ValidationError

from hyprstream.errors import (
    CorruptError,
    InvalidDatasetError,
    InvalidRequestError,
    InvalidSettingsError,
    NotFoundError,
)
from hyprstream.refs import adapter_name
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.learners import Budget
from hyprstream.runtime.recorder import Policy
from hyprstream.store.belongings import MAX_BYTES
from hyprstream.train.records import Preference, Rated
from hyprstream.train.split import read_records

_KEY = "learning"
_TRUSTED = "trusted/"
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_MOST_TRUSTED = 16  # sets of an adapter: each is measured for every version


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningPolicy:
    """What one adapter learns from the traffic, and what that may take on a day (UTC)."""

    learn: Policy = "off"
    """Of the traffic: nothing; what users liked or corrected; every complete answer."""
    steps_per_day: int | None = None
    """Optimizer steps; None takes the setting `train.learner.budget.steps`."""
    seconds_per_day: float | None = None
    """Time of learning; None takes the setting."""
    tokens_per_day: int | None = None
    """Tokens that are computed for steps; None takes the setting."""
    keep_days: float | None = None
    """Days after which samples are deleted, 0: never; None takes `train.retention.max_age_days`."""
    keep_samples: int | None = None
    """Most samples that are kept; None takes the setting."""
    canary: float = 0.0
    """Share of requests that a new version answers until it has proved itself; 0: all, at once."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        names = ("steps_per_day", "seconds_per_day", "tokens_per_day", "keep_days", "keep_samples")
        for name in names:
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise InvalidSettingsError(f"{name} is {value}", hint="Make it 0 or more.")
        if not 0 <= self.canary < 1:
            raise InvalidSettingsError(
                f"canary is {self.canary}", hint="Make it a share below 1; 0 switches it off."
            )

    def budget(self, usual: Budget) -> Budget:
        """Return the budget of the adapter."""
        steps, seconds, tokens = self.steps_per_day, self.seconds_per_day, self.tokens_per_day
        return Budget(
            steps=usual.steps if steps is None else steps,
            seconds=usual.seconds if seconds is None else seconds,
            tokens=usual.tokens if tokens is None else tokens,
        )


class Policies:
    """The policies of the adapters of a store. Reads and writes wait for the disk."""

    def __init__(self, adapters: Adapters) -> None:
        self._belongings = adapters.belongings

    def of(self, name: str) -> LearningPolicy:
        """Return the policy of an adapter; one that nobody has set learns from no traffic.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            CorruptError: What is kept is no policy.
        """
        data = self._belongings.get(adapter_name(name), _KEY)
        if data is None:
            return LearningPolicy()
        try:
            return TypeAdapter(LearningPolicy).validate_json(data)
        except (ValidationError, InvalidSettingsError) as error:
            raise CorruptError(
                f"the learning policy of {name} cannot be read",
                hint=f"Set it again with `hyprstream lora train policy {name}`.",
            ) from error

    def set(self, name: str, policy: LearningPolicy) -> None:
        """Keep the policy of an adapter.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            StorageFullError: The disk is full; what was set before still holds.
        """
        data = TypeAdapter(LearningPolicy).dump_json(policy)
        self._belongings.put(adapter_name(name), _KEY, data)

    def trusted(self, name: str) -> Mapping[str, int]:
        """List the trusted sets of an adapter by their file names, with their bytes.

        Raises:
            AdapterNotFoundError: There is no such adapter.
        """
        sizes = self._belongings.sizes(adapter_name(name)).items()
        return {key.removeprefix(_TRUSTED): size for key, size in sizes if key.startswith(_TRUSTED)}

    def trust(self, name: str, file: Path) -> int:
        """Keep a file of records as a trusted set, instead of one of the same file name.

        Returns:
            How many records it has.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            InvalidRequestError: The file's name is unfit, or there are too many sets.
            InvalidDatasetError: The file cannot be read, is too large, or holds choices.
        """
        if not _FILE_NAME.fullmatch(file.name):
            raise InvalidRequestError(
                f"{file.name[:80]!r} cannot be the name of a trusted set",
                hint="Name the file with letters, digits, '.', '_' and '-'.",
            )
        others = self.trusted(name).keys() - {file.name}
        if len(others) >= _MOST_TRUSTED:
            raise InvalidRequestError(
                f"{name} has {len(others)} trusted sets already", hint="Forget one of them."
            )
        content = _content(file)
        with _unpacked(file.name, content) as copy:  # what is kept is what was looked at
            number = _num_records(copy, file)
        self._belongings.put(adapter_name(name), _TRUSTED + file.name, content)
        return number

    def distrust(self, name: str, trusted: str) -> None:
        """Forget a trusted set.

        Raises:
            AdapterNotFoundError: There is no such adapter.
            NotFoundError: It has no such set.
        """
        if not self._belongings.remove(adapter_name(name), _TRUSTED + trusted):
            raise NotFoundError(
                f"{name} has no trusted set {trusted[:80]!r}",
                hint=f"It has: {', '.join(self.trusted(name)) or 'none'}.",
            )

    @contextmanager
    def unpacked(self, name: str, trusted: str) -> Iterator[Path]:
        """Give a trusted set as a file, in a `with` block.

        Raises:
            NotFoundError: There is no such adapter, or it has no such set.
        """
        content = self._belongings.get(adapter_name(name), _TRUSTED + trusted)
        if content is None:
            raise NotFoundError(f"{name} has no trusted set {trusted[:80]!r}")
        with _unpacked(trusted, content) as file:
            yield file


def _content(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidDatasetError(file, f"it cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise InvalidDatasetError(file, f"it has more than {MAX_BYTES} bytes")
    return content


@contextmanager
def _unpacked(name: str, content: bytes) -> Iterator[Path]:
    with TemporaryDirectory(prefix="hyprstream-") as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        yield file


def _num_records(copy: Path, file: Path) -> int:
    number = 0
    try:
        for placed in read_records([copy]):
            number += 1
            if isinstance(placed.record, Preference | Rated):
                raise placed.wrong("a choice between answers is nothing to be measured by")
    except InvalidDatasetError as error:
        raise InvalidDatasetError(file, error.problem, line=error.line, unit=error.unit) from error
    if not number:
        raise InvalidDatasetError(file, "it holds no records")
    return number
