"""All attribution methods on networks whose right answer is known."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from zonoplug.errors import SettingError, UnknownNameError
from zonoplug.explain.comparison import ATTRIBUTIONS, Question
from zonoplug.explain.decision import Decision
from zonoplug.explain.drift import drift
from zonoplug.explain.evaluation import evaluate
from zonoplug.explain.influence import SymbolInfluence
from zonoplug.explain.layout import ImageLayout
from zonoplug.explain.region import Region
from zonoplug.reduction import REDUCTIONS

pytest.importorskip("captum")
pytest.importorskip("sklearn")


class OnePixel(nn.Module):
    """Class 0 wins by what the pixel in row 5, column 2 of an 8 x 8 image shows."""

    def __init__(self, place):
        super().__init__()
        self.last = nn.Linear(64, 2)
        with torch.no_grad():
            self.last.weight.zero_()
            self.last.weight[0, place] = 2.0
            self.last.bias.zero_()
            self.last.bias[0] = 0.5

    def forward(self, x):
        return self.last(x.flatten(1))


def question_about(transposed, table=False):
    place = 2 * 8 + 5 if transposed else 5 * 8 + 2
    network = OnePixel(place).requires_grad_(False)
    layout = ImageLayout((64,), 1, 8, 8, transposed)
    point = torch.rand(1, 64, generator=torch.Generator().manual_seed(1)) * 0.5 + 0.25
    region = Region.ball(point, 0.1, 0, 1, layout.pixels())
    decision = Decision.between_classes(torch.tensor([0]), 2, network(point))
    return Question(network, region, decision, torch.zeros_like(point), None if table else layout, cells=4), place


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", ATTRIBUTIONS.names())
def test_every_method_finds_the_only_pixel_that_matters(name, transposed):
    question, place = question_about(transposed)
    method = ATTRIBUTIONS.get(name)
    values = method(question)
    assert values.shape == question.point.shape
    importance = method.importance(values)[0]
    assert float(importance[place]) == float(importance.max())
    image = question.layout.to_image(importance)[0]
    far = image.clone()
    far[3:8, 0:5] = -torch.inf
    assert float(far.max()) < float(importance[place]), "nothing far from it is as important"


@pytest.mark.parametrize("name", ATTRIBUTIONS.names())
def test_every_method_explains_tables(name):
    question, place = question_about(False, table=True)
    method = ATTRIBUTIONS.get(name)
    assert int(method.importance(method(question))[0].argmax()) == place


@pytest.mark.parametrize("name", ["symbols", "gradient"])
def test_slopes_of_a_linear_network_are_its_weights(name):
    question, _ = question_about(False)
    weight = question.network.last.weight
    torch.testing.assert_close(ATTRIBUTIONS.get(name)(question), (weight[0] - weight[1])[None])


@pytest.mark.parametrize("name", ["symbols-to-baseline", "integrated gradients"])
def test_contributions_of_a_linear_network_add_up(name):
    question, _ = question_about(False)
    total = question.score(question.point) - question.score(question.baseline)
    torch.testing.assert_close(ATTRIBUTIONS.get(name)(question).sum(), total[0])


def test_sampling_methods_repeat_themselves_and_leave_the_callers_numbers_alone():
    question, _ = question_about(False)
    for name in ("RISE", "LIME", "KernelSHAP"):
        torch.manual_seed(5)
        first = ATTRIBUTIONS.get(name)(question)
        after = torch.rand(3)
        torch.manual_seed(5)
        assert torch.equal(torch.rand(3), after)
        assert torch.equal(ATTRIBUTIONS.get(name)(question), first)


def test_the_probability_is_the_softmax_of_the_class():
    question, _ = question_about(False)
    softmax = torch.softmax(question.network(question.point), dim=1)[:, 0]
    torch.testing.assert_close(question.probability(question.point), softmax)


def test_an_evaluation_measures_what_it_says():
    question, _ = question_about(False)
    found = {item.name: item for item in evaluate(question, ["symbols", "gradient", "RISE"])}
    assert found["gradient"].infidelity == pytest.approx(0, abs=1e-6)
    assert found["symbols"].agreement == pytest.approx(1)
    assert found["symbols"].top == 1
    assert found["symbols"].sensitivity == pytest.approx(0, abs=1e-4)
    assert found["gradient"].sparsity == pytest.approx(1 - 1 / 64)
    assert found["RISE"].infidelity > 0.1
    assert all(item.seconds > 0 and 0 < item.deletion < item.insertion < 1 for item in found.values())


def test_an_unknown_method_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(UnknownNameError, match="Did you mean 'gradient'"):
        ATTRIBUTIONS.get("gradiend")
    question, _ = question_about(False)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(SettingError, match=r"zonoplug\[explain\]"):
        ATTRIBUTIONS.get("LIME")(question)


@pytest.mark.parametrize("name", REDUCTIONS.names())
def test_drift(make_region, name):
    network, region, decision = make_region(inputs=6, hidden=(12, 12), radius=0.4, seed=4)
    module = SymbolInfluence(network).module(region.point)
    rows = {(row.max_symbols, row.protected): row for row in drift(module, region.box, decision, [1, 8, 100], [name])}
    assert (1, True) not in rows, "six protected inputs need a budget of six"
    for protected in (False, True):
        free = rows[100, protected]
        assert free.spearman == pytest.approx(1)
        assert (free.top, free.lost) == (1, 0)
        assert free.unattributed == pytest.approx(1)
    assert rows[8, True].lost == 0
    assert rows[8, True].unattributed >= 1
    assert rows[1, False].lost >= 5 / 6 or name == "exact"
    assert rows[1, False].lower <= rows[100, False].lower
