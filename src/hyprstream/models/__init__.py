"""Transformers in torch: weights are constants, everything that varies travels in the batch.

Shape letters used in annotations throughout the project (`docs/reference/shapes.md`):

    T  tokens in a packed step, all sequences     V  vocabulary
    S  sequences in a step                        F  feed-forward width
    N  rows chosen for sampling                   I, O  inputs, outputs of a linear layer
    C  model width                                R  rank
    H, K  query heads, key/value heads            A  adapter slots
    D  head width                                 B, P  blocks, tokens per block
"""
