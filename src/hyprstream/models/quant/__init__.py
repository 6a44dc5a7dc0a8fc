"""Weights of linear layers: dense, in GGUF blocks, or in tiles for the CPU's 4-bit kernel.

Quantised weights stay quantised in memory. All are constants with one protocol, `Weight`.
"""

from hyprstream.models.quant.blocks import FORMATS, BlockFormat
from hyprstream.models.quant.convert import Quantization, for_compute, quantize
from hyprstream.models.quant.tiles import TiledWeight
from hyprstream.models.quant.weight import BlockWeight, DenseWeight, Weight

__all__ = [
    "FORMATS",
    "BlockFormat",
    "BlockWeight",
    "DenseWeight",
    "Quantization",
    "TiledWeight",
    "Weight",
    "for_compute",
    "quantize",
]
