"""Batches of boxes: some of them, one of them many times."""

from __future__ import annotations

import torch

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval


def test_boxes_are_picked_by_number_by_slice_and_by_mask():
    boxes = Box(torch.arange(6.0).reshape(3, 2), torch.arange(6.0).reshape(3, 2) + 1)
    for index in (torch.tensor([2, 0]), slice(1, 2), torch.tensor([True, False, True])):
        picked = boxes.pick(index)
        assert torch.equal(picked.lower, boxes.lower[index])
        assert torch.equal(picked.upper, boxes.upper[index])


def test_one_box_stands_for_many_in_the_same_memory():
    ends = -torch.rand(1, 2, 3), torch.rand(1, 2, 3)
    for many in (Box(*ends).expanded(4), Interval(*ends).expanded(4)):
        for wide, end in zip((many.lower, many.upper), ends, strict=True):
            assert wide.shape == (4, 2, 3)
            assert torch.equal(wide, end.repeat(4, 1, 1))
            assert wide.data_ptr() == end.data_ptr()
