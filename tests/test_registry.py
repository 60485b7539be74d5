"""Names that third parties register."""

from __future__ import annotations

import pytest
import torch

import zonoplug
from zonoplug.errors import UnknownNameError, ZonoplugError
from zonoplug.registry import Registry


def test_a_name_is_found_in_capital_and_small_letters():
    things = Registry("thing", "zonoplug.nothing")
    things.register("L4")(int)
    assert things.get("L4") is things.get("l4") is int
    assert things.names() == ["L4"]
    things.register("L4")(int)
    with pytest.raises(ZonoplugError, match="exists already"):
        things.register("l4")(float)
    with pytest.raises(UnknownNameError, match="L4"):
        things.get("L5")


def test_a_reduction_with_capital_letters_is_found_as_written(monkeypatch):
    monkeypatch.setattr(zonoplug.REDUCTIONS, "_members", dict(zonoplug.REDUCTIONS._members))
    zonoplug.REDUCTIONS.register("MyRule")(zonoplug.REDUCTIONS.get("l1"))
    module = zonoplug.build(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()), torch.zeros(1, 2))
    inputs = (zonoplug.bounded_input(zonoplug.Box.ball(torch.zeros(1, 2), 1.0)),)
    found = [module.compute_bounds(x=inputs, method=f"zonotope[{name},1]") for name in ("MyRule", "l1")]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*found, strict=True))
