"""torch's own layers and ONNX's less common operators, through the host's graph: sound, finite, no wider than IBP."""

from __future__ import annotations

import warnings
from functools import cache

import pytest
import torch
from torch import nn
from torch.nn import functional

from zonoplug.domain.input_sets import Box
from zonoplug.domain.lp_ball import LpBall
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa import compat
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, bound_set
from zonoplug.lirpa.perturbations import bounded_input
from zonoplug.lirpa.plain_torch import plain_torch
from zonoplug.testing import Function, check_contains_samples


class Cell(nn.Module):
    """A recurrent cell over the first steps of a sequence."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = None
        for step in range(3):
            state = self.cell(x[:, step], state)
        return state[0] if isinstance(state, tuple) else state


def linear(function, width=6, second=False):
    """A function of the results of one or two linear layers."""
    parts = {"a": nn.Linear(8, width), **({"b": nn.Linear(8, width)} if second else {})}
    return Function(lambda x, **layers: function(*(layer(x) for layer in layers.values())), **parts)


def attention(**options):
    weights = options.pop("weights", False)
    layer = nn.MultiheadAttention(8, 2, **options)
    return Function(lambda x, layer: layer(x, x, x, need_weights=weights)[0], layer=layer)


def recurrent(layer):
    return Function(lambda x, layer: layer(x)[0], layer=layer)


VECTOR, ROWS, IMAGE, VOLUME = (8,), (3, 8), (2, 6, 6), (2, 4, 4, 4)
MASK = torch.arange(8)[None] > 3
LAYERS = {
    "log-sum-exp": (ROWS, lambda: linear(lambda x: torch.logsumexp(x, 2))),
    "log-sum-exp over two axes": (ROWS, lambda: linear(lambda x: torch.logsumexp(x, (1, 2), keepdim=True))),
    "log-softmax": (VECTOR, lambda: linear(lambda x: torch.log_softmax(x, 1))),
    "L1 norm": (ROWS, lambda: linear(lambda x: x.norm(p=1, dim=2))),
    "L2 norm": (ROWS, lambda: linear(lambda x: x.norm(p=2, dim=2, keepdim=True))),
    "unit length": (ROWS, lambda: linear(lambda x: x / (0.1 + torch.linalg.vector_norm(x, dim=2, keepdim=True)))),
    "variance": (ROWS, lambda: linear(lambda x: x.var(2))),
    "group norm": ((4, 5, 5), lambda: nn.Sequential(nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4))),
    "instance norm": (IMAGE, lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.InstanceNorm2d(3, affine=True))),
    "instance norm 1d": ((2, 8), lambda: nn.InstanceNorm1d(2)),
    "RMS norm": (ROWS, lambda: nn.Sequential(nn.Linear(8, 6), nn.RMSNorm(6, eps=1e-4))),
    "multi-head attention": (ROWS, lambda: attention(batch_first=True)),
    "multi-head attention with weights": (ROWS, lambda: attention(batch_first=True, weights=True)),
    "encoder layer": (ROWS, lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)),
    "causal attention": (
        ROWS, lambda: Function(lambda x: functional.scaled_dot_product_attention(x, x, x, is_causal=True)),
    ),
    "LSTM": (ROWS, lambda: recurrent(nn.LSTM(8, 5, batch_first=True))),
    "LSTM of two layers, both ways": (
        (3, 4), lambda: recurrent(nn.LSTM(4, 3, num_layers=2, batch_first=True, bidirectional=True)),
    ),
    "GRU": (ROWS, lambda: recurrent(nn.GRU(8, 5, batch_first=True))),
    "LSTM cell": (ROWS, lambda: Cell(nn.LSTMCell(8, 5))),
    "GRU cell": (ROWS, lambda: Cell(nn.GRUCell(8, 5))),
    "gated linear unit": (VECTOR, lambda: linear(lambda x: functional.glu(x, 1))),
    "nearest upsampling": (IMAGE, lambda: nn.Upsample(scale_factor=2)),
    "bilinear upsampling": (IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "upsampling, corners aligned": (IMAGE, lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)),
    "resizing": (IMAGE, lambda: Function(lambda x: functional.interpolate(x, size=(9, 7)))),
    "resizing along one axis": (ROWS, lambda: nn.Upsample(size=11, mode="linear")),
    "transposed convolution 1d": (ROWS, lambda: nn.ConvTranspose1d(3, 2, 3, stride=2, padding=1)),
    "transposed convolution 2d": (IMAGE, lambda: nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1, output_padding=1)),
    "transposed convolution 3d": (VOLUME, lambda: nn.ConvTranspose3d(2, 3, 2, stride=2)),
    "constant pad": (IMAGE, lambda: nn.ConstantPad2d((1, 2, 0, 1), 0.5)),
    "reflected pad": (IMAGE, lambda: nn.ReflectionPad2d((1, 2, 0, 1))),
    "replicated pad": (IMAGE, lambda: nn.ReplicationPad2d((1, 2, 0, 1))),
    "circular pad": (IMAGE, lambda: nn.CircularPad2d(1)),
    "gather": (ROWS, lambda: Function(lambda x: x[:, :, [0, 2, 2]] + 0.0)),
    "gather of one": (ROWS, lambda: Function(lambda x: x[:, 1] + 0.0)),
    "where with a constant mask": (VECTOR, lambda: Function(lambda x: torch.where(MASK, x, -x) + 0.0)),
    "masked fill": (VECTOR, lambda: Function(lambda x: x.masked_fill(MASK, -1.0) + 0.0)),
    "largest along an axis": (ROWS, lambda: linear(lambda x: x.amax(2))),
    "largest and its place": (ROWS, lambda: linear(lambda x: x.max(1)[0])),
    "smallest and its place": (ROWS, lambda: linear(lambda x: x.min(1)[0])),
    "largest of two": (VECTOR, lambda: linear(torch.maximum, second=True)),
    "smallest of two": (VECTOR, lambda: linear(torch.minimum, second=True)),
    "max-pool 1d": (ROWS, lambda: nn.MaxPool1d(3, 2, 1)),
    "max-pool 2d, dilated, with a ragged end": (
        (2, 8, 8), lambda: nn.MaxPool2d(3, 2, 1, dilation=2, ceil_mode=True),
    ),
    "max-pool 3d": (VOLUME, lambda: nn.MaxPool3d(2, 1)),
    "adaptive max-pool": (IMAGE, lambda: nn.AdaptiveMaxPool2d(2)),
    "network with dropout": (VECTOR, lambda: nn.Sequential(nn.Linear(8, 6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 3))),
}  # fmt: skip
PLAIN = [
    name for name in LAYERS if any(word in name for word in ("attention", "encoder", "LSTM", "GRU", "norm", "res"))
]


@cache
def built(name):
    torch.manual_seed(0)
    shape, make = LAYERS[name]
    module = make().eval()
    return module, compat.build(module, torch.randn(1, *shape), module_class=ZonotopeModule), shape


def bounds_of(host, inputs, method="zonotope"):
    with torch.no_grad():
        return bound_set(host, inputs, BoundMethod.parse(method))[0]


def images(module, inputs, count=300):
    with torch.no_grad():
        points = inputs.sample(count)
        return module(points.flatten(0, 1)).unflatten(0, points.shape[:2])


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_bounded_soundly_and_no_wider_than_by_intervals(name):
    module, host, shape = built(name)
    center = torch.randn(3, *shape)
    for radius in (0.02, 0.3):
        box = Box.ball(center, radius)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            bounds = bounds_of(host, box)
        check_contains_samples(bounds, images(module, box))
        assert bool((bounds.lower.isfinite() & bounds.upper.isfinite()).all())
        try:
            intervals = bounds_of(host, box, "IBP")
        except NotImplementedError:  # the host counts the variance's size along the batch
            assert name == "variance"
            continue
        width, of_intervals = ((b.upper - b.lower).mean() for b in (bounds, intervals))
        assert float(width) <= float(of_intervals) * (1 + 1e-4) + 1e-5


@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_bounded_soundly_on_balls(name, p):
    module, host, shape = built(name)
    ball = LpBall(torch.randn(2, *shape), 0.3, p)
    check_contains_samples(bounds_of(host, ball), images(module, ball))


@pytest.mark.parametrize("name", PLAIN)
def test_what_stands_in_for_torchs_layer_computes_the_same(name):
    shape, make = LAYERS[name]
    module, x = make().eval(), torch.randn(4, *shape)
    with torch.no_grad():
        expected = module(x)
        with plain_torch():
            torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(module(x), expected, atol=0, rtol=0)


def test_masks_of_attention():
    layer, x = nn.MultiheadAttention(8, 2).eval(), torch.randn(3, 4, 8)
    for mask in (torch.ones(3, 3).triu(1).bool(), torch.randn(3, 3)):
        expected = layer(x, x, x, attn_mask=mask)
        with plain_torch():
            got = layer(x, x, x, attn_mask=mask)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_written_plainly_is_refused():
    x = torch.randn(2, 3, 8)
    with plain_torch():
        with pytest.raises(NotImplementedError, match="first state"):
            nn.LSTM(8, 5, batch_first=True)(x, (torch.zeros(1, 2, 5), torch.zeros(1, 2, 5)))
        with pytest.raises(NotImplementedError, match="padding mask"):
            nn.MultiheadAttention(8, 2, batch_first=True)(x, x, x, key_padding_mask=torch.zeros(2, 3).bool())


def test_an_operator_without_transformer_warns_once_by_name_and_can_be_refused(monkeypatch):
    monkeypatch.setattr("zonoplug.lirpa.forward.propagation.is_trusted", lambda node, method: True)
    module = nn.Sequential(nn.Linear(8, 6), Function(lambda x: x.prod(1, keepdim=True)), nn.Linear(1, 2)).eval()
    host = compat.build(module, torch.randn(1, 8), module_class=ZonotopeModule)
    box = Box.ball(torch.randn(3, 8), 0.1)
    with pytest.warns(UserWarning, match="BoundReduceProd is bounded by intervals") as caught:
        bounds = bounds_of(host, box)
    assert len([one for one in caught if "bounded by intervals" in str(one.message)]) == 1
    check_contains_samples(bounds, images(module, box))
    with pytest.raises(UnsupportedOperatorError, match=r"BoundReduceProd.*@transforms"):
        host.compute_bounds(x=(bounded_input(box),), method="zonotope", fallback="error")


def test_tracing_leaves_a_model_in_inference_mode():
    module = nn.Sequential(nn.Linear(8, 6), nn.Dropout(), nn.Linear(6, 2)).train()
    compat.build(module, torch.randn(1, 8))
    assert not module.training and not module[1].training
