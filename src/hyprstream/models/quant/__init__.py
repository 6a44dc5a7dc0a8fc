"""Weights of linear layers: dense, in GGUF blocks, or packed for kernels of the CPU.

Quantised weights stay quantised in memory. All are constants with one protocol, `Weight`.
"""

from hyprstream.models.quant.blocks import FORMATS, BlockFormat
from hyprstream.models.quant.convert import Quantization, for_compute, quantize
from hyprstream.models.quant.memory import WeightMemory
from hyprstream.models.quant.packed import PackedWeight
from hyprstream.models.quant.tiles import TiledWeight
from hyprstream.models.quant.together import multiply_all, peaks
from hyprstream.models.quant.weight import BlockWeight, DenseWeight, Weight

__all__ = [
    "FORMATS",
    "BlockFormat",
    "BlockWeight",
    "DenseWeight",
    "PackedWeight",
    "Quantization",
    "TiledWeight",
    "Weight",
    "WeightMemory",
    "for_compute",
    "multiply_all",
    "peaks",
    "quantize",
]
