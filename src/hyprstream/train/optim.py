"""The optimizers of one adapter.

Parameters with a mask are lists of active elements (`TrainableLora.parameters`), so what an
optimizer keeps is as small as the mask and needs no code of its own, except when masks move.
"""

from collections.abc import Iterator, Mapping
from typing import Any

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
            chosen = {n: p for n, p in parameters.items() if (n in muon) == is_muon}
            for group in _groups(chosen, config):
                self._optimizers.append(_make(group, config, is_muon=is_muon))

    def pieces(self, rate: float) -> Iterator[None]:
        """Move the parameters along their gradients, at this learning rate; some at a time."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_ratio"]
            optimizer.step()
            yield

    def step(self, rate: float) -> None:
        """Move all parameters at once."""
        for _ in self.pieces(rate):
            pass

    def state(self) -> dict[str, Tensor]:
        """Return all that is kept from step to step, named `PARAMETER/WHAT`; not copies."""
        return {
            f"{name}/{what}": value
            for name, parameter in self._parameters.items()
            for optimizer in self._optimizers
            for what, value in optimizer.state.get(parameter, {}).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on with what `state` gave for parameters of the same names."""
        by_name: dict[str, dict[str, Tensor]] = {}
        for path, value in state.items():
            owner, _, what = path.rpartition("/")
            by_name.setdefault(owner, {})[what] = value
        for optimizer in self._optimizers:
            own = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in self._parameters.items():
                if id(parameter) in own and name in by_name:
                    kept: dict[str, Tensor] = {
                        what: _laid_out(value, parameter) for what, value in by_name[name].items()
                    }
                    optimizer.state[parameter] = kept

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


def _groups(parameters: Mapping[str, Tensor], config: TrainConfig) -> Iterator[dict[str, Any]]:
    """Cut parameters into runs of bounded size that move equally fast, each of one at least."""
    by_ratio: dict[float, list[Tensor]] = {}
    for name, parameter in parameters.items():
        is_b = name.endswith("/low_rank/b")
        by_ratio.setdefault(config.lora_plus_ratio if is_b else 1.0, []).append(parameter)
    for ratio, chosen in by_ratio.items():
        group: list[Tensor] = []
        for parameter in chosen:
            if group and sum(p.numel() for p in group) + parameter.numel() > _GROUP_VALUES:
                yield {"params": group, "rate_ratio": ratio}
                group = []
            group.append(parameter)
        yield {"params": group, "rate_ratio": ratio}


def _make(group: dict[str, Any], config: TrainConfig, *, is_muon: bool) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if is_muon:
        return torch.optim.Muon(
            [group], lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
        )
    return torch.optim.AdamW([group], lr=rate, betas=config.betas, weight_decay=decay, foreach=True)


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """Copy a value to where an optimizer would have made it.

    In another layout the same operations go another way, and round differently.
    """
    if value.shape != parameter.shape:  # the number of steps, which stays on the host
        return value.clone()
    return torch.empty_like(parameter).copy_(value)


def _moved(value: Tensor, places: Tensor) -> Tensor:
    """Return the means of elements at their new places; of new elements there are none yet."""
    if value.ndim == 0:  # the number of steps
        return value
    return torch.where(places >= 0, value[places.clamp(min=0)], 0)
