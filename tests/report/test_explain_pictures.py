"""Pictures of explanations show what they are given."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch

from zonoplug.explain.merging import merge_tree
from zonoplug.report.explain.pictures import (
    AGAINST,
    FOR,
    Line,
    MapPanel,
    draw_bars,
    draw_kept,
    draw_lines,
    draw_maps,
    draw_tree,
)

image_module = pytest.importorskip("matplotlib.image")


def pixels(draw):
    buffer = BytesIO()
    draw(buffer)
    buffer.seek(0)
    return image_module.imread(buffer)[:, :, :3]


def count(picture, color, tolerance=0.03):
    wanted = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return int((np.abs(picture - wanted).max(axis=2) < tolerance).sum())


@pytest.mark.parametrize("channels", [1, 3])
def test_maps_show_signs_in_blue_and_red_on_a_scale_around_0(channels):
    values = torch.zeros(4, 4)
    values[0, 0], values[3, 3] = 2.0, -2.0
    picture = pixels(lambda path: draw_maps(torch.rand(channels, 4, 4), [MapPanel("m", values, "note")], path))
    one_sided = pixels(lambda path: draw_maps(None, [MapPanel("m", values.clamp(min=0))], path))
    blue, red = "#053061", "#67001F"
    assert count(picture, blue) > 300
    assert count(picture, red) > 300
    assert count(one_sided, red) < 100, "only the scale beside it is red"
    assert one_sided.shape[0] > 100


def test_a_map_of_nothing_and_one_that_is_unknown_are_drawn():
    for values in (torch.zeros(3, 3), torch.full((3, 3), float("nan"))):
        assert pixels(lambda path, v=values: draw_maps(None, [MapPanel("m", v)], path)).size


def test_what_is_not_kept_is_veiled():
    image = torch.ones(1, 10, 10)
    mask = torch.zeros(10, 10, dtype=torch.bool)
    mask[2:8, 2:8] = True
    some = pixels(lambda path: draw_kept(image, {"some": mask}, path))
    everything = pixels(lambda path: draw_kept(image, {"all": ~mask | mask}, path))
    veil = "#FDEABF"
    assert count(some, veil) > 5000
    assert count(everything, veil) < 100
    assert count(some, FOR, 0.2) > 100


def test_trees_with_and_without_an_image():
    merges = merge_tree(torch.tensor([[1.0, 2.0], [1.0, 1.0], [-3.0, 1.0], [0.1, 0.0]]))
    labels = torch.arange(4).reshape(2, 2)
    alone = pixels(lambda path: draw_tree(merges, path, names=["a", "b", "c", "d"]))
    beside = pixels(lambda path: draw_tree(merges, path, torch.rand(3, 2, 2), labels))
    assert count(alone, FOR) > 300
    assert beside.shape[1] > alone.shape[1]
    assert pixels(lambda path: draw_tree([], path, names=["only"])).size


def test_bars_are_coloured_by_sign_and_long_lists_are_cut():
    names, values = [f"input {i}" for i in range(40)], [(-1) ** i * (40.0 - i) for i in range(40)]
    picture = pixels(lambda path: draw_bars(names, values, path, "margin", [1.0] * 40))
    assert count(picture, FOR) > 1000
    assert count(picture, AGAINST) > 1000


def test_lines_of_one_family_share_a_colour():
    lines = [Line("girard", [0, 1], [0, 1]), Line("girard, inputs protected", [0, 1], [0, 1], True)]
    picture = pixels(lambda path: draw_lines({"a": ("y", lines, False), "b": ("z", lines, True)}, path, "x"))
    assert picture.shape[1] > picture.shape[0]
