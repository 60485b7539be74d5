"""Which of the host's bounds are believed: the list, who asks for it, and networks on which hosts were seen to err."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from random import Random

import host_laws as script
import pytest
import torch
from torch import nn

from zonoplug.domain.input_sets import Box
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.lirpa import compat, trust
from zonoplug.lirpa.methods import HOST_METHODS, BoundMethod
from zonoplug.lirpa.module import bound_set, build
from zonoplug.report.compare import comparison_table
from zonoplug.testing import Function
from zonoplug.testing.host_bounds import Interval, escape, reached
from zonoplug.testing.image_networks import convolutions_without_activations, images_through

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
METHODS = [*HOST_METHODS, "zonotope", "zonotope+crown", "zonotope+alpha-crown", "zonotope+full-crown"]


def graph_of(module, shape):
    return build(module.eval(), torch.zeros(1, *shape))


def bounds_of(graph, box, method, rows=None):
    parsed = BoundMethod.parse(method)
    with torch.enable_grad() if parsed.needs_gradients else torch.no_grad(), compat.quietly():
        return bound_set(graph, box, parsed, rows)[0]


def holds(module, shape, box, methods=METHODS, rows=None):
    """Each method's bounds contain what is reached, or the method is not trusted. Returns the trusted methods."""
    graph = graph_of(module, shape)
    truth = reached(module, box, rows, count=48)
    trusted = [method for method in methods if not trust.untrusted(graph, method)]
    for method in trusted:
        try:
            bounds = bounds_of(graph, box, method, rows)
        except (NotImplementedError, RuntimeError, AssertionError, TypeError, IndexError):
            assert not BoundMethod.is_ours(method) or "+" in method, method
            continue
        worst = escape(bounds, truth)
        assert worst <= 1, f"{method}: a reached value lies {worst:.3g} times outside what rounding allows"
    return trusted


def random_box(r, shape, boxes):
    center = torch.randn(boxes, *shape) * r.choice([0.3, 1.0])
    return Box.ball(center, torch.rand(boxes, *shape) * r.choice([0.05, 0.3, 1.0]))


# The law itself


def test_the_search_finds_the_ends_of_a_linear_function():
    layer = nn.Linear(5, 3)
    box = Box.ball(torch.randn(4, 5), 0.7)
    with torch.no_grad():
        center, radius = layer((box.lower + box.upper) / 2), (box.upper - box.lower) / 2 @ layer.weight.abs().T
    truth = reached(layer, box)
    torch.testing.assert_close(truth.lower, (center - radius).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(truth.upper, (center + radius).double(), atol=1e-5, rtol=0)
    assert escape(Interval(center - radius, center + radius), truth) <= 1
    assert escape(Interval(center - 0.99 * radius, center + radius), truth) > 1
    assert escape(Interval(center - radius, center + 0.99 * radius), truth) > 1


def test_the_search_bounds_rows_and_leaves_out_what_is_not_a_number():
    box, rows = Box(torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, 3.0]])), torch.tensor([[[1.0, -1.0]]])
    truth = reached(nn.Identity(), box, rows)
    assert truth.lower.tolist() == [[-4.0]] and truth.upper.tolist() == [[-1.0]]
    roots = reached(Function(torch.sqrt), box)
    assert abs(float(roots.upper[0, 0]) - 1) < 1e-6 and 0 <= float(roots.lower[0, 0]) < 0.3
    nothing = torch.full((1, 2), torch.nan)
    assert escape(Interval(nothing, nothing), reached(nn.Identity(), box)) == 0


def test_the_law_notices_a_lower_bound_that_is_infinite():
    box = Box(torch.zeros(1, 2), torch.ones(1, 2))
    infinite = torch.full((1, 2), torch.inf)
    assert escape(Interval(infinite, infinite), reached(nn.Identity(), box)) == torch.inf
    assert escape(Interval(-infinite, infinite), reached(nn.Identity(), box)) <= 0


# The list


def test_the_list_knows_both_hosts_and_common_operators():
    hosts = json.loads(trust.LIST.read_text(encoding="utf-8"))["trusted"]
    assert {"0.3", "0.7.1"} <= set(hosts)
    for methods in hosts.values():
        assert set(methods) == set(HOST_METHODS)
        assert {"BoundLinear", "BoundRelu", "BoundAdd"} <= set(methods["ibp"]) & set(methods["crown"])


def test_a_version_that_nobody_tested_is_not_trusted(monkeypatch):
    graph = graph_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,))
    assert trust.untrusted(graph, "crown") == []
    monkeypatch.setattr(trust, "HOST_VERSION", "0.7.9")
    assert trust.untrusted(graph, "crown") == ["Linear", "Relu"]
    assert trust.untrusted(graph, "zonotope") == trust.untrusted(graph, "alpha-zonotope") == []
    assert "0.7.9's crown bounds of Linear, Relu" in trust.distrust(graph, "zonotope+full-crown")


def test_methods_rest_on_the_hosts_methods():
    named = {method: trust.host_method(method) for method in METHODS}
    assert [named[method] for method in HOST_METHODS] == list(HOST_METHODS)
    assert named["zonotope"] is None
    assert named["zonotope+crown"] == named["zonotope+full-crown"] == "crown"
    assert trust.host_method("alpha-zonotope[girard,20]+full-alpha-crown") == "alpha-crown"


def test_an_operator_of_somebody_else_is_not_trusted_for_its_name():
    graph = graph_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,))
    node = next(node for node in graph._modules.values() if type(node).__name__ == "BoundRelu")
    assert trust.key_of(node) == "BoundRelu" and trust.is_trusted(node, "ibp")
    node.__class__ = type("BoundRelu", (type(node),), {"__module__": "somewhere"})
    assert trust.key_of(node) == "somewhere.BoundRelu" and not trust.is_trusted(node, "ibp")
    assert trust.untrusted(graph, "crown") == ["Relu"]


def test_constants_need_no_trust():
    layer = Function(lambda x, c: x + torch.tan(c) * 2, c=torch.ones(3))
    assert trust.untrusted(graph_of(layer, (3,)), "ibp") == []


# Who asks


def test_the_propagation_uses_no_interval_of_the_host_that_is_not_trusted(monkeypatch):
    from zonoplug.lirpa.operators.all import TRANSFORMERS

    graph = graph_of(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), (3,))
    box = Box.ball(torch.zeros(2, 3), 0.5)
    monkeypatch.delitem(TRANSFORMERS, "BoundTanh")
    method = BoundMethod.parse("zonotope")
    with pytest.warns(UserWarning, match="Tanh is bounded by intervals"):
        assert bound_set(graph, box, method)[0].lower.isfinite().all()
    monkeypatch.setattr(trust, "_trusted", lambda version: {})
    with warnings.catch_warnings(), pytest.raises(UnsupportedOperatorError, match=r"tests for BoundTanh"):
        warnings.simplefilter("error")
        bound_set(graph, box, method)


def test_a_comparison_marks_what_is_not_trusted():
    result = {
        "method": "crown", "margin": 0.5, "excluded": 1, "disjuncts": 1, "proved": False, "seconds": 0.1,
        "peak_bytes": 1, "notes": [], "untrusted": "method crown is not trusted on this network: no",
    }  # fmt: skip
    table = comparison_table([result, {**result, "method": "zonotope", "untrusted": "", "proved": True}]).splitlines()
    assert table[1].startswith("crown *") and " no " in table[1]
    assert table[2].startswith("zonotope ") and "*" not in table[2]
    assert table[3:] == ["* method crown is not trusted on this network: no"]


# Networks on which hosts were seen to err


@pytest.mark.parametrize("seed", range(6))
def test_convolutions_without_activations_between_them(seed):
    torch.manual_seed(seed)
    r = Random(seed)
    module, shape = convolutions_without_activations(r)
    assert "crown" in holds(module, shape, random_box(r, shape, r.choice([1, 2])))


@pytest.mark.parametrize("seed", range(6))
def test_chains_of_operators_over_images(seed):
    torch.manual_seed(seed)
    r = Random(seed)
    module, shape = images_through(r)
    assert "zonotope" in holds(module, shape, random_box(r, shape, r.choice([1, 2])))


@pytest.mark.slow
@pytest.mark.parametrize("make", [convolutions_without_activations, images_through])
def test_many_networks_over_images(make):
    """Each by a third of the methods, in turn."""
    for seed in range(100, 160):
        torch.manual_seed(seed)
        r = Random(seed)
        try:
            module, shape = make(r)
            graph_of(module, shape)
        except Exception:  # layers that do not fit, or a graph that the host cannot build
            continue
        holds(module, shape, random_box(r, shape, r.choice([1, 2])), METHODS[seed % 3 :: 3])


POOLS = [
    nn.AvgPool2d(3, 2, padding=1, count_include_pad=False),
    nn.AvgPool2d(3, 2, padding=1),
    nn.AvgPool2d(2, 1),
    nn.AvgPool2d((1, 2)),
    nn.AvgPool2d(2),
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
def test_average_pools(pool):
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(2)).eval()
    module(torch.zeros(1, 1, 5, 4))
    trusted = holds(module, (1, 5, 4), Box.ball(torch.randn(3, 1, 5, 4), 0.4))
    assert {"zonotope", "ibp", "crown"} <= set(trusted)


@pytest.mark.parametrize("slope", [-0.5, 0.0, 0.01, 0.9, 1.0, 1.7, 4.0])
def test_leaky_relus(slope):
    module = nn.Sequential(nn.Linear(4, 6), nn.LeakyReLU(slope), nn.Linear(6, 6), nn.LeakyReLU(slope), nn.Linear(6, 2))
    trusted = holds(module, (4,), Box.ball(torch.randn(3, 4), 0.6))
    assert {"zonotope", "ibp", "crown"} <= set(trusted)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"stride": 2, "output_padding": 1}, {"dilation": 2}], ids=str)
def test_convolutions_behind_transposed_ones(options):
    layers = [nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(2, 2, 3, padding=1, **options), nn.ReLU()]
    module = nn.Sequential(*layers, nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval()
    module(torch.zeros(1, 1, 4, 4))
    assert "zonotope" in holds(module, (1, 4, 4), Box.ball(torch.randn(2, 1, 4, 4), 0.3))


# The script that writes the list


def test_the_list_is_what_the_script_makes_of_its_results(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "LIST", tmp_path / "list.json")
    monkeypatch.setattr(script, "TABLE", tmp_path / "table.md")
    script.write_list()
    assert script.LIST.read_text() == trust.LIST.read_text()


def test_the_script_notices_a_bound_that_does_not_hold(monkeypatch):
    relu = importlib.import_module("auto_LiRPA.operators").BoundRelu
    original = relu.interval_propagate

    def narrow(self, *bounds):
        lower, upper = original(self, *bounds)
        return 0.9 * lower + 0.1 * upper, 0.9 * upper + 0.1 * lower

    monkeypatch.setattr(script, "SPELLINGS", {"ibp": {"ibp": 1.0}})
    (row,) = script.try_operator("BoundRelu", 4, 0).values()
    assert row["ibp"].held == 4 and not row["ibp"].broken
    monkeypatch.setattr(relu, "interval_propagate", narrow)
    (row,) = script.try_operator("BoundRelu", 4, 0).values()
    assert "what rounding may do" in row["ibp"].broken


def test_every_operator_of_the_table_is_tried():
    from zonoplug.lirpa.operators.all import TRANSFORMERS

    patterns = {"BoundGeluTanh", "BoundHardSwish", "BoundLogSigmoid", "BoundMish", "BoundNormalization", "BoundSilu"}
    assert {name for name in TRANSFORMERS if name.startswith("Bound")} - patterns <= set(script.FAMILIES)
