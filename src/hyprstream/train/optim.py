"""The optimizers of one adapter.

Parameters with a mask are lists of active elements (`TrainableLora.parameters`), so what an
optimizer keeps is as small as the mask and needs no code of its own, except when masks move.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hyprstream.train.config import TrainConfig

_GROUP_VALUES = 1 << 19  # moved at a time: 5 to 10 ms of one core


class AdapterOptimizer:
    """AdamW (arXiv:1711.05101), and for whole matrices Muon (arXiv:2502.16982) if asked for.

    Args:
        parameters: Leaves by name; matrices are whole, lists are the active elements of one.
        config: Which, and how.
    """

    def __init__(self, parameters: Mapping[str, Tensor], config: TrainConfig) -> None:
        self._parameters = dict(parameters)
        muon = {n for n, p in parameters.items() if config.optimizer == "muon" and p.ndim == 2}
        # Each moves a few parameters, so that a step can be taken in pieces.
        self._optimizers: list[torch.optim.Optimizer] = []
        for is_muon in (False, True):
            chosen = [p for n, p in parameters.items() if (n in muon) == is_muon]
            for some in _groups(chosen):
                self._optimizers.append(_make(some, config, is_muon=is_muon))

    def pieces(self, rate: float) -> Iterator[None]:
        """Move the parameters along their gradients, at this learning rate; some at a time."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            yield

    def step(self, rate: float) -> None:
        """Move all parameters at once."""
        for _ in self.pieces(rate):
            pass

    def move(self, parameters: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
        """Take up the parameters of moved masks; what is kept of elements moves with them.

        Args:
            parameters: All, by the same names.
            places: For each that is new, the place of each element among the old ones, or -1.
        """
        for name, place in places.items():
            old, new = self._parameters[name], parameters[name]
            for optimizer in self._optimizers:
                for group in optimizer.param_groups:
                    group["params"] = [new if p is old else p for p in group["params"]]
                # A list of elements is never a matrix, so these are AdamW's.
                kept = optimizer.state.pop(old, None)
                if kept:
                    optimizer.state[new] = {key: _moved(v, place) for key, v in kept.items()}
        self._parameters = dict(parameters)


def _groups(parameters: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Cut parameters into runs of bounded size, one parameter at least."""
    group: list[Tensor] = []
    for parameter in parameters:
        if group and sum(p.numel() for p in group) + parameter.numel() > _GROUP_VALUES:
            yield group
            group = []
        group.append(parameter)
    if group:
        yield group


def _make(parameters: list[Tensor], config: TrainConfig, *, is_muon: bool) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if is_muon:
        return torch.optim.Muon(
            parameters, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
    return torch.optim.AdamW(
        parameters, lr=rate, betas=config.betas, weight_decay=decay, foreach=True
    )


def _moved(value: Tensor, places: Tensor) -> Tensor:
    """Return the means of elements at their new places; of new elements there are none yet."""
    if value.ndim == 0:  # the number of steps
        return value
    return torch.where(places >= 0, value[places.clamp(min=0)], 0)
