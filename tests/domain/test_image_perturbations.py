"""Every truly perturbed image lies in its set; formulas agree with independent ones; curvature is enclosed, tightly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from zonoplug.domain.image_blur import GaussianBlur, MotionBlur
from zonoplug.domain.image_perturbations import DeadLines, DeadPixels, ImagePerturbation, SensorNoise, Sum
from zonoplug.domain.image_tone import Brightness, Contrast
from zonoplug.errors import SettingError

SOLVER = 1e-9  # what the linear program may leave open

MAKERS = {
    "brightness": lambda s: Brightness(0.8 * s),
    "brightness without clipping": lambda s: Brightness(0.8 * s, clip=False),
    "part of brightness": lambda s: Brightness(0.8, within=(s / 2, s)),
    "contrast": lambda s: Contrast(2 * s),
    "noise": lambda s: SensorNoise(0.5 * s),
    "noise without clipping": lambda s: SensorNoise(0.5 * s, clip=False),
    "dead pixels": lambda s: DeadPixels(((0, 1), (3, 2))),
    "dead rows": lambda s: DeadLines((0, 2)),
    "dead columns": lambda s: DeadLines((3,), columns=True),
    "gaussian blur": lambda s: GaussianBlur(2.5 * s),
    "gaussian blur, one symbol": lambda s: GaussianBlur(2.5 * s, symbols=1),
    "part of gaussian blur": lambda s: GaussianBlur(2.5, within=(s / 2, s)),
    "motion blur": lambda s: MotionBlur(5 * s, angle=360 * s),
    "motion blur along an axis": lambda s: MotionBlur(5 * s, angle=90.0),
    "part of motion blur": lambda s: MotionBlur(4.0, 25.0, within=(s / 2, s)),
    "blur, noise and brightness": lambda s: Sum((GaussianBlur(2 * s), SensorNoise(0.1 * s), Brightness(0.3 * s))),
    "dead lines that cross": lambda s: Sum((DeadLines((1,)), DeadLines((1,), columns=True))),
}


def images(seed, channels=1, size=4, dtype=torch.float64):
    """Two images: random, and with few values, black and white among them, as printed digits have."""
    random = torch.Generator().manual_seed(seed)
    one = torch.rand(channels, size, size + 1, generator=random, dtype=torch.float64)
    few = torch.randint(0, 4, (channels, size, size + 1), generator=random).double() / 3
    return torch.stack([one, few]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", MAKERS)
@settings(max_examples=12)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), channels=st.integers(1, 3))
def test_every_truly_perturbed_image_lies_in_the_set(how_far_outside, name, dtype, seed, share, channels):
    perturbation = MAKERS[name](share)
    clean = images(seed, channels, dtype=dtype)
    known = perturbation.input_set(clean)
    perturbed = perturbation.sample(clean, 6, torch.Generator().manual_seed(seed))
    assert perturbed.dtype == known.center.dtype == dtype
    assert how_far_outside(known, perturbed) <= SOLVER


@pytest.mark.parametrize("name", MAKERS)
def test_sets_have_few_symbols_and_are_not_much_wider_than_the_truth(name):
    perturbation = MAKERS[name](0.4)
    clean = images(3, size=8)
    known = perturbation.input_set(clean)
    free = 0 if known.noise is None else int((known.noise > 0).flatten(1).sum(dim=1).max())
    if "noise" not in name:
        assert known.num_generators <= 10
        assert free <= {"brightness": 40, "contrast": 40, "part of brightness": 40, "dead lines that cross": 1}.get(
            name, 0
        )
    truth = perturbation.sample(clean, 300).double()
    width = truth.amax(dim=0) - truth.amin(dim=0)
    assert float(2 * known.radius().sum()) <= 1.7 * float(width.sum())


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.4, 1.0, 2.3])
def test_gaussian_blur_is_the_textbooks(strength):
    clean = images(1, size=9)
    blur = GaussianBlur(2.5)
    ours = blur.perturb(clean, torch.full((2, 1), strength / 2.5, dtype=torch.float64))
    steps = np.arange(-8, 9)
    line = np.exp(-(steps**2) / (2 * max(strength, 1e-9) ** 2))
    kernel = np.outer(line, line) / line.sum() ** 2
    for element in range(2):
        expected = ndimage.correlate(clean[element, 0].numpy(), kernel, mode="nearest")
        np.testing.assert_allclose(ours[element, 0].numpy(), expected, atol=1e-12)


@pytest.mark.parametrize(("length", "angle"), [(0.0, 10.0), (0.6, 0.0), (2.0, 90.0), (3.7, 30.0), (4.0, 200.0)])
def test_motion_blur_is_the_mean_along_the_move(length, angle):
    clean = images(2, size=9)
    ours = MotionBlur(4.0, angle).perturb(clean, torch.full((2, 1), length / 4, dtype=torch.float64))
    places = (np.arange(4000) + 0.5) / 4000 * length - length / 2
    rows, columns = np.mgrid[0:9, 0:10].astype(float)
    for element in range(2):
        picture = np.pad(clean[element, 0].numpy(), 6, mode="edge")
        total = 0
        for r in places:
            at = [rows + 6 - r * np.sin(np.radians(angle)), columns + 6 + r * np.cos(np.radians(angle))]
            total = total + ndimage.map_coordinates(picture, at, order=1)
        np.testing.assert_allclose(ours[element, 0].numpy(), total / len(places), atol=1e-6)


@pytest.mark.parametrize(
    ("blur", "place"),
    [
        (GaussianBlur(0.15), lambda s: s**2),
        (GaussianBlur(0.5), lambda s: s**2),
        (GaussianBlur(1.7), lambda s: s**2),
        (GaussianBlur(3.0, within=(0.4, 0.8)), lambda s: s**2),
        (MotionBlur(1.0), lambda s: s),
        (MotionBlur(5.0, 33.0), lambda s: s),
        (MotionBlur(5.0, 45.0, within=(0.1, 0.6)), lambda s: s),
    ],
)
def test_kernels_between_nodes_are_as_near_to_the_line_as_promised(blur, place):
    """The line runs evenly in the variance of a gaussian, and in the length of a move. The promise is no empty one."""
    path = blur.path()
    first, last = (blur.strength * end for end in blur.within)
    strengths = (torch.linspace(0, 1, 5001, dtype=torch.float64) ** 2 * (last - first) + first).clamp(first, last)
    true = blur.kernels(strengths)
    # Nodes are where the path's kernels are: find them again by their most variable tap.
    tap = (path.kernels[-1] - path.kernels[0]).abs().flatten().argmax()
    order = path.kernels.flatten(1)[:, tap]
    assert bool((order.diff() >= 0).all()) or bool((order.diff() <= 0).all())
    worst = torch.zeros_like(path.slack)
    for start, end in zip(path.kernels[:-1], path.kernels[1:], strict=True):
        low, high = sorted((float(start.flatten()[tap]), float(end.flatten()[tap])))
        value = true.flatten(1)[:, tap]
        inside = true[(value >= low) & (value <= high)]
        if not len(inside) or high - low < 1e-12:
            continue
        share = (inside.flatten(1)[:, tap] - start.flatten()[tap]) / (end.flatten()[tap] - start.flatten()[tap])
        line = start + share.reshape(-1, 1, 1) * (end - start)
        worst = torch.maximum(worst, (inside - line).abs().amax(dim=0))
    # Measuring the share by one tap shifts it by that tap's own slack, relative to its change: twice is enough here.
    assert bool((worst <= 2 * path.slack + 1e-9).all())
    assert float(path.slack.max()) < 5e-4
    torch.testing.assert_close(path.kernels.sum(dim=(1, 2)), torch.ones(len(path.kernels), dtype=torch.float64))


def test_flat_images_do_not_move_under_blur():
    flat = torch.full((1, 1, 6, 6), 0.4, dtype=torch.float64)
    for blur in (GaussianBlur(2.0), MotionBlur(4.0, 20.0)):
        known = blur.input_set(flat)
        torch.testing.assert_close(known.center, flat)
        assert float(known.radius().max()) < 1e-10


def test_more_symbols_give_a_smaller_box():
    clean = images(5, size=8)
    boxes = [float(GaussianBlur(1.5, symbols=count).input_set(clean).box.sum()) for count in (1, 2, 3, 5)]
    assert boxes == sorted(boxes, reverse=True)
    assert boxes[-1] < 0.1 * boxes[0]


def test_equal_pixels_share_what_clipping_leaves(how_far_outside):
    """A black background adds one symbol, not one for each pixel, and the corner of the cube is not claimed."""
    clean = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    clean[0, 0, 1, 1] = 0.55
    known = Brightness(0.2).input_set(clean)
    assert known.num_generators == 2
    assert float(known.noise.max()) == 0
    single = ImagePerturbation.input_set(Brightness(0.2), clean)
    assert single.num_generators == 1
    assert int((single.noise > 0).sum()) == 15
    odd = clean.clone()
    odd[0, 0, 0] = 0.2
    assert how_far_outside(known, odd[None]) > how_far_outside(single, odd[None]) + 0.03


@pytest.mark.parametrize(
    "whole", [Brightness(0.3), Contrast(0.5, clip=False), GaussianBlur(1.4), MotionBlur(3.0, 15.0)]
)
def test_pieces_cover_the_whole_and_are_smaller(how_far_outside, whole):
    clean = images(6, size=5)
    pieces = whole.split(4)
    assert pieces[0].within[0] == 0
    assert pieces[-1].within[1] == 1
    for number, place in [(0, 0.0), (0, 0.25), (1, 0.25), (2, 0.6), (3, 1.0)]:
        point = whole.perturb(clean, torch.full((2, 1), place, dtype=torch.float64))
        assert how_far_outside(pieces[number].input_set(clean), point[None]) <= SOLVER
    widths = [float(piece.input_set(clean).radius().sum()) for piece in pieces]
    assert sum(widths) <= 1.4 * float(whole.input_set(clean).radius().sum())
    assert pieces[1].split(2)[0].within == (0.25, 0.375)


def test_perturbations_do_what_they_say():
    clean = torch.full((1, 1, 3, 3), 0.5)
    low, _, high = Brightness(0.2).extremes(clean)
    torch.testing.assert_close(torch.stack([low.max(), high.min()]), torch.tensor([0.3, 0.7]))
    low, middle, high = DeadPixels(((1, 2),)).extremes(clean)
    assert [float(x[0, 0, 1, 2]) for x in (low, middle, high)] == [0, 0.5, 1]
    assert float((high - clean).abs().sum()) == 0.5
    assert DeadLines((1,)).perturb(clean, torch.ones(1, 1))[0, 0].sum(dim=1).tolist() == [1.5, 3.0, 1.5]
    assert DeadLines((1,), columns=True).perturb(clean, torch.ones(1, 1))[0, 0].sum(dim=0).tolist() == [1.5, 3.0, 1.5]
    dark, random, bright = SensorNoise(0.1).extremes(clean)
    torch.testing.assert_close(dark + 0.1, bright - 0.1)
    assert len(random.unique()) == 2
    bright_and_dead = Sum((Brightness(0.7), DeadPixels(((0, 0),))))
    assert float(bright_and_dead.perturb(clean, torch.ones(1, 2)).max()) == 1.0


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Brightness(-0.1), "strength"),
        (lambda: GaussianBlur(float("nan")), "strength"),
        (lambda: SensorNoise(float("inf")), "strength"),
        (lambda: MotionBlur(1.0, within=(0.6, 0.5)), "within"),
        (lambda: DeadPixels(((5, 0),)).input_set(images(0)), "outside the image"),
        (lambda: DeadLines((-1,)).input_set(images(0)), "outside the image"),
        (lambda: Brightness(0.1).input_set(images(0) + 1), r"\[0, 1\]"),
        (lambda: Contrast(0.1).input_set(images(0)[0]), "batch, channels"),
    ],
)
def test_senseless_perturbations_are_refused(make, what):
    with pytest.raises(SettingError, match=what):
        make()
