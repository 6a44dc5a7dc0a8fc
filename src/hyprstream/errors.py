"""Every error a user can meet, sorted by what the caller can do about it.

    HyprstreamError                    code, hint                            HTTP  exit
      InvalidInputError                the caller can fix it                  400     2
        InvalidReferenceError
        InvalidRequestError
        InvalidSettingsError
        ContextTooLongError
        RequestTooLargeError
        ChatTemplateError
        InvalidAdapterError
        InvalidDatasetError
        InvalidSqlError
      NotFoundError                                                           404     3
        ModelNotFoundError
        AdapterNotFoundError
        VersionNotFoundError
        TableNotFoundError
      AccessError                      somebody else has to let you in         403     8
        AuthenticationError
        ModelAccessDeniedError
        SqlNotAllowedError
      ConflictError                    true now, maybe not later              409     4
        CacheBusyError
        AdapterExistsError
        StaleParentError
        IncompatibleAdapterError
        TableExistsError
        IncompatibleVectorsError
        ConcurrentChangeError
      UnsupportedError                 we do not do this                      422     5
        UnsupportedArchitectureError
        UnsupportedFormatError
        UnsupportedRegistryError
        UnsupportedTokenizerError
        UnsupportedCodecError
      UnavailableError                 try again                              503     6
        RegistryUnreachableError
        RegistryAnswerError
        RateLimitedError
        OfflineError
        StorageFullError
        QueueFullError
        ModelsBusyError
        DeadlineExceededError
        QueryCancelledError
        AdapterMemoryFullError
        EngineStoppedError
      CorruptError                     what is on disk is not what was written 500    7
        CorruptWeightsError
        CorruptTokenizerError
        CorruptArchiveError
        CorruptManifestError
        CorruptGridError
        CorruptStoreError
        CorruptVectorsError
        ChecksumMismatchError
        NonFiniteLogitsError
        NonFiniteEmbeddingError
        NonFiniteTrainingError

The branch says what the caller can do, the leaf says what happened. A message names the
thing and the value; the hint is one sentence with the next step. Foreign exceptions are
converted where the foreign library is called.
"""

from typing import ClassVar


class HyprstreamError(Exception):
    """Report something a user can act on.

    Attributes:
        hint: One sentence with the next step; empty where there is none.
    """

    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    @property
    def code(self) -> str:
        """Name the error for machines: `ModelNotFoundError` -> `model_not_found`."""
        name = type(self).__name__.removesuffix("Error")
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")


class InvalidInputError(HyprstreamError):
    """Report input that the caller can fix."""

    http_status = 400
    exit_code = 2


class InvalidReferenceError(InvalidInputError):
    """Report text that is not a model or adapter reference."""


class InvalidRequestError(InvalidInputError):
    """Report a request parameter outside its range."""


class InvalidSettingsError(InvalidInputError):
    """Report a setting that is unknown or outside its range."""


class ContextTooLongError(InvalidInputError):
    """Report a prompt that does not fit the model's context.

    Attributes:
        num_tokens: Length of the prompt.
        max_tokens: Longest prompt that would fit.
    """

    def __init__(self, *, num_tokens: int, max_tokens: int) -> None:
        super().__init__(
            f"the prompt has {num_tokens} tokens, the model's context takes {max_tokens}",
            hint="Shorten the prompt, or load the model with a larger context if it has one.",
        )
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens


class RequestTooLargeError(InvalidInputError):
    """Report a request that the engine's memory could never hold, even alone.

    Attributes:
        num_tokens: Tokens of the prompt and of the answer that was asked for.
        max_tokens: Most that would fit.
    """

    def __init__(self, *, num_tokens: int, max_tokens: int) -> None:
        super().__init__(
            f"the request needs memory for {num_tokens} tokens, the engine has it for {max_tokens}",
            hint="Shorten the prompt, lower max_tokens, or raise engine.kv_memory_bytes.",
        )
        self.num_tokens = num_tokens
        self.max_tokens = max_tokens


class ChatTemplateError(InvalidInputError):
    """Report a chat template that refused the messages, or did something it may not."""


class InvalidAdapterError(InvalidInputError):
    """Report adapter weights that contradict themselves or one another."""


class InvalidDatasetError(InvalidInputError):
    """Report a file of samples that cannot be used.

    Attributes:
        file: Its path, as text.
        problem: What is wrong.
        line: Where that is, counted from 1; None where it is the file as a whole.
        unit: What is counted: lines, or the rows of a table.
    """

    def __init__(
        self, file: object, problem: str, *, line: int | None = None, unit: str = "line"
    ) -> None:
        place = str(file) if line is None else f"{file}, {unit} {line}"
        super().__init__(f"{place}: {problem}", hint="Correct the file; nothing was learnt of it.")
        self.file = str(file)
        self.problem = problem
        self.line = line
        self.unit = unit


class InvalidSqlError(InvalidInputError):
    """Report a statement, or a value in it, that the database cannot make sense of."""


class NotFoundError(HyprstreamError):
    """Report a name that stands for nothing here."""

    http_status = 404
    exit_code = 3


class ModelNotFoundError(NotFoundError):
    """Report a model that is neither a path, nor cached, nor known to its registry."""


class AdapterNotFoundError(NotFoundError):
    """Report a name that no adapter has."""


class VersionNotFoundError(NotFoundError):
    """Report an adapter version that is not installed."""


class TableNotFoundError(NotFoundError):
    """Report a name that no table has."""


class AccessError(HyprstreamError):
    """Report something that the caller is not let in to."""

    http_status = 403
    exit_code = 8


class AuthenticationError(AccessError):
    """Report a registry that asks who the caller is, or does not believe the token.

    Attributes:
        challenge: How the registry wants to be told (its `WWW-Authenticate`).
    """

    def __init__(self, message: str, *, hint: str = "", challenge: str = "") -> None:
        super().__init__(message, hint=hint)
        self.challenge = challenge


class ModelAccessDeniedError(AccessError):
    """Report a model that the caller may not have, though the registry knows the caller."""


class SqlNotAllowedError(AccessError):
    """Report a statement that nobody, or not this caller, may run."""


class ConflictError(HyprstreamError):
    """Report a state that stands against the request now and may not later."""

    http_status = 409
    exit_code = 4


class CacheBusyError(ConflictError):
    """Report a cache entry that another process holds."""


class AdapterExistsError(ConflictError):
    """Report a name that another adapter has."""


class StaleParentError(ConflictError):
    """Report a name that points at another version than the one it was to be moved from."""


class IncompatibleAdapterError(ConflictError):
    """Report an adapter that does not fit the model that is loaded, or the room for it."""


class TableExistsError(ConflictError):
    """Report a name that another table has."""


class IncompatibleVectorsError(ConflictError):
    """Report vectors that cannot be compared with those of the table they were meant for."""


class ConcurrentChangeError(ConflictError):
    """Report a change of rows that another transaction is changing."""


class UnsupportedError(HyprstreamError):
    """Report something that this program does not do."""

    http_status = 422
    exit_code = 5


class UnsupportedArchitectureError(UnsupportedError):
    """Report a model family, or a variant of one, that has no implementation."""


class UnsupportedFormatError(UnsupportedError):
    """Report a file format or tensor type that has no implementation."""


class UnsupportedRegistryError(UnsupportedError):
    """Report a reference scheme that no registry serves."""


class UnsupportedTokenizerError(UnsupportedError):
    """Report a vocabulary type or pre-tokenizer that has no implementation."""


class UnsupportedCodecError(UnsupportedError):
    """Report a code, or a version of one, that has no implementation."""


class UnavailableError(HyprstreamError):
    """Report something that may work when tried again."""

    http_status = 503
    exit_code = 6


class RegistryUnreachableError(UnavailableError):
    """Report a registry that did not answer."""


class RegistryAnswerError(UnavailableError):
    """Report a registry whose answer makes no sense, or would lead where it must not."""


class RateLimitedError(UnavailableError):
    """Report a registry that wants to be asked less often.

    Attributes:
        retry_after_s: When it wants to be asked again; None if it does not say.
    """

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        when = "later" if retry_after_s is None else f"in {retry_after_s:.0f} seconds"
        super().__init__(message, hint=f"Try again {when}, or log in if you have not.")
        self.retry_after_s = retry_after_s


class OfflineError(UnavailableError):
    """Report something that needs the network, which the settings forbid."""


class StorageFullError(UnavailableError):
    """Report a disk without room for what was to be written."""


class AdapterMemoryFullError(UnavailableError):
    """Report an adapter for which the host memory of adapters has no room now."""


class EngineStoppedError(UnavailableError):
    """Report an engine that was stopped, or that a failure has ended: its cause says which."""


class QueueFullError(UnavailableError):
    """Report that as many requests wait as the engine admits.

    Attributes:
        max_waiting: How many that is.
    """

    def __init__(self, *, max_waiting: int) -> None:
        super().__init__(
            f"the queue is full: {max_waiting} requests are waiting",
            hint="Try again later, or raise engine.max_waiting.",
        )
        self.max_waiting = max_waiting


class ModelsBusyError(UnavailableError):
    """Report that there is no room for one more model, and that all that are there work.

    Args:
        max_loaded: How many may be there.
    """

    def __init__(self, *, max_loaded: int) -> None:
        super().__init__(
            f"{max_loaded} models are loaded, and all of them are at work",
            hint="Try again later, or raise server.max_loaded.",
        )


class DeadlineExceededError(UnavailableError):
    """Report a request whose deadline passed before its answer was complete."""


class QueryCancelledError(UnavailableError):
    """Report a query that somebody cancelled before it was done."""


class CorruptError(HyprstreamError):
    """Report bytes on disk that are not what was written."""

    http_status = 500
    exit_code = 7


class CorruptWeightsError(CorruptError):
    """Report a checkpoint that breaks the rules of its format.

    Attributes:
        file: Path of the damaged file, as text.
    """

    def __init__(self, file: object, problem: str) -> None:
        super().__init__(
            f"{file} is damaged: {problem}",
            hint="Fetch the file again; if it comes from a converter, report it there.",
        )
        self.file = str(file)


class CorruptTokenizerError(CorruptError):
    """Report a tokenizer file or an embedded vocabulary that cannot be read."""


class CorruptArchiveError(CorruptError):
    """Report a package that breaks its format, or whose members may not be taken out.

    Attributes:
        file: Name of the package, as text.
    """

    def __init__(self, file: object, problem: str) -> None:
        super().__init__(
            f"{file} cannot be trusted: {problem}",
            hint="Nothing was taken out of it; report it to whoever published it.",
        )
        self.file = str(file)


class CorruptManifestError(CorruptError):
    """Report a description of a cached model that cannot be read.

    Attributes:
        file: Path of the description, as text.
    """

    def __init__(self, file: object, problem: str) -> None:
        super().__init__(
            f"{file} does not describe a model: {problem}",
            hint="Pull the model again.",
        )
        self.file = str(file)


class CorruptGridError(CorruptError):
    """Report bytes that are no sound grid, or no sound code of one.

    Attributes:
        file: Path of the damaged file, as text; "the grid" for bytes in memory.
    """

    def __init__(self, problem: str, file: object = "the grid") -> None:
        super().__init__(
            f"{file} is damaged: {problem}",
            hint="Fetch or export the adapter again.",
        )
        self.file = str(file)


class CorruptStoreError(CorruptError):
    """Report a store of adapters whose database cannot be read.

    Attributes:
        file: Path of the database, as text.
    """

    def __init__(self, file: object, problem: str) -> None:
        super().__init__(
            f"{file} is damaged: {problem}",
            hint="Restore it from a copy; the payloads beside it are as they were.",
        )
        self.file = str(file)


class CorruptVectorsError(CorruptError):
    """Report a file of a table of vectors that is not what was written.

    Attributes:
        file: Its path, as text.
    """

    def __init__(self, file: object, problem: str) -> None:
        super().__init__(f"{file} is damaged: {problem}", hint="Drop the table and fill it again.")
        self.file = str(file)


class ChecksumMismatchError(CorruptError):
    """Report content whose length or hash is not the one that was promised."""


class NonFiniteLogitsError(CorruptError):
    """Report a model that computed something that is no number.

    Attributes:
        value: What stands where the largest logit should be.
    """

    def __init__(self, value: float) -> None:
        super().__init__(
            f"the model's largest logit is {value}",
            hint="Load the model with dtype float32; if that does not help, fetch it again.",
        )
        self.value = value


class NonFiniteEmbeddingError(CorruptError):
    """Report a model that computed a vector that holds something that is no number."""

    def __init__(self) -> None:
        super().__init__(
            "the vector of a text holds something that is no number",
            hint="Load the model with dtype float32; if that does not help, fetch it again.",
        )


class NonFiniteTrainingError(CorruptError):
    """Report a training step that computed something that is no number; it was not taken.

    Attributes:
        quantity: What was no number: the loss, or the gradient.
    """

    def __init__(self, quantity: str) -> None:
        super().__init__(
            f"{quantity} of the training step is no finite number",
            hint="The adapter is as before the step; lower the learning rate, or look at the data.",
        )
        self.quantity = quantity
