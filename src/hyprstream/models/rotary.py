"""Rotary position embedding and its scaling variants.

Frequencies depend on the model and on the context it is loaded for, never on what is in a
batch: a token's rotation is a function of its position alone, so that cached keys stay
valid and a sequence's output does not depend on its neighbours. `dynamic` and `longrope`,
which transformers chooses by the length seen so far, are therefore fixed at load by the
context length (as vLLM and llama.cpp do); see docs/decisions/0003.
"""

import math
from typing import assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.models import native
from hyprstream.models.config import RopeConfig
from hyprstream.models.row_steps import kernel_has_gradient, rotated


def inverse_frequencies(
    config: RopeConfig, head_width: int, context_length: int
) -> tuple[Float[Tensor, " E"], float]:
    """Compute the angle per position of each rotated channel pair.

    Args:
        config: Base and scaling.
        head_width: Channels of a head; `proportional` spreads its rotations over all of them.
        context_length: Positions that will be served.

    Returns:
        Float32 angles (E = rotated pairs), and the factor on cos and sin.
    """
    width = config.rotary_width
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    theta, factor = config.theta, 1.0
    if config.kind == "dynamic":
        theta = _dynamic_theta(config, context_length)
    periods = theta**exponents
    match config.kind:
        case "default" | "dynamic":
            angles = 1.0 / periods
        case "linear":
            angles = 1.0 / periods / config.factor
        case "llama3":
            angles = _llama3(config, 1.0 / periods)
        case "yarn":
            angles, factor = _yarn(config, periods), _yarn_attention_factor(config)
        case "longrope":
            is_long = context_length > config.original_context
            slowed = config.long_factor if is_long else config.short_factor
            angles = 1.0 / (torch.tensor(slowed) * periods)
            factor = _longrope_attention_factor(config)
        case "proportional":
            periods = theta ** (exponents * (width / head_width))
            still = torch.zeros((head_width - width) // 2)
            angles = torch.cat((1.0 / periods, still)) / config.factor
        case _:
            assert_never(config.kind)
    return angles, factor


def _dynamic_theta(config: RopeConfig, context_length: int) -> float:
    """NTK-aware base for `context_length` positions, never below the trained context."""
    length = max(context_length, config.original_context)
    stretch = config.factor * length / config.original_context - (config.factor - 1)
    return float(config.theta * stretch ** (config.rotary_width / (config.rotary_width - 2)))


def _llama3(config: RopeConfig, angles: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
    """Llama 3.1: long waves are slowed by the factor, short ones kept, the rest blended."""
    wavelength = 2 * math.pi / angles
    low, high = config.low_freq_factor, config.high_freq_factor
    blend = (config.original_context / wavelength - low) / (high - low)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * angles / config.factor + blend * angles


def _yarn(config: RopeConfig, periods: Float[Tensor, " E"]) -> Float[Tensor, " E"]:
    """YaRN (arXiv:2309.00071): a ramp between extrapolation and interpolation."""
    width, theta = config.rotary_width, config.theta

    def channel(num_rotations: float) -> float:
        ratio = config.original_context / (num_rotations * 2 * math.pi)
        return width * math.log(ratio) / (2 * math.log(theta))

    low, high = channel(config.beta_fast), channel(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001  # as in the reference: avoids the division by zero
    ramp = ((torch.arange(width // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return ramp / (config.factor * periods) + (1 - ramp) / periods


def _yarn_attention_factor(config: RopeConfig) -> float:
    def scale(weight: float) -> float:
        return 1.0 if config.factor <= 1 else 0.1 * weight * math.log(config.factor) + 1.0

    if config.attention_factor is not None:
        return config.attention_factor
    if config.mscale and config.mscale_all_dim:
        return scale(config.mscale) / scale(config.mscale_all_dim)
    return scale(1.0)


def _longrope_attention_factor(config: RopeConfig) -> float:
    if config.attention_factor is not None:
        return config.attention_factor
    if config.factor <= 1.0:
        return 1.0
    return math.sqrt(1 + math.log(config.factor) / math.log(config.original_context))


class Rotary:
    """Rotates queries and keys by their positions.

    Args:
        config: Base and scaling.
        head_width: Channels of a head.
        context_length: Positions that will be served.
        device: Where the angles live.
    """

    def __init__(
        self, config: RopeConfig, head_width: int, context_length: int, device: torch.device
    ) -> None:
        angles, self._factor = inverse_frequencies(config, head_width, context_length)
        self._angles = angles.to(device)

    def tables(
        self, positions: Int[Tensor, " T"], dtype: torch.dtype
    ) -> tuple[Float[Tensor, "T 1 W"], Float[Tensor, "T 1 W"]]:
        """Return cos and signed sin for `rotate`, computed in float32, once per step."""
        phase = positions[:, None, None].float() * self._angles
        cos, sin = phase.cos(), phase.sin()
        if self._factor != 1.0:
            cos, sin = cos * self._factor, sin * self._factor
        return torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype)


def rotate(
    x: Float[Tensor, "T H D"], cos: Float[Tensor, "T 1 W"], sin: Float[Tensor, "T 1 W"]
) -> Float[Tensor, "T H D"]:
    """Turn channel pairs (i, i + W/2) of `x` by their angles; channels past W stay.

    `roll` brings each channel its partner; the sign of the turn is in `sin`.
    """
    if x.requires_grad and kernel_has_gradient(x) and cos.dtype == x.dtype:
        return rotated(x, cos, sin)
    y = native.rotate(x, cos, sin)
    if y is not None:
        return y
    width = cos.shape[-1]
    if width == x.shape[-1]:
        return torch.addcmul(x * cos, x.roll(width // 2, -1), sin)
    turned, still = x[..., :width], x[..., width:]
    turned = torch.addcmul(turned * cos, turned.roll(width // 2, -1), sin)
    return torch.cat((turned, still), dim=-1)
