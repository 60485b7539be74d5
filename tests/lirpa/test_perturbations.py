"""Input sets as host perturbations: every method bounds the same set, soundly, and sets beat their boxes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zonoplug.domain.affine_image import AffineImage
from zonoplug.domain.image_blur import GaussianBlur
from zonoplug.domain.image_perturbations import SensorNoise, Sum
from zonoplug.domain.input_sets import Box
from zonoplug.domain.lp_ball import LpBall
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import HostError
from zonoplug.lirpa import compat
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, bound_set
from zonoplug.lirpa.perturbations import InputSetPerturbation, bounded_input, input_set
from zonoplug.testing import check_contains_samples

METHODS = [
    "ibp",
    "crown-ibp",
    "crown",
    "alpha-crown",
    "forward",
    "forward+crown",
    "zonotope",
    "zonotope[girard,12]",
    "zonotope+crown",
    "zonotope+alpha-crown",
    "alpha-zonotope",
]


class Normalise(nn.Module):
    """What stands in front of most image networks, and what the host's lp perturbations do not survive."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.full((1, 1, 1, 1), 0.3))
        self.register_buffer("scale", torch.full((1, 1, 1, 1), 0.7))

    def forward(self, x):
        return (x - self.mean) / self.scale


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3, padding=1, stride=2), nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Linear(27, 3)

    def forward(self, x):
        y = torch.relu(self.first(x))
        return self.last(torch.relu(self.second(y) + y).flatten(1))


NETWORKS = {
    "dense": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 10), nn.ReLU(), nn.Linear(10, 3)),
    "normalised": lambda: nn.Sequential(Normalise(), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)),
    "residual": Residual,
    "relu first": lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(72, 3)),
}


def make_sets(dtype):
    random = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.rand(*shape, generator=random, dtype=torch.float64).to(dtype)

    x = draw(2, 1, 6, 6)
    return {
        "l1": LpBall(x, 0.6, 1),
        "l2": LpBall(x, 0.5, 2),
        "l6": LpBall(x, 0.2, 6.0),
        "l2 with limits": LpBall(x, 0.5, 2, 0.0, 1.0),
        "ellipsoid": LpBall(x, draw(2, 1, 6, 6), 2),
        "affine image": AffineImage(x, 0.4 * draw(2, 4, 1, 6, 6) - 0.2),
        "affine image with box and noise": AffineImage(x, 0.4 * draw(2, 2, 1, 6, 6) - 0.2, x / 90, x / 30),
        "noise alone": AffineImage(x, x.unsqueeze(1)[:, :0], None, x / 20),
        "blur and noise": Sum((GaussianBlur(0.7), SensorNoise(0.02))).input_set(x),
    }


SETS = make_sets(torch.float32)


def build(name, dtype=torch.float32, conv_mode="patches"):
    torch.manual_seed(5)
    if name == "normalised":
        conv_mode = "matrix"  # 0.7's patches fail behind a constant that is subtracted, for boxes too
    module = NETWORKS[name]().eval().to(dtype)
    example = torch.zeros(1, 1, 6, 6, dtype=dtype)
    host = compat.build(module, example, conv_mode, module_class=ZonotopeModule)
    return module, host.to(dtype)


def bounds_of(host, known, method, rows=None):
    return bound_set(host, known, BoundMethod.parse(method), rows)[0]


def sampled(module, known, count=1000):
    points = known.sample(count, torch.Generator().manual_seed(1))
    with torch.no_grad():
        return module(points.flatten(0, 1)).unflatten(0, points.shape[:2])


def width(bounds):
    return float((bounds.upper - bounds.lower).mean())


@pytest.mark.parametrize("known", SETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_sampled_point_lies_inside_by_every_method(name, known):
    module, host = build(name)
    outputs = sampled(module, SETS[known])
    for method in METHODS:
        if "forward" in method and name == "normalised" and compat.IS_0_3:
            continue  # 0.3's own forward bounds fail behind a subtraction, for boxes too
        check_contains_samples(bounds_of(host, SETS[known], method), outputs)


@pytest.mark.parametrize("known", ["l2", "affine image with box and noise"])
def test_double_precision_is_kept(known):
    module, host = build("residual", torch.float64)
    value = make_sets(torch.float64)[known]
    for method in ("crown", "alpha-crown", "zonotope+crown"):
        bounds = bounds_of(host, value, method)
        assert bounds.lower.dtype == torch.float64
        check_contains_samples(bounds, sampled(module, value))


@pytest.mark.parametrize("known", SETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_no_method_is_looser_on_a_set_than_on_its_box(name, known):
    _, host = build(name)
    value = SETS[known]
    box = Box(*value.interval_hull())
    clipped = known == "l2 with limits"  # its zonotope is the whole ball
    for method in ("ibp", "crown", "alpha-crown", "zonotope", "zonotope+crown"):
        on_set, on_box = width(bounds_of(host, value, method)), width(bounds_of(host, box, method))
        unnamed = known == "noise alone" and "zonotope" in method  # its box has no symbols, those of a Box have
        assert on_set <= on_box * (1 + 1e-5) or clipped or unnamed
        if "crown" in method and known not in ("noise alone", "blur and noise"):
            assert on_set < 0.7 * on_box


@pytest.mark.parametrize("name", NETWORKS)
def test_a_narrow_rotated_set_is_much_tighter_than_its_box(name):
    _, host = build(name)
    x = torch.rand(2, 1, 6, 6)
    value = AffineImage(x, 0.05 * torch.randn(2, 1, 1, 6, 6).sign())
    box = Box(*value.interval_hull())
    for method in ("zonotope", "crown", "zonotope+crown"):
        assert width(bounds_of(host, value, method)) < 0.3 * width(bounds_of(host, box, method))
    assert width(bounds_of(host, value, "ibp")) == pytest.approx(width(bounds_of(host, box, "ibp")))


def test_limits_of_a_ball_reach_the_first_nonlinear_operator():
    _, host = build("relu first")
    limited, whole = SETS["l2 with limits"], LpBall(SETS["l2 with limits"].center, 0.5, 2)
    assert width(bounds_of(host, limited, "zonotope")) < 0.8 * width(bounds_of(host, whole, "zonotope"))


@pytest.mark.parametrize("known", SETS)
def test_patches_give_the_same_as_matrices(known):
    _, patches = build("residual")
    _, matrix = build("residual", conv_mode="matrix")
    one, other = (bounds_of(host, SETS[known], "crown") for host in (patches, matrix))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("known", [name for name in SETS if "box" not in name])
def test_crown_of_a_linear_network_is_exact(known):
    """Both bounds are the support of the set's zonotope, so nothing is lost on the way to the host.

    A box without symbols is left out: the propagation carries it by interval arithmetic, and CROWN does not.
    """
    torch.manual_seed(2)
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(32, 3)).eval()
    host = compat.build(module, torch.zeros(1, 1, 6, 6), module_class=ZonotopeModule)
    ours, theirs = (bounds_of(host, SETS[known], method) for method in ("zonotope", "crown"))
    torch.testing.assert_close(theirs.lower, ours.lower, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.upper, ours.upper, atol=1e-4, rtol=1e-4)


def test_a_batch_equals_its_elements_and_rows_may_differ_in_each():
    _, host = build("residual")
    value = SETS["affine image with box and noise"]
    rows = torch.randn(2, 4, 3)
    whole = bounds_of(host, value, "crown", rows)
    for element in range(2):
        part = slice(element, element + 1)
        single = AffineImage(*(tensor[part] for tensor in (value.center, value.generators, value.box, value.noise)))
        alone = bounds_of(host, single, "crown", rows[part])
        torch.testing.assert_close(whole.lower[part], alone.lower, atol=1e-5, rtol=1e-5)


def test_compute_bounds_takes_them_and_so_does_a_plain_module():
    module, host = build("residual")
    plain = compat.build(module, torch.zeros(1, 1, 6, 6))
    for known in ("l2", "affine image"):
        outputs = sampled(module, SETS[known])
        lower, upper = host.compute_bounds((bounded_input(SETS[known]),), method="zonotope+crown")
        check_contains_samples(Interval(lower.detach(), upper.detach()), outputs)
        for method in ("IBP", "CROWN", "CROWN-Optimized"):
            lower, upper = plain.compute_bounds((bounded_input(SETS[known]),), method=method)
            check_contains_samples(Interval(lower.detach(), upper.detach()), outputs)


def test_sets_come_back_from_the_host():
    for value in SETS.values():
        bounded = bounded_input(value)
        assert input_set(bounded) is value
        assert isinstance(bounded.ptb, InputSetPerturbation)
        assert type(value).__name__ in repr(bounded.ptb)
    center = torch.rand(2, 5)
    ball = input_set(compat.BoundedTensor(center, compat.PerturbationLpNorm(norm=2, eps=0.3)))
    assert isinstance(ball, LpBall)
    assert (ball.p, ball.radius) == (2.0, 0.3)
    assert torch.equal(ball.center, center)
    assert input_set(center) is None


def test_a_ball_is_bounded_by_intervals_behind_a_subtraction():
    module, host = build("normalised")
    ball = SETS["l2"]
    check_contains_samples(bounds_of(host, ball, "ibp"), sampled(module, ball))


def test_a_batch_that_was_pruned_is_refused():
    perturbation = bounded_input(SETS["l2"]).ptb
    with pytest.raises(HostError, match="prunes"):
        perturbation.concretize(None, torch.zeros(3, 1, 36))
    assert perturbation.concretize(None, None) is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("known", ["l2", "affine image with box and noise"])
def test_the_gpu_gives_the_cpus_bounds(known):
    value = make_sets(torch.float64)[known]
    module, host = build("residual", torch.float64)
    parts = [getattr(value, field) for field in value.__slots__]
    there = type(value)(*(part.cuda() if isinstance(part, torch.Tensor) else part for part in parts))
    example = torch.zeros(1, 1, 6, 6, dtype=torch.float64).cuda()
    on_gpu = compat.build(module.cuda(), example, module_class=ZonotopeModule)
    for method in ("zonotope", "crown", "zonotope+crown"):
        here = bounds_of(host, value, method)
        torch.testing.assert_close(bounds_of(on_gpu, there, method).lower.cpu(), here.lower)
    assert there.sample(10).is_cuda
