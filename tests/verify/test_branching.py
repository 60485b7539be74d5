"""Branching rules by name: each search gets the rule that was asked for, or its own choice."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from zonoplug.errors import UnknownNameError
from zonoplug.verify.activation_branching import ACTIVATION_RULES
from zonoplug.verify.branching import KINDS, Branching
from zonoplug.verify.input_branching import INPUT_RULES
from zonoplug.verify.mixed_branching import MIXED_RULES
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import verify_files

_location = importlib.util.spec_from_file_location("verify_conftest", Path(__file__).with_name("conftest.py"))
files = importlib.util.module_from_spec(_location)
_location.loader.exec_module(files)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", Branching()),
        ("widest", Branching("widest", "widest", "auto")),
        ("gap", Branching("auto", "gap", "gap")),
        ("gradient", Branching("gradient")),
        ("primal", Branching(mixed="primal")),
    ],
)
def test_a_name_is_given_to_the_searches_that_know_it(name, expected):
    assert Branching.named(name) == expected


def test_an_unknown_name_lists_the_rules_of_all_searches():
    with pytest.raises(UnknownNameError) as caught:
        Branching.named("nothing of the kind")
    for rules in KINDS.values():
        assert all(name in str(caught.value) for name in rules.names())


@pytest.mark.parametrize(
    ("registry", "name", "inputs", "kept"),
    [
        (INPUT_RULES, "widest", 4, ("input-splits",)),
        (ACTIVATION_RULES, "radius", 70, ("activation-splits",)),
        (MIXED_RULES, "inputs", 12, ("mixed-splits",)),
    ],
)
def test_the_rule_that_is_asked_for_chooses_the_splits(tmp_path, monkeypatch, registry, name, inputs, kept):
    calls = []
    rule = registry.get(name)

    def spy(facts):
        calls.append(name)
        return rule(facts)

    monkeypatch.setitem(registry._members, name, spy)
    network, _ = files.random_network(tmp_path / "n.onnx", 3, sizes=(inputs, 24, 16, 1))
    ends = [-0.3] * inputs, [0.3] * inputs
    settings = Settings(10, device="cpu", branching=name)
    spec = files.write_specification(tmp_path / "s.vnnlib", *ends, 1, ["(>= Y_0 1000.0)"])
    points = (torch.rand(4000, inputs, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 0.3
    highest = float(load_problem(network, spec, settings).outputs(points).max())
    spec = files.write_specification(tmp_path / "s.vnnlib", *ends, 1, [f"(>= Y_0 {highest + 0.1})"])
    kinds = {"input-splits", "mixed-splits", "activation-splits"}
    without = ("attack", "inner-attack", "contraction", "clipping", *sorted(kinds - set(kept)))
    verify_files(network, spec, Settings(10, device="cpu", branching=name, without=without))
    assert calls
