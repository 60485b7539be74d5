"""Backward bounds: equal to the host's CROWN, and sound for every choice of slopes, multipliers and signs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa.ascent import Adam
from zonoplug.lirpa.backward import refinement as refine
from zonoplug.lirpa.backward.passes import Backward
from zonoplug.lirpa.backward.refinement import first_alpha, refine_bounds
from zonoplug.lirpa.backward.triangle import Multipliers
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import bound_box, build, forward_propagation
from zonoplug.testing import tolerance

ZONOTOPE = BoundMethod.parse("zonotope")


class Residual(nn.Module):
    """Convolutions, a skip connection, a concatenation, sigmoid at one place if asked."""

    def __init__(self, smooth=False):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.middle, self.last = nn.Linear(64, 8), nn.Linear(8, 3)
        self.smooth = smooth

    def forward(self, x):
        y = torch.relu(self.first(x))
        z = torch.relu(self.second(y) + y)
        both = torch.cat([y.flatten(1), z.flatten(1)], dim=1)
        hidden = self.middle(both)
        return self.last(torch.sigmoid(hidden) if self.smooth else torch.relu(hidden))


def case(seed, smooth=False, batch=2):
    torch.manual_seed(seed)
    module = Residual(smooth).double().eval()
    box = Box.ball(torch.randn(batch, 1, 4, 4, dtype=torch.float64), 0.15)
    host = build(module, box.lower[:1])
    rows = torch.randn(batch, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        preactivations = forward_propagation(host, [box], ZONOTOPE).preactivations
    return module, host, box, rows, preactivations


def reached(module, box, rows, count=4000):
    with torch.no_grad():
        points = box.sample(count)
        outputs = module(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        return points, torch.einsum("brn,mbn->mbr", rows, outputs)


@pytest.mark.parametrize("seed", range(4))
def test_the_default_slopes_give_the_hosts_crown(seed):
    _, host, box, rows, preactivations = case(seed)
    ours = Backward(host).bound(box, preactivations, rows).lower
    theirs, _ = bound_box(host, box, BoundMethod.parse("zonotope+crown"), rows)
    plain, _ = bound_box(host, box, ZONOTOPE, rows)
    torch.testing.assert_close(torch.maximum(ours, plain.lower), theirs.lower)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_alpha_is_sound(seed, smooth):
    module, host, box, rows, preactivations = case(seed, smooth)
    _, values = reached(module, box, rows)
    passes = Backward(host)
    for trial in range(5):
        random = torch.Generator().manual_seed(trial)
        alpha = {
            node.name: torch.rand(
                preactivations[node.inputs[0].name].lower.shape, generator=random, dtype=torch.float64
            )
            for node in passes.relus
        }
        lower = passes.bound(box, preactivations, rows, Multipliers(alpha)).lower
        assert bool((values >= lower - tolerance(values)).all())


@pytest.mark.parametrize("seed", range(6))
def test_fixed_signs_and_every_beta_are_sound_where_the_signs_hold(seed):
    """Fix the signs that one sampled point has; every sample with these signs must respect the bound."""
    module, host, box, rows, preactivations = case(seed, batch=1)
    points, values = reached(module, box, rows)
    passes = Backward(host)
    before = {}
    for node in passes.relus:
        name = node.inputs[0].name
        pre = torch.stack([host(point, final_node_name=name).detach()[0] for point in points[:400]])
        before[node.name] = pre
    random = torch.Generator().manual_seed(seed)
    for trial in range(5):
        chosen, tight, matching = Multipliers(), dict(preactivations), torch.ones(400, dtype=torch.bool)
        for node in passes.relus:
            name, pre = node.inputs[0].name, before[node.name]
            hull = preactivations[name]
            open_ = ((hull.lower < 0) & (hull.upper > 0))[0]
            fixed = open_ & (torch.rand(open_.shape, generator=random) < 0.15)
            sign = torch.where(fixed, pre[trial].sign(), torch.zeros_like(pre[trial]))
            matching &= ((pre * sign >= 0) | (sign == 0)).flatten(1).all(dim=1)
            chosen.sign[node.name] = sign[None]
            chosen.beta[node.name] = torch.rand(sign.shape, generator=random, dtype=torch.float64)[None]
            chosen.alpha[node.name] = first_alpha(hull)
            tight[name] = type(hull)(
                torch.where(sign[None] > 0, hull.lower.clamp(min=0), hull.lower),
                torch.where(sign[None] < 0, hull.upper.clamp(max=0), hull.upper),
            )
        lower = passes.bound(box, tight, rows, chosen).lower
        assert bool(matching[trial])
        assert bool((values[:400][matching] >= lower - tolerance(values)).all())


@pytest.mark.parametrize("steps", [0, 4])
@pytest.mark.parametrize("seed", range(3))
def test_refined_bounds_are_tighter_and_hold(seed, steps):
    _, host, box, _, preactivations = case(seed, batch=1)
    tight = refine_bounds(host, box, preactivations, steps, Deadline(60))
    gained = 0.0
    for name, hull in tight.items():
        assert bool((hull.lower >= preactivations[name].lower).all() & (hull.upper <= preactivations[name].upper).all())
        gained += float((hull.lower - preactivations[name].lower).sum())
        for point in box.sample(150):
            value = host(point, final_node_name=name).detach()
            assert bool((value >= hull.lower - 1e-9).all() & (value <= hull.upper + 1e-9).all())
    assert gained > 0


def test_only_neurons_that_the_rows_read_are_bounded_again():
    """A corner of the last convolution's output reads the neurons around it, and their pre-activation bounds alone get
    tighter.
    """
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Conv2d(2, 1, 3, padding=1), nn.Flatten()).double()
    center = torch.rand(1, 1, 8, 8, dtype=torch.double)
    box = Box(center - 0.5, center + 0.5)
    host = build(model, center)
    preactivations = forward_propagation(host, [box], ZONOTOPE).preactivations
    rows = torch.zeros(1, 1, 64, dtype=torch.double)
    rows[..., 0] = 1.0
    tight = refine_bounds(host, box, preactivations, 4, Deadline(60), rows=rows)
    everywhere = refine_bounds(host, box, preactivations, 4, Deadline(60))
    last = Backward(host).relus[-1].inputs[0].name
    moved = (tight[last].lower != preactivations[last].lower) | (tight[last].upper != preactivations[last].upper)
    assert bool(moved[..., :2, :2].any()) and not bool(moved[..., 2:, :].any() | moved[..., :, 2:].any())
    passes = Backward(host)
    found = [float(passes.bound(box, one, rows).lower) for one in (preactivations, tight, everywhere)]
    assert found[0] < found[1] <= found[2] + 1e-9 and found[1] == pytest.approx(found[2])


def test_short_time_goes_to_the_last_layers(monkeypatch):
    monkeypatch.setattr(refine, "FEW_NEURONS", 0)
    _, host, box, _, preactivations = case(0, batch=1)
    places = [node.inputs[0].name for node in Backward(host).relus]
    assert len(places) > 1
    late = refine._too_many(host, box, preactivations, Backward(host).relus, {}, 0, Deadline(0))
    assert late == len(places) - 1
    assert refine._too_many(host, box, preactivations, Backward(host).relus, {}, 0, Deadline(1e6)) == 0


def test_what_cannot_be_passed_backward_is_named():
    class Largest(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return torch.amax(self.left(x), dim=1, keepdim=True) + self.right(x)

    host = build(Largest(), torch.zeros(1, 3))
    with pytest.raises(UnsupportedOperatorError, match="BoundReduceMax"):
        box = Box.ball(torch.zeros(1, 3), 1.0)
        Backward(host).bound(box, {}, torch.ones(1, 1, 3))


def test_adam_climbs():
    value = torch.tensor([3.0, -2.0], requires_grad=True)
    unused = torch.ones(2, requires_grad=True)
    climber = Adam([value, unused], [0.1, 0.1])
    for _ in range(200):
        climber.climb(-(value**2).sum())
    assert float(value.detach().abs().max()) < 0.1
    assert unused.tolist() == [1.0, 1.0]
