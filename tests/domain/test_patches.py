"""Patches of convolutions equal the dense oracle, for every kernel, stride, padding, dilation and grouping."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.alignment import align_sum
from zonoplug.domain.blocks import DenseBlock, DiagonalBlock, PatchBlock, sum_local
from zonoplug.domain.convolutions import Convolution, TransposedConvolution
from zonoplug.domain.linear_maps import MatrixMap
from zonoplug.domain.symbols import SymbolSource

DTYPE = torch.float64


@st.composite
def local_maps(draw, channels, rank, transposed=None):
    """A convolution or transposed convolution of `channels` channels, with any settings."""

    def numbers(low, high):
        return [draw(st.integers(low, high)) for _ in range(rank)]

    kernel, stride, dilation = numbers(1, 3), numbers(1, 3), numbers(1, 2)
    padding = [draw(st.integers(0, d * (k - 1) + 1)) for d, k in zip(dilation, kernel, strict=True)]
    groups = draw(st.sampled_from([g for g in (1, 2, 4) if channels % g == 0]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    per_group = draw(st.integers(1, 2))
    if draw(st.booleans()) if transposed is None else transposed:
        extra = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
        weight = torch.randn(channels, per_group, *kernel, generator=random, dtype=DTYPE)
        return TransposedConvolution(weight, stride, padding, extra, dilation, groups)
    weight = torch.randn(per_group * groups, channels // groups, *kernel, generator=random, dtype=DTYPE)
    return Convolution(weight, stride, padding, dilation, groups)


@st.composite
def diagonal_blocks(draw, rank):
    shape = (draw(st.sampled_from([1, 2, 4])), *(draw(st.integers(7 - rank, 10 - rank)) for _ in range(rank)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    count = draw(st.integers(1, min(6, prod(shape))))
    index = torch.stack([torch.randperm(prod(shape), generator=random)[:count] for _ in range(2)])
    values = torch.randn(2, count, generator=random, dtype=DTYPE)
    norm = draw(st.sampled_from([torch.inf, 2.0]))
    return DiagonalBlock(SymbolSource().fresh("x", index), values, index, shape, norm)


@given(st.data(), st.integers(1, 3))
def test_two_convolutions_of_single_neurons_equal_the_dense_oracle(data, rank):
    """And everything a block can do in between: radius, scaling, reshaping, products with rows."""
    block = data.draw(diagonal_blocks(rank))
    oracle = DenseBlock(block.symbols, block.dense(), block.norm)
    for _ in range(2):
        linear = data.draw(local_maps(block.shape[0], rank))
        try:
            oracle = oracle.map(linear)
        except RuntimeError:  # torch refuses settings that leave no output
            return
        block = block.map(linear)
        assert block.shape == oracle.shape
        torch.testing.assert_close(block.dense(), oracle.generators)
        torch.testing.assert_close(block.radius(), oracle.radius())
        assert (block.norm, block.symbols.tolist()) == (oracle.norm, oracle.symbols.tolist())
        factor = torch.randn(1, *block.shape, dtype=DTYPE)
        block, oracle = block.scale(factor), oracle.scale(factor)
        rows = torch.randn(2, 3, prod(block.shape), dtype=DTYPE)
        torch.testing.assert_close(block.contract(rows).generators, oracle.contract(rows).generators)
        flat = (prod(block.shape),)
        torch.testing.assert_close(block.reshape(flat).dense(), oracle.reshape(flat).generators)
    weight = torch.randn(3, block.shape[-1], dtype=DTYPE)
    torch.testing.assert_close(block.map(MatrixMap(weight)).dense(), oracle.map(MatrixMap(weight)).generators)


def one_neuron(shape):
    index = torch.tensor([[0, prod(shape) - 1]])
    return DiagonalBlock(SymbolSource().fresh("x", index), torch.ones(1, 2, dtype=DTYPE), index, shape)


def test_windows_grow_and_become_dense_where_they_no_longer_pay():
    linear = Convolution(torch.randn(2, 2, 3, 3, dtype=DTYPE), [1, 1], [1, 1], [1, 1], 1)
    block, kinds = one_neuron((2, 8, 8)), []
    for _ in range(3):
        block = block.map(linear)
        kinds.append(tuple(block.patches.shape[3:]) if isinstance(block, PatchBlock) else "dense")
    assert kinds == [(3, 3), (5, 5), "dense"]


@pytest.mark.parametrize("transposed", [False, True])
def test_no_one_hot_rows_are_made(monkeypatch, transposed):
    """The largest tensor on the way is no larger than the image."""
    shape, largest = (4, 32, 32), 0
    weight = torch.randn(4, 4, 3, 3, dtype=DTYPE)
    settings = [2, 2], [1, 1]
    linear = (
        TransposedConvolution(weight, *settings, [1, 1], [1, 1], 1)
        if transposed
        else Convolution(weight, *settings, [1, 1], 1)
    )
    count = 500
    index = torch.randperm(prod(shape))[:count][None]
    block = DiagonalBlock(SymbolSource().fresh("x", index), torch.ones(1, count, dtype=DTYPE), index, shape)
    with torch.profiler.profile(profile_memory=True) as profile:
        image = block.map(linear)
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert isinstance(image, PatchBlock)
    assert largest <= 2 * image.patches.numel() * 8 < count * prod(shape) * 8 / 4


def test_unknown_entries_stay_unknown():
    """A NaN in a generator reaches every coordinate that the convolution reads it for."""
    linear = Convolution(torch.randn(2, 2, 3, 3, dtype=DTYPE), [1, 1], [1, 1], [1, 1], 1)
    block = one_neuron((2, 8, 8))
    block = DiagonalBlock(block.symbols, block.values * torch.nan, block.index, block.coordinates)
    image = block.map(linear)
    assert bool(image.radius()[0, :, :2, :2].isnan().all())
    assert not bool(image.radius()[0, :, 3, 3].isnan().any())


@given(st.data(), st.integers(1, 2))
def test_sums_of_windows_equal_the_dense_oracle_and_stay_windows(data, rank):
    """A residual connection: single entries, or a convolution of them, plus what one more convolution makes of it."""
    block = data.draw(diagonal_blocks(rank))
    random = torch.Generator().manual_seed(0)
    channels, kernel = block.shape[0], data.draw(st.sampled_from([1, 3]))
    ones = (1,) * rank

    def same_size(kernel):
        weight = torch.randn(channels, channels, *(kernel,) * rank, generator=random, dtype=DTYPE)
        return Convolution(weight, ones, (kernel // 2,) * rank, ones, 1)

    short = block.map(same_size(1)) if data.draw(st.booleans()) else block
    long = short.map(same_size(kernel))
    total = sum_local(short, long)
    either = align_sum([short], [long])
    assert len(either) == 1
    torch.testing.assert_close(either[0].dense(), short.dense() + long.dense())
    assert torch.equal(either[0].symbols, block.symbols) and either[0].norm == block.norm
    if total is not None:
        assert either[0].entries == total.entries < block.num_symbols * prod(block.shape) or kernel == 1
        torch.testing.assert_close(total.radius(), (DenseBlock(block.symbols, total.dense(), block.norm)).radius())
    if kernel == 1 or min(block.shape[1:]) >= 7:
        assert total is not None


def test_blocks_that_share_symbols_with_a_third_are_summed_together():
    index = torch.arange(4).expand(1, 4)
    ids = SymbolSource().fresh("x", index)
    one = DiagonalBlock(ids, torch.ones(1, 4, dtype=DTYPE), index, (1, 4, 4))
    moved = DiagonalBlock(ids, torch.ones(1, 4, dtype=DTYPE), index + 4, (1, 4, 4))
    total = align_sum([one, moved], [one])
    dense = sum(block.dense() for block in total)
    torch.testing.assert_close(dense, 2 * one.dense() + moved.dense())
    assert sum(block.num_symbols for block in total) == 4, "each symbol counts once in a radius"
    same = sum_local(one, one)
    assert isinstance(same, DiagonalBlock) and bool((same.values == 2).all())
    uneven = DiagonalBlock(ids, one.values, torch.tensor([[0, 2, 1, 3]]), (1, 4, 4))
    assert sum_local(one, uneven) is None
