"""Pictures are written, and say what they need where they cannot be."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from zonoplug.domain.image_blur import GaussianBlur
from zonoplug.domain.image_perturbations import DeadLines
from zonoplug.domain.image_tone import Brightness
from zonoplug.errors import SettingError
from zonoplug.report.plots import STYLES, Panel, draw_accuracy, draw_extremes

PERTURBATIONS = {"brighter": Brightness(0.4), "blurred": GaussianBlur(1.0), "row": DeadLines((0,))}


@pytest.mark.parametrize("channels", [1, 3])
def test_extremes_are_drawn_from_the_real_formula(tmp_path, channels):
    pyplot = pytest.importorskip("matplotlib.image")
    path = tmp_path / "extremes.png"
    draw_extremes(torch.full((channels, 8, 8), 0.5), PERTURBATIONS, path, columns=2)
    picture = pyplot.imread(path)
    assert picture.shape[0] > 200
    shades = np.unique(picture[:, :, 0].round(2))
    for shade in (0.1, 0.5, 0.9, 0.0, 1.0):  # brightness at both ends, the image itself, a dead row at both ends
        assert bool((np.abs(shades - shade) < 0.02).any())


def test_accuracy_is_drawn_with_every_line(tmp_path):
    pyplot = pytest.importorskip("matplotlib.image")
    path = tmp_path / "accuracy.png"
    shares = {f"method {number}": [1.0, 0.8 - 0.1 * number] for number in range(6)}
    panels = [Panel(f"panel {n}", "pixels", [0, 1], {**shares, "samples": [1, 0.9]}, "samples") for n in range(4)]
    draw_accuracy(panels, path, "certified share")
    picture = pyplot.imread(path)[:, :, :3]
    for style in STYLES:
        color = np.array([int(style["color"][place : place + 2], 16) / 255 for place in (1, 3, 5)])
        assert int((np.abs(picture - color).max(axis=2) < 0.02).sum()) > 50


def test_without_matplotlib_the_error_says_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(SettingError, match=r"zonoplug\[plots\]"):
        draw_accuracy([], tmp_path / "none.png", "share")
