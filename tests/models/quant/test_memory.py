"""Memory for weights: zeros that nobody else has."""

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.models.quant import WeightMemory


@given(sizes=st.lists(st.integers(1, 3 << 20), min_size=1, max_size=30), luck=st.randoms())
def test_tensors_are_zero_apart_and_at_lines(sizes, luck):
    memory = WeightMemory()
    sizes = [*sizes, luck.choice([64 << 20, (64 << 20) + 1])]
    tensors = [memory.zeros(size) for size in sizes]
    for number, tensor in enumerate(tensors):
        assert tensor.data_ptr() % 64 == 0
        assert tensor[0] == tensor[-1] == 0
        tensor[0] = tensor[-1] = number + 1
    places = sorted((tensor.data_ptr(), tensor.nbytes) for tensor in tensors)
    for (begin, size), (after, _) in pairwise(places):
        assert begin + size <= after
    for number, tensor in enumerate(tensors):
        assert tensor[0] == tensor[-1] == number + 1


def test_memory_outlives_what_gave_it():
    memory = WeightMemory()
    tensor = memory.zeros(3, 5)
    del memory
    tensor.fill_(7)
    assert torch.equal(tensor, torch.full((3, 5), 7, dtype=torch.uint8))
