"""The layers of a decoder in one call of the native kernels, for steps of few rows.

Such a step takes hardly longer than reading the weights, so the way from Python into each
product, norm and sum and back is a large part of it. The kernels compute what the parts of
`layers.py` would, to the last bit; for steps and models that are not for them the answer is
None, and the parts do it.
"""

import ctypes
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hyprstream.kernels.native import (
    PLACES,
    DenseMatrix,
    Kernels,
    NativeLayer,
    NativeLinear,
    NativeRotation,
)
from hyprstream.models.config import AttentionConfig, ModelConfig
from hyprstream.models.forward import AddsInPlace, ForwardBatch, ReadsPlaces
from hyprstream.models.layers import (
    GatedMLP,
    Linear,
    PreNormLayer,
    RMSNorm,
    RotaryTables,
    SelfAttention,
)
from hyprstream.models.native import kernels, kind_of
from hyprstream.models.quant.together import NativeWeight, max_dense_rows

_WIDTH_STEP = 16
"""Attention reads heads in vectors."""


class NativeLayers:
    """The layers of one decoder, as the kernels know them."""

    def __init__(
        self, native: Kernels, config: ModelConfig, layers: Sequence[PreNormLayer]
    ) -> None:
        """Describe layers to the kernels; `of` looks whether these take them."""
        self._kernels = native
        self._layers = layers  # holds the memory that is described
        self._described = (NativeLayer * len(layers))()
        self._paths: list[str] = []
        self._has_dense = False
        for described, layer, how, rope in zip(
            self._described, layers, config.attention, config.rope_of_layer, strict=True
        ):
            linears = _linears(layer)
            self._paths += [linear.path for linear in linears]
            self._has_dense |= any(_is_dense(linear) for linear in linears)
            _describe(described, layer, how)
            described.rope = rope
            described.heads, described.kv_heads = config.num_heads, config.num_kv_heads
            described.head_width = config.head_width

    @classmethod
    def of(cls, config: ModelConfig, layers: Sequence[object]) -> "NativeLayers | None":
        """Describe layers to the kernels; None where there are none, or none for such layers."""
        native = kernels()
        if native is None or config.head_width % _WIDTH_STEP:
            return None
        usual = [layer for layer in layers if isinstance(layer, PreNormLayer)]
        if len(usual) < len(layers) or not all(_is_native(layer) for layer in usual):
            return None
        return cls(native, config, usual)

    def apply(
        self, x: Float[Tensor, "T C"], tables: Sequence[RotaryTables], batch: ForwardBatch
    ) -> Float[Tensor, "T C"] | None:
        """Return what the layers make of `x`; None where a part of the step is not for them.

        Args:
            x: Embedded tokens.
            tables: For each way to rotate, what `Rotary.tables` makes of the positions.
            batch: The step.
        """
        num_rows = x.shape[0]
        if x.dtype != torch.bfloat16 or kind_of(x) is None or not num_rows:
            return None
        if self._has_dense and num_rows > max_dense_rows():
            return None
        if not isinstance(batch.attention, ReadsPlaces):
            return None
        reads, adapters = batch.attention.reads(x), None
        if reads is None:
            return None
        if batch.lora is not None:
            if isinstance(batch.lora, AddsInPlace):
                adapters = batch.lora.added(self._paths, x)
            if adapters is None:
                return None
        rotations = (NativeRotation * len(tables))(
            *(NativeRotation(cos.data_ptr(), sin.data_ptr(), cos.shape[-1]) for cos, sin in tables)
        )
        y = x.clone(memory_format=torch.contiguous_format)
        self._kernels.layers(
            ctypes.addressof(self._described),
            len(self._layers),
            adapters,
            rotations,
            ctypes.addressof(reads),
            num_rows,
            torch.get_num_threads(),
            self._kernels.instructions,
            y.data_ptr(),
        )
        return y


def _linears(layer: PreNormLayer) -> tuple[Linear, ...]:
    """Return the linear layers in the order of `PLACES`."""
    attend, mlp = layer.attend, layer.mlp
    assert isinstance(attend, SelfAttention)
    assert isinstance(mlp, GatedMLP)
    return *attend.inputs, attend.output, *mlp.inputs, mlp.down


def _is_native(layer: PreNormLayer) -> bool:
    """Tell whether the kernels have all that the layer does."""
    if not (isinstance(layer.attend, SelfAttention) and isinstance(layer.mlp, GatedMLP)):
        return False
    linears = _linears(layer)
    if layer.mlp.activation != "silu" or not all(_has_kernel(linear) for linear in linears):
        return False
    together = linears[:3], linears[4:6]  # of one kind, as one call multiplies with them
    return all(len({_is_dense(linear) for linear in some}) == 1 for some in together)


def _has_kernel(linear: Linear) -> bool:
    weight, bias = linear.weight, linear.bias
    if not isinstance(weight, NativeWeight) or weight.address is None:
        return False
    return bias is None or (bias.dtype == torch.bfloat16 and bias.is_contiguous())


def _is_dense(linear: Linear) -> bool:
    return isinstance(linear.weight, NativeWeight) and isinstance(linear.weight.matrix, DenseMatrix)


def _describe(described: NativeLayer, layer: PreNormLayer, how: AttentionConfig) -> None:
    attend = layer.attend
    assert isinstance(attend, SelfAttention)
    described.linears = (NativeLinear * len(PLACES))(*map(_described, _linears(layer)))
    described.norm, described.mlp_norm = _scale(layer.norm), _scale(layer.mlp_norm)
    described.q_norm, described.k_norm = _scale(attend.q_norm), _scale(attend.k_norm)
    described.eps = layer.norm.eps
    described.window = how.window or 0
    described.scale, described.softcap = how.scale, how.softcap or 0.0


def _described(linear: Linear) -> NativeLinear:
    assert isinstance(linear.weight, NativeWeight)
    address, bias = linear.weight.address, linear.bias
    places = (None, address) if _is_dense(linear) else (address, None)
    return NativeLinear(*places, None if bias is None else bias.data_ptr())


def _scale(norm: RMSNorm | None) -> int | None:
    return None if norm is None else norm.scale.data_ptr()
