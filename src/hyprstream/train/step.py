"""The optimizer step that is being made: sums over rows, and gradients of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from hyprstream.errors import InvalidRequestError, NonFiniteTrainingError
from hyprstream.train.backward import Sums


class PendingStep:
    """What has been summed up since the last step.

    Invariant: the gradients of the parameters are those of `sums`, or there are none.

    Args:
        parameters: The leaves that collect gradients, by name.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = dict(parameters)
        self._sums = Sums()

    @property
    def is_begun(self) -> bool:
        """Whether anything has been summed up since the last step."""
        return self._sums != Sums()

    def add(self, sums: Sums) -> None:
        """Note what a backward pass has summed up."""
        self._sums = Sums(
            loss=self._sums.loss + sums.loss,
            pull=self._sums.pull + sums.pull,
            weight=self._sums.weight + sums.weight,
            num_tokens=self._sums.num_tokens + sums.num_tokens,
        )

    def discard(self) -> None:
        """Forget everything."""
        for parameter in self._parameters.values():
            parameter.grad = None
        self._sums = Sums()

    @contextmanager
    def discarded_on_error(self) -> Iterator[None]:
        """Forget everything if what is done inside fails."""
        try:
            yield
        except BaseException:
            self.discard()
            raise

    @contextmanager
    def taken(self) -> Iterator[Sums]:
        """Turn gradients of sums into those of means; everything is forgotten afterwards.

        Raises:
            InvalidRequestError: Nothing was summed up.
        """
        sums = self._sums
        if not sums.weight:
            raise InvalidRequestError(
                "no samples were accumulated for a step", hint="Accumulate at least one."
            )
        try:
            for gradient in self._gradients():
                gradient.mul_(1 / sums.weight)
            yield sums
        finally:
            self.discard()

    def check_gradients(self, max_norm: float | None) -> float:
        """Return the norm of all gradients together, and scale them down to `max_norm`.

        Raises:
            NonFiniteTrainingError: It is no finite number.
        """
        norm = torch.nn.utils.get_total_norm(self._gradients())
        if not norm.isfinite():
            raise NonFiniteTrainingError("the gradient")
        if max_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters.values(), max_norm, norm)
        return norm.item()

    def replace(self, parameters: Mapping[str, Tensor]) -> None:
        """Collect gradients of other leaves from now on."""
        self._parameters = dict(parameters)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._parameters.values() if p.grad is not None]
