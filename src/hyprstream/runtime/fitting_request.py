"""What a request asks of fitting to its prompt, and what came of it. Plain data, no torch."""

from dataclasses import dataclass

from hyprstream.refs import AdapterName, VersionId


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """What a request asks for.

    Attributes:
        steps: Optimizer steps, each over the whole prompt.
        learning_rate: Constant.
        keep: Name of a new adapter that becomes what was learnt; None forgets it.
    """

    steps: int = 4
    learning_rate: float = 5e-4
    keep: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What came of it.

    Attributes:
        version: By which the engine knows it.
        steps: Optimizer steps that were taken.
        num_tokens: Tokens that were learnt from.
        loss_before: Of them, before the first step, in nats a token.
        loss_after: After the last one.
        kept: The adapter that it became.
    """

    version: VersionId
    steps: int
    num_tokens: int
    loss_before: float
    loss_after: float
    kept: AdapterName | None


@dataclass(slots=True)
class FittingStats:
    """What fitting to prompts has come to.

    Attributes:
        num_fitted: Requests that were fitted.
        num_failed: Those that were not: it failed, or the caller went away before its end.
        num_steps: Optimizer steps of the former.
    """

    num_fitted: int = 0
    num_failed: int = 0
    num_steps: int = 0
