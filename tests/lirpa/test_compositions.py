"""Operators of several perturbed values inside networks: attention, norms, gates, pooling, quotients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zonoplug.domain.input_sets import Box
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval, Zonotope
from zonoplug.errors import HostError, SettingError
from zonoplug.lirpa import compat
from zonoplug.lirpa.forward.interval_images import FROM_ZERO, INCREASING, OF_ONE, OF_SEVERAL, interval_image
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.forward.propagation import propagate
from zonoplug.lirpa.fusion.plan import plan_for
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, bound_box
from zonoplug.lirpa.operators.all import TRANSFORMERS, Call, NotApplicableError, transforms
from zonoplug.lirpa.perturbations import bounded_input
from zonoplug.testing import Function, check_contains_samples


class Attention(nn.Module):
    def __init__(self, size=8, heads=2):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))
        self.heads = heads

    def forward(self, x):
        tokens, size = (int(length) for length in x.shape[1:])
        q, k, v = (
            part(x).reshape(-1, tokens, self.heads, size // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(2, 3) / (size // self.heads) ** 0.5, dim=-1)
        return self.out((weights @ v).transpose(1, 2).reshape(-1, tokens, size))


class TransformerBlock(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.norms = Attention(), nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(8)])
        self.mixer = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))

    def forward(self, x):
        x = self.norms[0](x + self.attention(x))
        return self.norms[1](x + self.mixer(x)).mean(1)


class Recurrent(nn.Module):
    """Three steps of an LSTM or GRU cell, written out."""

    def __init__(self, gates):
        super().__init__()
        self.inputs = nn.ModuleList([nn.Linear(4, 5) for _ in range(gates)])
        self.states = nn.ModuleList([nn.Linear(5, 5) for _ in range(gates)])

    def gate(self, place, x, state):
        return self.inputs[place](x) + self.states[place](state)


class LSTM(Recurrent):
    def __init__(self):
        super().__init__(4)

    def forward(self, x):
        hidden = memory = 0 * x[:, 0, :1] + torch.zeros(1, 5)
        for step in range(3):
            keep, write, read = (torch.sigmoid(self.gate(g, x[:, step], hidden)) for g in range(3))
            memory = keep * memory + write * torch.tanh(self.gate(3, x[:, step], hidden))
            hidden = read * torch.tanh(memory)
        return hidden


class GRU(Recurrent):
    def __init__(self):
        super().__init__(3)

    def forward(self, x):
        hidden = torch.tanh(self.inputs[2](x[:, 0]))
        for step in range(1, 3):
            update, reset = (torch.sigmoid(self.gate(g, x[:, step], hidden)) for g in range(2))
            new = torch.tanh(self.inputs[2](x[:, step]) + reset * self.states[2](hidden))
            hidden = new + update * (hidden - new)
        return hidden


def normalised(x):
    centered = x - x.mean(-1, keepdim=True)
    return centered / torch.sqrt((centered * centered).mean(-1, keepdim=True) + 1e-3)


def pooling(pool, channels=4):
    rank = 1 if isinstance(pool, nn.MaxPool1d) else 2
    conv = (nn.Conv1d, nn.Conv2d)[rank - 1]
    return nn.Sequential(conv(1, channels, 3), nn.ReLU(), pool, conv(channels, 2, 2), nn.ReLU(), nn.Flatten())


def two(function):
    return Function(lambda x, a, b: function(a(x), b(x)), a=nn.Linear(8, 5), b=nn.Linear(8, 5))


VECTOR, SEQUENCE, IMAGE = (8,), (3, 8), (1, 8, 8)
BELOW = -torch.ones(1, 8)
MODULES = {
    "attention": (SEQUENCE, Attention),
    "transformer block": (SEQUENCE, TransformerBlock),
    "softmax classifier": (VECTOR, lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4), nn.Softmax(1))),
    "softmax along the second axis": (SEQUENCE, lambda: nn.Sequential(nn.Linear(8, 4), nn.Softmax(1))),
    "log-softmax": (VECTOR, lambda: nn.Sequential(nn.Linear(8, 4), nn.LogSoftmax(1))),
    "layer norm": (SEQUENCE, lambda: nn.LayerNorm(8)),
    "layer norm by hand": (SEQUENCE, lambda: Function(lambda x, a: normalised(a(x)), a=nn.Linear(8, 6))),
    "RMS norm": (SEQUENCE, lambda: Function(lambda x: x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-2))),
    "LSTM cell": ((3, 4), LSTM),
    "GRU cell": ((3, 4), GRU),
    "gated layer": (VECTOR, lambda: two(lambda a, b: a * torch.sigmoid(a) * b)),
    "product": (VECTOR, lambda: two(torch.mul)),
    "square": (VECTOR, lambda: Function(lambda x, a: a(x) * a(x), a=nn.Linear(8, 5))),
    "square of one value": (VECTOR, lambda: Function(lambda x, a: (lambda y: y * y)(a(x)), a=nn.Linear(8, 5))),
    "matrix product": (SEQUENCE, lambda: two(lambda a, b: a @ b.transpose(1, 2))),
    "quotient": (VECTOR, lambda: two(lambda a, b: a / (1.0 + b * b))),
    "constant numerator": (VECTOR, lambda: two(lambda a, b: 2.0 / (3.0 + torch.sigmoid(a)) - b)),
    "max-pool": (IMAGE, lambda: pooling(nn.MaxPool2d(2))),
    "overlapping padded max-pool": (IMAGE, lambda: pooling(nn.MaxPool2d(3, 2, 1))),
    "max-pool with a ragged end": (IMAGE, lambda: pooling(nn.MaxPool2d(4, ceil_mode=True))),
    "dilated max-pool": (IMAGE, lambda: pooling(nn.MaxPool2d(2, 2, dilation=2))),
    "max-pool along one axis": ((1, 12), lambda: pooling(nn.MaxPool1d(2))),
    "maximum": (VECTOR, lambda: two(torch.maximum)),
    "minimum": (VECTOR, lambda: two(torch.minimum)),
    "largest along an axis": (SEQUENCE, lambda: Function(lambda x, a: a(x).amax(2), a=nn.Linear(8, 6))),
    "smallest along an axis": (SEQUENCE, lambda: Function(lambda x, a: a(x).amin(1, True), a=nn.Linear(8, 6))),
    "where with a constant mask": (VECTOR, lambda: two(lambda a, b: torch.where(torch.arange(5)[None] > 2, a, b))),
    "masked with a constant": (
        VECTOR,
        lambda: Function(lambda x, a, c: torch.where(torch.arange(8)[None] > 2, a(x), c), a=nn.Linear(8, 8), c=BELOW),
    ),
    "nearest upsampling": ((2, 3, 3), lambda: nn.Sequential(nn.Conv2d(2, 2, 2), nn.Upsample(scale_factor=2))),
    "bilinear upsampling": (
        (2, 3, 3),
        lambda: nn.Sequential(nn.Conv2d(2, 2, 2), nn.Upsample(scale_factor=2, mode="bilinear")),
    ),
}  # fmt: skip


def built(name):
    shape, make = MODULES[name]
    torch.manual_seed(0)
    module = make().eval()
    try:
        return module, compat.build(module, torch.randn(1, *shape), module_class=ZonotopeModule), shape
    except (HostError, RuntimeError) as error:
        pytest.skip(f"auto_LiRPA {compat.HOST_VERSION} cannot build it: {error}")


def forward_propagation(host, box, final=None):
    source = SymbolSource()
    inputs = {host.input_name[0]: box.to_zonotope(source, "input")}
    with torch.no_grad():
        return propagate(host, inputs, source, PropagationOptions(fallback="error"), final=final)


@pytest.mark.parametrize("radius", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("name", MODULES)
def test_bounds_contain_every_point_and_are_no_wider_than_intervals(name, radius):
    module, host, shape = built(name)
    box = Box.ball(torch.randn(3, *shape), radius)
    bounds = forward_propagation(host, box).bounds
    with torch.no_grad():
        samples = module(box.sample(400).flatten(0, 1)).unflatten(0, (400, 3))
    check_contains_samples(bounds, samples)
    try:
        intervals, _ = bound_box(host, box, BoundMethod.parse("IBP"))
    except Exception as error:  # the host's own intervals fail on some graphs, in many ways
        pytest.skip(f"auto_LiRPA {compat.HOST_VERSION} cannot bound it by intervals: {error}")
    width, of_intervals = (float((b.upper - b.lower).mean()) for b in (bounds, intervals))
    assert width <= of_intervals * (1 + 1e-3) + 1e-5


@pytest.mark.parametrize("name", MODULES)
def test_every_value_on_the_way_stays_within_its_bounds(name):
    _, host, shape = built(name)
    box = Box.ball(torch.randn(1, *shape), 0.2)
    with torch.no_grad():
        host(box.sample(50).flatten(0, 1))
    values = {node.name: node.forward_value for node in plan_for(host, host.final_name).order if node.from_input}
    for name, value in values.items():
        if value.shape[0] == 50:
            check_contains_samples(forward_propagation(host, box, name).bounds, value.unsqueeze(1))


@pytest.mark.parametrize("name", ["attention", "LSTM cell", "overlapping padded max-pool", "layer norm", "quotient"])
def test_elements_of_a_batch_are_bounded_as_if_alone(name):
    _, host, shape = built(name)
    box = Box.ball(torch.randn(3, *shape), 0.1)
    together = forward_propagation(host, box).bounds
    for element in range(3):
        part = slice(element, element + 1)
        alone = forward_propagation(host, Box(box.lower[part], box.upper[part])).bounds
        torch.testing.assert_close(together.lower[part], alone.lower, atol=2e-4, rtol=2e-4)
        torch.testing.assert_close(together.upper[part], alone.upper, atol=2e-4, rtol=2e-4)


def test_attention_is_far_tighter_than_intervals():
    _, host, shape = built("attention")
    box = Box.ball(torch.randn(3, *shape), 0.05)
    intervals, _ = bound_box(host, box, BoundMethod.parse("IBP"))
    width, of_intervals = (
        float((b.upper - b.lower).mean()) for b in (forward_propagation(host, box).bounds, intervals)
    )
    assert width < 0.3 * of_intervals


def test_a_variance_is_known_not_to_be_negative():
    _, host, shape = built("layer norm by hand")
    propagation = forward_propagation(host, Box.ball(torch.zeros(1, *shape), 5.0))
    assert bool(propagation.bounds.lower.isfinite().all() and propagation.bounds.upper.isfinite().all())


def test_a_transformer_serves_what_the_one_before_does_not():
    def first(call: Call) -> Zonotope:
        if len(call.operands) > 1:
            raise NotApplicableError
        return call.zonotope

    try:
        transforms("BoundMade")(first)
        transforms("BoundMade", kind="composition", after=True)(lambda call: call.operands[1])
        entry = TRANSFORMERS["BoundMade"]
        assert entry.kind == "exact" and entry.otherwise.kind == "composition"
        transforms("BoundMade", kind="relaxation")(first)
        assert TRANSFORMERS["BoundMade"].otherwise is None
    finally:
        del TRANSFORMERS["BoundMade"]


def test_operators_called_monotone_are_in_the_table():
    assert {"BoundMul", "BoundSqrt"} <= OF_ONE | OF_SEVERAL | INCREASING | FROM_ZERO <= set(TRANSFORMERS)


def test_an_even_power_of_an_interval_around_zero_starts_at_zero():
    class BoundSqr:
        def forward(self, x):
            return x * x

    hull = Interval(torch.tensor([[-2.0, 1.0]]), torch.tensor([[1.0, 3.0]]))
    image = interval_image(BoundSqr(), [Zonotope(torch.zeros(1, 2))], [hull])
    torch.testing.assert_close(image.lower, torch.tensor([[0.0, 1.0]]))
    torch.testing.assert_close(image.upper, torch.tensor([[4.0, 9.0]]))


@pytest.mark.parametrize("name", ["attention", "gated layer", "quotient", "layer norm by hand"])
def test_products_may_be_precise_or_fast(name):
    module, host, shape = built(name)
    box = Box.ball(torch.randn(2, *shape), 0.2)
    widths = {}
    for products in ("auto", "precise", "fast"):
        source = SymbolSource()
        options = PropagationOptions(fallback="error", products=products)
        with torch.no_grad():
            bounds = propagate(host, {host.input_name[0]: box.to_zonotope(source, "input")}, source, options).bounds
            check_contains_samples(bounds, module(box.sample(200).flatten(0, 1)).unflatten(0, (200, 2)))
        widths[products] = float((bounds.upper - bounds.lower).mean())
    assert widths["precise"] < widths["fast"]
    assert widths["auto"] == widths["precise"]  # these are small


def test_compute_bounds_takes_the_form_of_products_and_the_constraint_of_softmax():
    module, host, shape = built("attention")
    box = Box.ball(torch.randn(2, *shape), 0.3)
    x = (bounded_input(box),)
    widths = {}
    with torch.no_grad():
        samples = module(box.sample(200).flatten(0, 1)).unflatten(0, (200, 2))
        for options in ({}, {"products": "fast"}, {"sum_to_one": True}):
            bounds = Interval(*host.compute_bounds(x=x, method="zonotope", **options))
            check_contains_samples(bounds, samples)
            widths[str(options)] = float((bounds.upper - bounds.lower).mean())
    plain, fast, summed = widths.values()
    assert summed < plain < fast
    with pytest.raises(SettingError, match="Known: auto, precise, fast"):
        host.compute_bounds(x=x, method="zonotope", products="quick")
