"""The parts that models are composed of. Plain objects around constant weights.

Parts are built complete: an architecture asks a `Weights` source for each part by its path
and gets it loaded. There is no state in between, no training mode and no parameter to
attach to; whatever varies travels in the `ForwardBatch` (docs/decisions/0001).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hyprstream.models import native
from hyprstream.models.config import Activation, ModelConfig
from hyprstream.models.forward import AddsInPlace, Factored, ForwardBatch, LoraView
from hyprstream.models.quant import Weight, differentiable, multiply_all, peaks
from hyprstream.models.rotary import rotate
from hyprstream.models.row_steps import Gated, kernel_has_gradient, normalised

RotaryTables = tuple[Float[Tensor, "T 1 W"], Float[Tensor, "T 1 W"]]

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


class Linear:
    """y = x W^T + b, plus what adapters add at this path.

    Attributes:
        path: Dotted name within the model, as adapters name it.
        weight: The constant W in its storage format, logical shape (O, I).
        bias: The constant b.
    """

    def __init__(self, path: str, weight: Weight, bias: Float[Tensor, " O"] | None) -> None:
        self.path = path
        self.weight = weight
        self.bias = bias

    def __call__(
        self, x: Float[Tensor, "T I"], lora: LoraView | None, outputs: slice | None = None
    ) -> Float[Tensor, "T O"]:
        """Apply the layer to each row, or compute some of its outputs (`Weight.span`)."""
        if outputs is None:
            together = _with_factors([self], lora, x) if torch.is_grad_enabled() else None
            return self.added(self.weight.matmul(x), x, lora) if together is None else together[0]
        y = self.weight.span(outputs.start, outputs.stop).matmul(x)
        if self.bias is not None:
            y = y + self.bias[outputs]
        delta = None if lora is None else lora.delta(self.path, x)
        return y if delta is None else y + delta[:, outputs]

    def peaks(
        self, x: Float[Tensor, "T I"], lora: LoraView | None
    ) -> list[tuple[float, int]] | None:
        """Return the largest output of each row and its first place.

        None where the outputs have to be there for it.
        """
        if self.bias is not None:
            return None
        if lora is not None and lora.delta(self.path, x) is not None:
            return None
        return peaks(self.weight, x)

    def added(
        self, y: Float[Tensor, "T O"], x: Float[Tensor, "T I"], lora: LoraView | None
    ) -> Float[Tensor, "T O"]:
        """Add to x W^T, which may be changed, what else the layer adds."""
        if self.bias is not None:
            y = y + self.bias
        if lora is None:
            return y
        if isinstance(lora, AddsInPlace):
            return lora.add_to(self.path, x, y)
        delta = lora.delta(self.path, x)
        return y if delta is None else y + delta


def apply_all(
    linears: Sequence[Linear], x: Float[Tensor, "T I"], lora: LoraView | None
) -> list[Float[Tensor, "T _"]]:
    """Apply up to three layers to the same rows, in one product where the kernel can."""
    if torch.is_grad_enabled():
        together = _with_factors(linears, lora, x)
        if together is not None:
            return together
    products = multiply_all([linear.weight for linear in linears], x)
    if products is None:
        return [linear(x, lora) for linear in linears]
    if lora is None and all(linear.bias is None for linear in linears):
        return products
    return [linear.added(y, x, lora) for linear, y in zip(linears, products, strict=True)]


def _with_factors(
    linears: Sequence[Linear],
    lora: object,
    *sources: Float[Tensor, "T _"],
    origin: differentiable.Origin | None = None,
) -> list[Float[Tensor, "T _"]] | None:
    """Apply layers and the adapter's products in one step of autograd.

    None where something else is added to a layer. For where gradients may be wanted.
    """
    factors = None
    if isinstance(lora, Factored):
        factors = lora.factors([linear.path for linear in linears])
    if factors is None:
        return None
    weights = [linear.weight for linear in linears]
    results = differentiable.products(weights, factors, *sources, origin=origin)
    return [
        y if linear.bias is None else y + linear.bias
        for linear, y in zip(linears, results, strict=True)
    ]


class Embedding:
    """A lookup table of token vectors, in any storage format."""

    def __init__(self, path: str, weight: Weight, dtype: torch.dtype) -> None:
        self.path = path
        self.weight = weight
        self._dtype = dtype

    def __call__(self, token_ids: Int[Tensor, " T"]) -> Float[Tensor, "T C"]:
        """Look up one vector per token."""
        return self.weight.rows(token_ids, self._dtype)


class RMSNorm:
    """Root mean square normalisation (arXiv:1910.07467), computed in float32.

    Attributes:
        scale: What each channel is multiplied with.
        eps: Added to the mean square.
    """

    def __init__(self, scale: Float[Tensor, " C"], eps: float) -> None:
        self.scale = scale.float()
        self.eps = eps
        self._eps_tensor = torch.tensor(eps, device=scale.device)

    def __call__(self, x: Float[Tensor, "... C"]) -> Float[Tensor, "... C"]:
        """Normalise the last dimension."""
        if x.requires_grad and kernel_has_gradient(x):
            return normalised(x, self.scale, self.eps)
        y = native.rms_norm(x, self.scale, self.eps)
        if y is not None:
            return y
        # On the CPU, a third faster on long prompts than F.rms_norm, which is composed too.
        wide = x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        mean_square = torch.add(self._eps_tensor, norm.square(), alpha=1.0 / x.shape[-1])
        return (wide * mean_square.rsqrt()).mul_(self.scale).to(x.dtype)


class LayerNorm:
    """Layer normalisation with scale and shift (arXiv:1607.06450)."""

    def __init__(self, scale: Float[Tensor, " C"], shift: Float[Tensor, " C"], eps: float) -> None:
        self._scale = scale
        self._shift = shift
        self._eps = eps

    def __call__(self, x: Float[Tensor, "T C"]) -> Float[Tensor, "T C"]:
        """Normalise the last dimension."""
        return F.layer_norm(x, self._scale.shape, self._scale, self._shift, self._eps)


@runtime_checkable
class Weights(Protocol):
    """Where the parts of a model get their constants from, by path."""

    dtype: torch.dtype
    device: torch.device
    linears: Mapping[str, tuple[int, int]]
    """Logical shape (O, I) of each linear layer loaded so far, by path."""
    linear_weights: Mapping[str, Weight]
    """W of each of them, as the layer holds it."""

    def linear(self, path: str, shape: tuple[int, int], *, bias: bool = False) -> Linear:
        """Load the linear layer at `path`, logical shape (O, I)."""
        ...

    def embedding(self, path: str, shape: tuple[int, int]) -> Embedding:
        """Load the table at `path`, one row per entry."""
        ...

    def vector(self, path: str, size: int) -> Float[Tensor, " size"]:
        """Load the vector at `path`, in the compute dtype."""
        ...

    def head(self, path: str, table: Embedding, *, tied: bool | None) -> Linear:
        """Load the output head, or share the embedding table (see `ModelConfig.tied`)."""
        ...


def rms_norm(weights: Weights, path: str, width: int, eps: float) -> RMSNorm:
    """Load the RMSNorm whose scale is at `path`.weight."""
    return RMSNorm(weights.vector(f"{path}.weight", width), eps)


def gated_activation(name: Activation) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function of a gate and what it lets through: activation(gate) * up."""
    activation = ACTIVATIONS[name]

    def gated(gate: Float[Tensor, "T W"], up: Float[Tensor, "T W"]) -> Float[Tensor, "T W"]:
        y = native.silu_gate(gate, up) if name == "silu" else None
        return activation(gate) * up if y is None else y

    return gated


class GatedMLP:
    """down(act(gate(x)) * up(x)) (arXiv:2002.05202).

    Attributes:
        inputs: gate and up.
        down: down.
        activation: Name of act.
    """

    def __init__(self, config: ModelConfig, weights: Weights, path: str, width: int) -> None:
        shape = (width, config.width)
        gate = weights.linear(f"{path}.gate_proj", shape, bias=config.mlp_bias)
        self.inputs = gate, weights.linear(f"{path}.up_proj", shape, bias=config.mlp_bias)
        self.down = weights.linear(f"{path}.down_proj", shape[::-1], bias=config.mlp_bias)
        self.activation: Activation = config.activation
        self._act = gated_activation(config.activation)
        self._gated = Gated(self._act, is_silu=config.activation == "silu")

    def __call__(self, x: Float[Tensor, "T C"], lora: LoraView | None) -> Float[Tensor, "T C"]:
        """Apply the feed-forward part to each row."""
        gate, up = apply_all(self.inputs, x, lora)
        if torch.is_grad_enabled():
            together = _with_factors([self.down], lora, gate, up, origin=self._gated)
            if together is not None:
                return together[0]
        return self.down(self._act(gate, up), lora)


@runtime_checkable
class Attend(Protocol):
    """The attention part of a block."""

    def __call__(
        self, x: Float[Tensor, "T C"], rotary: RotaryTables, batch: ForwardBatch
    ) -> Float[Tensor, "T C"]:
        """Let every token attend as the batch says."""
        ...


@runtime_checkable
class FeedForward(Protocol):
    """The feed-forward part of a block."""

    def __call__(self, x: Float[Tensor, "T C"], lora: LoraView | None) -> Float[Tensor, "T C"]:
        """Transform each row."""
        ...


class SelfAttention:
    """Grouped-query attention with separate projections (arXiv:2305.13245).

    Args:
        config: Head counts, widths and biases.
        weights: Where projections come from.
        path: Path of this part.
        layer: Index of the layer, for the cache.
        head_norm: Normalise each head of q and k before rotation, as Qwen3 and Gemma3 do.

    Attributes:
        inputs: The projections to q, k and v.
        output: The projection of what was mixed.
        q_norm: Normalises each head of q; None if nothing does.
        k_norm: The same for k.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, path: str, layer: int, *, head_norm: bool
    ) -> None:
        width, bias = config.head_width, config.attention_bias
        queries = config.num_heads * width
        keys = config.num_kv_heads * width
        self.inputs = tuple(
            weights.linear(f"{path}.{name}_proj", (size, config.width), bias=bias)
            for name, size in (("q", queries), ("k", keys), ("v", keys))
        )
        self.output = weights.linear(
            f"{path}.o_proj", (config.width, queries), bias=config.output_bias
        )
        self.q_norm = self.k_norm = None
        if head_norm:
            self.q_norm = rms_norm(weights, f"{path}.q_norm", width, config.norm_eps)
            self.k_norm = rms_norm(weights, f"{path}.k_norm", width, config.norm_eps)
        self._layer = layer
        self._head_width = width

    def __call__(
        self, x: Float[Tensor, "T C"], rotary: RotaryTables, batch: ForwardBatch
    ) -> Float[Tensor, "T C"]:
        """Let every token attend as the batch says."""
        heads = (x.shape[0], -1, self._head_width)
        # T H D for queries, T K D for keys and values
        q, k, v = (y.view(heads) for y in apply_all(self.inputs, x, batch.lora))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *rotary), rotate(k, *rotary)
        mixed = batch.attention.attend(self._layer, q, k, v)
        return self.output(mixed.flatten(-2), batch.lora)


class PreNormLayer:
    """The usual block: x + attend(norm(x)), then x + mlp(mlp_norm(x)).

    Attributes:
        attend: The attention part.
        mlp: The feed-forward part.
        norm: Before attention.
        mlp_norm: Before the feed-forward part.
    """

    def __init__(
        self, config: ModelConfig, weights: Weights, path: str, attend: Attend, mlp: FeedForward
    ) -> None:
        width, eps = config.width, config.norm_eps
        self.attend = attend
        self.mlp = mlp
        self.norm = rms_norm(weights, f"{path}.input_layernorm", width, eps)
        self.mlp_norm = rms_norm(weights, f"{path}.post_attention_layernorm", width, eps)

    def __call__(
        self, x: Float[Tensor, "T C"], rotary: RotaryTables, batch: ForwardBatch
    ) -> Float[Tensor, "T C"]:
        """Apply the block."""
        return self.transformed(self.attended(x, rotary, batch), batch.lora)

    def attended(
        self, x: Float[Tensor, "T C"], rotary: RotaryTables, batch: ForwardBatch
    ) -> Float[Tensor, "T C"]:
        """Apply the first part."""
        return x + self.attend(self.norm(x), rotary, batch)

    def transformed(self, x: Float[Tensor, "T C"], lora: LoraView | None) -> Float[Tensor, "T C"]:
        """Apply the second part to each row."""
        return x + self.mlp(self.mlp_norm(x), lora)


class SandwichLayer:
    """Gemma's block: each part is normalised before and after, inside the residual."""

    def __init__(
        self, config: ModelConfig, weights: Weights, path: str, attend: Attend, mlp: FeedForward
    ) -> None:
        def norm(name: str) -> RMSNorm:
            return rms_norm(weights, f"{path}.{name}", config.width, config.norm_eps)

        self._attend = attend
        self._mlp = mlp
        self._norm = norm("input_layernorm")
        self._attended_norm = norm("post_attention_layernorm")
        self._mlp_norm = norm("pre_feedforward_layernorm")
        self._transformed_norm = norm("post_feedforward_layernorm")

    def __call__(
        self, x: Float[Tensor, "T C"], rotary: RotaryTables, batch: ForwardBatch
    ) -> Float[Tensor, "T C"]:
        """Apply the block."""
        return self.transformed(self.attended(x, rotary, batch), batch.lora)

    def attended(
        self, x: Float[Tensor, "T C"], rotary: RotaryTables, batch: ForwardBatch
    ) -> Float[Tensor, "T C"]:
        """Apply the first part."""
        return x + self._attended_norm(self._attend(self._norm(x), rotary, batch))

    def transformed(self, x: Float[Tensor, "T C"], lora: LoraView | None) -> Float[Tensor, "T C"]:
        """Apply the second part to each row."""
        return x + self._transformed_norm(self._mlp(self._mlp_norm(x), lora))
