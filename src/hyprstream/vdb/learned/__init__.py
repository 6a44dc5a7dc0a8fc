"""The learned code of adapters: real numbers to integers, where the loss allows, and to bytes.

`Quantised` is an adapter as integers with a scale for each component; what a stream holds.
`quantise` makes one from tensors at a given step; training through rounding makes better ones
(see docs/design/codec.md).
"""

from hyprstream.vdb.learned.quantised import Mask, Pair, Quantised, Single
from hyprstream.vdb.learned.rate import PROXY_SLOPE, Target
from hyprstream.vdb.learned.rounding import quantise
from hyprstream.vdb.learned.scales import scale_codes, scales

__all__ = [
    "PROXY_SLOPE",
    "Mask",
    "Pair",
    "Quantised",
    "Single",
    "Target",
    "quantise",
    "scale_codes",
    "scales",
]
