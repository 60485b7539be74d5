"""Each activation behind a linear layer, against sampled points: zonotopes, and the bounds we give the host."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from zonoplug.domain.input_sets import Box
from zonoplug.domain.symbols import SymbolSource
from zonoplug.errors import HostError
from zonoplug.lirpa import compat
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.forward.propagation import propagate
from zonoplug.lirpa.host_operators.activations import Activation, custom_activations
from zonoplug.lirpa.module import ZonotopeModule
from zonoplug.lirpa.operators.all import TRANSFORMERS, Call, entry_for
from zonoplug.testing import Function, check_contains_samples

WIDTH = 8


def prelu(channels, weight):
    module = nn.PReLU(channels)
    module.weight.data = torch.tensor(weight).expand(channels).clone()
    return module


POSITIVE = nn.Sequential(nn.Softplus(), Function(lambda x: x + 0.25))
NEGATIVE = nn.Sequential(nn.Softplus(), Function(lambda x: -x - 0.25))
LIMITS = torch.linspace(-1, 1, WIDTH)

# One operator each: a relaxation, never an interval.
SINGLE = {
    "relu": nn.ReLU, "leaky relu": lambda: nn.LeakyReLU(0.3), "prelu": nn.PReLU, "abs": lambda: Function(torch.abs),
    "prelu by channel": lambda: prelu(WIDTH, [0.1, 0.2, 0.3, -0.4, 0.5, 1.0, 1.5, -2.0]),
    "elu": nn.ELU, "elu of 2": lambda: nn.ELU(2.0), "celu of 0.5": lambda: nn.CELU(0.5), "selu": nn.SELU,
    "softplus": nn.Softplus, "softplus of 3": lambda: nn.Softplus(3.0), "hard sigmoid": nn.Hardsigmoid,
    "relu6": nn.ReLU6, "hardtanh": lambda: nn.Hardtanh(-0.5, 0.75),
    "clamp": lambda: Function(lambda x: x.clamp(-0.3, 0.4)),
    "clamp from below": lambda: Function(lambda x: x.clamp(min=-0.3)),
    "clamp from above": lambda: Function(lambda x: x.clamp(max=0.3)),
    "maximum": lambda: Function(lambda x: torch.maximum(x, LIMITS.to(x))),
    "minimum": lambda: Function(lambda x: torch.minimum(x, LIMITS.to(x))),
    "sign": lambda: Function(torch.sign), "floor": lambda: Function(torch.floor), "ceil": lambda: Function(torch.ceil),
    "round": lambda: Function(torch.round),
    "heaviside": lambda: Function(lambda x: torch.heaviside(x, torch.tensor([0.5]).to(x))),
    "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "erf": lambda: Function(torch.erf), "arctan": lambda: Function(torch.atan),
    "exp": lambda: Function(torch.exp), "sin": lambda: Function(torch.sin), "cos": lambda: Function(torch.cos),
    "log": lambda: nn.Sequential(POSITIVE, Function(torch.log)),
    "sqrt": lambda: nn.Sequential(POSITIVE, Function(torch.sqrt)),
    "rsqrt": lambda: nn.Sequential(POSITIVE, Function(torch.rsqrt)),
    "reciprocal": lambda: nn.Sequential(POSITIVE, Function(torch.reciprocal)),
    "power 2": lambda: Function(lambda x: x**2), "power 3": lambda: Function(lambda x: x**3),
    "power 4": lambda: Function(lambda x: x**4),
    "square root as power": lambda: nn.Sequential(POSITIVE, Function(lambda x: x**0.5)),
    "power -1": lambda: nn.Sequential(POSITIVE, Function(lambda x: x**-1)),
    "power -2": lambda: nn.Sequential(POSITIVE, Function(lambda x: x**-2)),
    "power -3 left of 0": lambda: nn.Sequential(NEGATIVE, Function(lambda x: x**-3)),
}  # fmt: skip
# Several operators each, among them products.
COMPOSED = {
    "gelu": nn.GELU, "gelu by tanh": lambda: nn.GELU(approximate="tanh"), "silu": nn.SiLU, "mish": nn.Mish,
    "hard swish": nn.Hardswish, "square": lambda: Function(torch.square), "log sigmoid": nn.LogSigmoid,
    "softsign": nn.Softsign, "tanhshrink": nn.Tanhshrink,
}  # fmt: skip
LACKED = ["prelu", "prelu by channel", "elu", "elu of 2", "celu of 0.5", "selu", "hard sigmoid", "relu6", "hardtanh"]
LACKED += ["clamp", "clamp from below", "clamp from above", "floor", "ceil", "round", "sign", "erf"]


def built(activation, dtype, gain=1.0):
    """A linear layer and the activation, and the host's graph of them."""
    linear = nn.Linear(WIDTH, WIDTH)
    linear.weight.data *= gain
    module = nn.Sequential(linear, activation).to(dtype).eval()
    try:
        host = compat.build(module, torch.rand(1, WIDTH, dtype=dtype), module_class=ZonotopeModule)
    except HostError as error:
        pytest.skip(f"the host cannot build it: {error}")
    return module, host


def samples(module, box, count=400):
    with torch.no_grad():
        points = torch.cat([box.sample(count), box.lower[None], box.upper[None]])
        return module(points.flatten(0, 1)).unflatten(0, points.shape[:2])


def forward_propagation(host, box, **options):
    source = SymbolSource()
    zonotope = box.to_zonotope(source, "input")
    return propagate(host, {host.input_name[0]: zonotope}, source, PropagationOptions(**options)).output


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("radius", [1e-3, 0.2, 2.0])
@pytest.mark.parametrize("name", SINGLE)
def test_an_activation_holds_sampled_points(name, radius, dtype):
    module, host = built(SINGLE[name](), dtype)
    box = Box.ball(torch.randn(3, WIDTH, dtype=dtype), radius)
    with torch.no_grad():
        hull = forward_propagation(host, box, fallback="error").interval_hull()
    if radius < 1:
        assert bool(hull.lower.isfinite().all() & hull.upper.isfinite().all())
    known = torch.where(hull.lower.isnan() | hull.upper.isnan(), 0, 1)
    filled = type(hull)(hull.lower.nan_to_num(nan=-torch.inf), hull.upper.nan_to_num(nan=torch.inf))
    check_contains_samples(filled, samples(module, box))
    assert bool(known.any())


@pytest.mark.parametrize("radius", [1e-3, 0.2, 2.0])
@pytest.mark.parametrize("name", COMPOSED)
def test_a_composed_activation_holds_sampled_points(name, radius):
    module, host = built(COMPOSED[name](), torch.float32)
    box = Box.ball(torch.randn(3, WIDTH), radius)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hull = forward_propagation(host, box).interval_hull()
    check_contains_samples(hull, samples(module, box))


@pytest.mark.parametrize("method", ["IBP", "CROWN"])
@pytest.mark.parametrize("name", LACKED)
def test_the_host_bounds_what_it_lacked(name, method):
    module, host = built(SINGLE[name](), torch.float32)
    center = torch.randn(3, WIDTH)
    for radius in (1e-3, 0.2, 2.0):
        box = Box.ball(center, radius)
        perturbed = compat.BoundedTensor(
            center, compat.PerturbationLpNorm(norm=float("inf"), x_L=box.lower, x_U=box.upper)
        )
        with torch.no_grad(), compat.quietly():
            lower, upper = host.compute_bounds(x=(perturbed,), method=method)
        points = samples(module, box)
        assert bool((points >= lower - 1e-4).all() & (points <= upper + 1e-4).all())


@pytest.mark.parametrize("name", ["elu", "selu", "erf", "hard sigmoid", "prelu"])
def test_backward_bounds_through_a_lacked_activation_keep_a_slope(name):
    _, host = built(nn.Sequential(SINGLE[name](), nn.Linear(WIDTH, 3)), torch.float32)
    center = torch.randn(2, WIDTH)
    perturbed = compat.BoundedTensor(center, compat.PerturbationLpNorm(norm=float("inf"), eps=0.05))
    with torch.no_grad(), compat.quietly():
        widths = []
        for method in ("IBP", "CROWN"):
            lower, upper = host.compute_bounds(x=(perturbed,), method=method)
            widths.append(float((upper - lower).mean()))
    assert widths[1] < 0.9 * widths[0]


def test_every_custom_activation_has_a_transformer():
    for name, made in custom_activations().items():
        if isinstance(made, type):
            assert made.__name__ in TRANSFORMERS, name
            assert issubclass(made, Activation)


@pytest.mark.parametrize("name", ["sigmoid", "exp", "sign", "floor", "elu of 2", "clamp", "power 3", "heaviside"])
def test_a_slope_may_be_given_to_any_activation(name):
    module, host = built(SINGLE[name](), torch.float32)
    box = Box.ball(torch.randn(3, WIDTH), 0.4)
    final = host[host.final_name]
    source = SymbolSource()
    zonotope = box.to_zonotope(source, "input")
    with torch.no_grad():
        hidden = propagate(
            host, {host.input_name[0]: zonotope}, source, PropagationOptions(), final=final.inputs[0].name
        ).output
        hull = hidden.interval_hull()
        constants = [node.forward(*[parent.forward() for parent in node.inputs]) for node in final.inputs[1:]]
        preactivations = [hull, *[None] * len(constants)]
        for slope in (-1.0, 0.0, 0.4):
            call = Call(final, [hidden, *constants], source, preactivations, torch.full_like(hull.lower, slope))
            image = entry_for(final).transformer(call)
            check_contains_samples(image.interval_hull(), samples(module, box))


def test_an_operator_that_nobody_has_is_named():
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Threshold(0.1, 20.0))
    with pytest.raises(HostError, match="has no class for aten::threshold"):
        compat.build(module, torch.rand(1, WIDTH), module_class=ZonotopeModule)
