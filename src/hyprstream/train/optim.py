"""The optimizers of one adapter.

Parameters with a mask are lists of active elements (`TrainableLora.parameters`), so what an
optimizer keeps is as small as the mask and needs no code of its own, except when masks move.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from hyprstream.train.config import TrainConfig


class AdapterOptimizer:
    """AdamW (arXiv:1711.05101), and for whole matrices Muon (arXiv:2502.16982) if asked for.

    Args:
        parameters: Leaves by name; matrices are whole, lists are the active elements of one.
        config: Which, and how.
    """

    def __init__(self, parameters: Mapping[str, Tensor], config: TrainConfig) -> None:
        self._parameters = dict(parameters)
        muon = {n for n, p in parameters.items() if config.optimizer == "muon" and p.ndim == 2}
        self._optimizers: dict[bool, torch.optim.Optimizer] = {}
        for is_muon in (False, True):
            chosen = [p for n, p in parameters.items() if (n in muon) == is_muon]
            if chosen:
                self._optimizers[is_muon] = _make(chosen, config, is_muon=is_muon)

    def step(self, rate: float) -> None:
        """Move the parameters along their gradients, at this learning rate."""
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()

    def move(self, parameters: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
        """Take up the parameters of moved masks; what is kept of elements moves with them.

        Args:
            parameters: All, by the same names.
            places: For each that is new, the place of each element among the old ones, or -1.
        """
        for name, place in places.items():
            old, new = self._parameters[name], parameters[name]
            # A list of elements is never a matrix, so these are AdamW's.
            optimizer = self._optimizers[False]
            for group in optimizer.param_groups:
                group["params"] = [new if p is old else p for p in group["params"]]
            state = optimizer.state.pop(old, None)
            if state:
                optimizer.state[new] = {key: _moved(value, place) for key, value in state.items()}
        self._parameters = dict(parameters)


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
