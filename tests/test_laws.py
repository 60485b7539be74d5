"""The public laws over every registered relaxation and every operator of the table: a new one is tested at once."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from zonoplug.domain.affine_image import AffineImage
from zonoplug.domain.input_sets import Box, InputSet
from zonoplug.domain.lp_ball import LpBall
from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.operators.all import TRANSFORMERS
from zonoplug.relaxations import RELAXATIONS, Relaxation
from zonoplug.testing import (
    Forked,
    Function,
    check_gradient_reaches_slopes,
    check_input_set,
    check_operator,
    check_relaxation_is_consistent,
    check_slope_gradient,
)
from zonoplug.verify.branching.mixed import MIXED_RULES, MixedFacts
from zonoplug.verify.subdomains.mixed import Margins, MixedSubdomains, pieces_of

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
RULES = pytest.mark.parametrize("name", RELAXATIONS.names())
NUMBERS = st.one_of(
    st.floats(-10, 10, width=32),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
    st.sampled_from([0.0, -0.0, 1e-45, -1e-45, 1e-38, 1e-30, -1e-30, 1e30, -1e30, 3e38, -3e38, 88.0, -104.0]),
)


@RULES
@DTYPES
@settings(max_examples=15)
@given(pairs=st.lists(st.tuples(NUMBERS, NUMBERS, st.sampled_from(["pair", "point", "ulp"])), min_size=6, max_size=6))
def test_bands_hold_the_bands_of_their_points(name, dtype, pairs):
    """Huge, tiny, negative, one-sided and single points, and intervals that are one unit in the last place wide."""
    ends = torch.tensor([pair[:2] for pair in pairs], dtype=dtype)
    lower, upper = ends.amin(1), ends.amax(1)
    next_up = torch.nextafter(lower, torch.full_like(lower, math.inf)).clamp(max=torch.finfo(dtype).max)
    kinds = [kind for *_, kind in pairs]
    point = torch.tensor([kind == "point" for kind in kinds])
    upper = torch.where(torch.tensor([kind == "ulp" for kind in kinds]), next_up, torch.where(point, lower, upper))
    check_relaxation_is_consistent(RELAXATIONS.get(name), lower, upper)


@RULES
@DTYPES
def test_a_slope_that_is_given_has_a_gradient(name, dtype):
    lower, upper = torch.tensor([-0.7, -3.5, 0.4], dtype=dtype), torch.tensor([1.3, -0.4, 3.4], dtype=dtype)
    check_slope_gradient(RELAXATIONS.get(name), lower, upper)


def test_the_law_notices_a_band_that_forgets_an_end():
    def narrow(lower, upper):
        slope, offset, radius = RELAXATIONS.get("tanh")(lower, upper)
        return Relaxation(slope, offset, 0.9 * radius)

    lower, upper = torch.tensor([-1.0, 0.5]), torch.tensor([2.0, 3.0])
    check_relaxation_is_consistent(RELAXATIONS.get("tanh"), lower, upper)
    with pytest.raises(AssertionError, match="leaves its band"):
        check_relaxation_is_consistent(narrow, lower, upper)


def test_the_law_notices_a_claim_where_nothing_is_known():
    def bold(lower, upper):
        slope, offset, radius = RELAXATIONS.get("sqrt")(lower.clamp(min=0), upper)
        return (
            RELAXATIONS.get("sqrt")(lower, upper) if bool((lower == upper).all()) else Relaxation(slope, offset, radius)
        )

    with pytest.raises(AssertionError, match="not known"):
        check_relaxation_is_consistent(bold, torch.tensor([-1.0]), torch.tensor([2.0]))


def of(function):
    return lambda: Function(function)


def halves(function):
    """A function of two perturbed operands."""
    return of(lambda x: function(x[:, :4], x[:, 4:] + 0.3 * x[:, :4]))


def constant(*shape):
    return torch.linspace(0.5, 1.5, math.prod(shape)).reshape(shape)


def joined(x):
    return torch.cat([x, 2 * x], 1)


VECTOR, ROWS, IMAGE = (8,), (3, 4), (2, 6, 6)
EXAMPLES = {
    "BoundAbs": (VECTOR, of(lambda x: torch.abs(x - 1))),
    "BoundAdd": (VECTOR, of(lambda x: x + x.flip(1))),
    "BoundAtan": (VECTOR, of(torch.atan)),
    "BoundAveragePool": (IMAGE, lambda: nn.AvgPool2d(2)),
    "BoundBatchNormalization": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))),
    "BoundCeil": (VECTOR, of(torch.ceil)),
    "BoundCelu": (VECTOR, lambda: nn.Sequential(Function(lambda x: x - 1), nn.CELU(0.5))),
    "BoundClip": (VECTOR, of(lambda x: x.clamp(0.75, 1.125))),  # the exporter keeps float32 of its limits
    "BoundConcat": (VECTOR, of(joined)),
    "BoundConv": (IMAGE, lambda: nn.Conv2d(2, 3, 3, stride=2, padding=1)),
    "BoundConvTranspose": (IMAGE, lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1)),
    "BoundCos": (VECTOR, of(torch.cos)),
    "BoundDiv": (VECTOR, halves(lambda x, y: x / y)),
    "BoundElu": (VECTOR, lambda: nn.Sequential(Function(lambda x: x - 1), nn.ELU())),
    "BoundErf": (VECTOR, of(torch.erf)),
    "BoundExp": (VECTOR, of(torch.exp)),
    "BoundExpand": (ROWS, of(lambda x: x[:, :1].expand(-1, 3, -1) + 0.0)),
    "BoundFlatten": (IMAGE, lambda: nn.Flatten()),
    "BoundFloor": (VECTOR, of(torch.floor)),
    "BoundGather": (ROWS, of(lambda x: x[:, :, [0, 2, 2]] + 0.0)),
    "BoundGelu": (VECTOR, nn.GELU),
    "BoundGeluTanh": (VECTOR, lambda: nn.GELU(approximate="tanh")),
    "BoundGlobalAveragePool": (IMAGE, lambda: nn.AdaptiveAvgPool2d(1)),
    "BoundHardSigmoid": (VECTOR, of(lambda x: functional.hardsigmoid(4 * x - 2))),
    "BoundHardSwish": (VECTOR, nn.Hardswish),
    "BoundLeakyRelu": (VECTOR, of(lambda x: functional.leaky_relu(x - 1, 0.1))),
    "BoundLinear": (VECTOR, lambda: nn.Linear(8, 5)),
    "BoundLog": (VECTOR, lambda: nn.Sequential(nn.Softplus(), Function(torch.log))),
    "BoundLogSigmoid": (VECTOR, nn.LogSigmoid),
    "BoundLogSoftmax": (VECTOR, lambda: nn.LogSoftmax(1)),
    "BoundMatMul": (ROWS, of(lambda x: x @ (x * x).transpose(1, 2))),
    "BoundMax": (VECTOR, halves(torch.maximum)),
    "BoundMaxPool": (IMAGE, lambda: nn.MaxPool2d(3, 2, 1)),
    "BoundMin": (VECTOR, halves(torch.minimum)),
    "BoundMish": (VECTOR, nn.Mish),
    "BoundMul": (VECTOR, halves(torch.mul)),
    "BoundNeg": (VECTOR, of(lambda x: -x)),
    "BoundNormalization": (VECTOR, lambda: nn.LayerNorm(8)),
    "BoundPRelu": (VECTOR, lambda: nn.Sequential(Function(lambda x: x - 1), nn.PReLU())),
    "BoundPad": (IMAGE, lambda: nn.ReflectionPad2d(1)),
    "BoundPow": (VECTOR, of(lambda x: x**3)),
    "BoundReciprocal": (VECTOR, of(torch.reciprocal)),
    "BoundReduceL1": (ROWS, of(lambda x: (x - 1).norm(p=1, dim=2))),
    "BoundReduceL2": (ROWS, of(lambda x: x.norm(p=2, dim=2))),
    "BoundReduceLogSumExp": (ROWS, of(lambda x: torch.logsumexp(x, 2))),
    "BoundReduceMax": (ROWS, of(lambda x: x.amax(2))),
    "BoundReduceMean": (ROWS, of(lambda x: x.mean(2))),
    "BoundReduceMin": (ROWS, of(lambda x: x.amin(2))),
    "BoundReduceSum": (ROWS, of(lambda x: x.sum(2))),
    "BoundRelu": (VECTOR, of(lambda x: torch.relu(x - 1))),
    "BoundReshape": (IMAGE, of(lambda x: x.reshape(-1, 4, 18) + 0.0)),
    "BoundResize": (IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "BoundRound": (VECTOR, of(torch.round)),
    "BoundSelu": (VECTOR, lambda: nn.Sequential(Function(lambda x: x - 1), nn.SELU())),
    "BoundSigmoid": (VECTOR, nn.Sigmoid),
    "BoundSign": (VECTOR, of(lambda x: torch.sign(x - 1))),
    "BoundSilu": (VECTOR, nn.SiLU),
    "BoundSin": (VECTOR, of(torch.sin)),
    "BoundSlice": (IMAGE, of(lambda x: x[:, 1:, ::2, 1:4] + 0.0)),
    "BoundSoftmax": (VECTOR, lambda: nn.Softmax(1)),
    "BoundSoftplus": (VECTOR, nn.Softplus),
    "BoundSplit": (VECTOR, of(lambda x: (lambda a, b: a - 2 * b)(*torch.split(x, [4, 4], 1)))),
    "BoundSqr": (VECTOR, of(lambda x: x * x)),
    "BoundSqrt": (VECTOR, of(torch.sqrt)),
    "BoundSqueeze": (ROWS, of(lambda x: x[:, :1].squeeze(1) + 0.0)),
    "BoundSub": (VECTOR, of(lambda x: 1 - x)),
    "BoundTanh": (VECTOR, nn.Tanh),
    "BoundTile": (VECTOR, of(lambda x: x.repeat(1, 2))),
    "BoundTranspose": (ROWS, of(lambda x: x.transpose(1, 2) + 0.0)),
    "BoundUnsqueeze": (VECTOR, of(lambda x: x.unsqueeze(1) + 0.0)),
    "BoundWhere": (VECTOR, of(lambda x: torch.where(torch.arange(8)[None] > 3, x, -x))),
}  # fmt: skip
# No module of torch gives the host these: it makes them itself, or reads them from other exporters.
UNREACHED = {"BoundIdentity", "BoundCast", "BoundDropout", "BoundHardTanh", "BoundSignMerge"}
UNREACHED |= {"BoundATenHeaviside", "BoundATenUnflatten"}
OTHERWISE_WRITTEN = {  # an operator that one host writes in others
    "BoundDiv", "BoundSqr", "BoundTile", "BoundLogSoftmax", "BoundCelu", "BoundFlatten", "BoundSqueeze", "BoundSlice",
    "BoundGather", "BoundExpand", "BoundSelu",
}  # fmt: skip
STAIRS = {"BoundCeil", "BoundFloor", "BoundRound", "BoundSign"}


def example(name, dtype):
    shape, make = EXAMPLES[name]
    torch.manual_seed(0)
    return make().to(dtype).eval(), constant(1, *shape).to(dtype)


@DTYPES
@pytest.mark.parametrize("name", EXAMPLES)
def test_operators_keep_the_laws(name, dtype):
    module, center = example(name, dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*bounded by intervals")
        met = check_operator(module, center, 0.2)
    assert name in met or name in OTHERWISE_WRITTEN


@pytest.mark.parametrize("name", EXAMPLES)
def test_gradients_flow_through_operators(name):
    module, center = example(name, torch.float64)
    if name not in STAIRS:
        check_gradient_reaches_slopes(module, center, 0.1)


def test_every_registered_operator_has_an_example():
    """Third parties' entries, which other tests may have filed, aside."""
    ours = {
        name
        for name, entry in TRANSFORMERS.items()
        if getattr(entry.transformer, "func", entry.transformer).__module__.startswith("zonoplug.")
    }
    assert ours <= {*EXAMPLES, *UNREACHED}, ours - {*EXAMPLES, *UNREACHED}


def test_the_law_of_operators_notices_branches_that_are_not_aligned(monkeypatch):
    module, center = example("BoundTanh", torch.float64)
    check_operator(module, center, 0.2)
    entry = TRANSFORMERS["BoundTanh"]

    def narrow(call):
        image = entry.transformer(call)
        return image.scale(torch.full_like(image.center[:1], 0.8))

    monkeypatch.setitem(TRANSFORMERS, "BoundTanh", type(entry)(narrow, "relaxation"))
    with pytest.raises(AssertionError, match="outside its bounds"):
        check_operator(module, center, 0.2)


def test_a_fork_meets_again():
    x = torch.randn(5, 3)
    torch.testing.assert_close(Forked(nn.Identity(), torch.ones(1, 3))(x), x - 0.5 * (0.9 * x + 0.1))


# Input sets


def center_of(*shape, dtype=torch.float64):
    return torch.linspace(-1, 1, math.prod(shape), dtype=dtype).reshape(shape).sin()


def image(dtype, box, noise):
    around = center_of(2, 6, dtype=dtype)
    return AffineImage(around, center_of(2, 3, 6, dtype=dtype), around.abs() * box, around.abs() * noise)


SETS = {
    "box": (Box, lambda dtype: Box.ball(center_of(2, 2, 3, dtype=dtype), 0.3)),
    "box of one point": (Box, lambda dtype: Box.ball(center_of(2, 6, dtype=dtype), 0.0)),
    "box far away": (Box, lambda dtype: Box.ball(center_of(2, 6, dtype=dtype) + 1e6, 0.5)),
    "l1 ball": (LpBall, lambda dtype: LpBall(center_of(2, 6, dtype=dtype), 0.3, 1)),
    "l2 ball with limits": (LpBall, lambda dtype: LpBall(center_of(2, 6, dtype=dtype).sigmoid(), 0.7, 2, 0.0, 1.0)),
    "l7 ball": (LpBall, lambda dtype: LpBall(center_of(2, 6, dtype=dtype), center_of(2, 6, dtype=dtype).abs(), 7.0)),
    "affine image": (AffineImage, lambda dtype: image(dtype, 0.0, 0.0)),
    "affine image with box and noise": (AffineImage, lambda dtype: image(dtype, 0.5, 0.2)),
}


@DTYPES
@pytest.mark.parametrize("name", SETS)
def test_input_sets_keep_the_law(name, dtype):
    check_input_set(SETS[name][1](dtype), generator=torch.Generator().manual_seed(0))


def test_every_kind_of_input_set_is_tried():
    ours = {kind.__name__ for kind in InputSet.__subclasses__() if kind.__module__.startswith("zonoplug.")}
    assert ours == {kind.__name__ for kind, _ in SETS.values()}


def test_the_law_notices_samples_outside_and_a_zonotope_that_is_too_small():
    class Far(Box):
        def sample(self, count, generator=None):
            return super().sample(count, generator) + 0.01

    class Small(Box):
        def to_zonotope(self, source, node):
            return Box.ball((self.lower + self.upper) / 2, 0.2).to_zonotope(source, node)

    class Narrow(Small):
        def interval_hull(self):
            return Interval(self.lower + 0.1, self.upper - 0.1)

    for kind, said in ((Far, "outside the hull"), (Small, "short of"), (Narrow, "outside the hull")):
        with pytest.raises(AssertionError, match=said):
            check_input_set(kind.ball(torch.zeros(1, 3), 0.3))


# Rules that choose among neurons and inputs


def mixed_facts(seed):
    """Random subdomains, in which some neurons are stable and some inputs have no room."""
    random = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(*size, generator=random)

    n, neurons, inputs = 6, 5, 4
    lower, upper = -normal(n, neurons).abs() - 0.01, normal(n, neurons).abs() + 0.01
    sign = torch.zeros(n, neurons)
    sign[::2, 0], lower[::2, 0] = 1.0, 0.0
    sign[:, 1], upper[:, 1] = -1.0, 0.0
    low = normal(n, inputs)
    high = low + normal(n, inputs).abs() + 0.01
    high[:, 2] = low[:, 2]
    part = MixedSubdomains(
        lower, upper, sign, torch.rand(n, neurons, generator=random), torch.zeros(n, neurons), normal(n),
        low, high, torch.zeros(n, 1), torch.ones(n, dtype=torch.float64), torch.zeros(n, dtype=torch.int64),
    )  # fmt: skip
    found = Margins(normal(n), normal(n, inputs), normal(n), low, normal(n, neurons), low, low)
    return MixedFacts(part, found, normal(n, neurons))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", MIXED_RULES.names())
def test_mixed_rules_choose_what_can_be_split(name, seed):
    """A score below 0 where nothing can be split, at least 0 somewhere; and the pieces are smaller and cover it."""
    facts = mixed_facts(seed)
    part = facts.part
    scores = MIXED_RULES.get(name)(facts)
    assert scores.shape == (6, 5 + 4) and bool(scores.isfinite().all())
    splittable = torch.cat([part.unstable_neurons, part.box_upper > part.box_lower], dim=1)
    assert bool((scores[~splittable] < 0).all()) and bool((scores.amax(dim=1) >= 0).all())
    places = scores.argmax(dim=1)
    above, below = pieces_of(part, places)
    assert not bool((above.sign == below.sign).all(dim=1)[places < 5].any())
    assert torch.equal(torch.minimum(above.box_lower, below.box_lower), part.box_lower)
    assert torch.equal(torch.maximum(above.box_upper, below.box_upper), part.box_upper)
    cut = above.box_lower > part.box_lower
    assert torch.equal(cut.sum(dim=1), (places >= 5).long()) and torch.equal(above.box_lower[cut], below.box_upper[cut])
    assert torch.equal(above.share + below.share, part.share)
