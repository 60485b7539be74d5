"""Branching rules by name: each search gets the rule that was asked for, or its own choice."""

from __future__ import annotations

import re

import pytest
import torch
from helpers import network_files as files

from zonoplug.cli import main
from zonoplug.errors import UnknownNameError
from zonoplug.verify.branching.by_name import KINDS, Branching
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.verifier import verify_files


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", Branching()),
        ("widest", Branching("widest", "widest", "auto")),
        ("gap", Branching("auto", "gap", "gap")),
        ("gradient", Branching("gradient")),
        ("primal", Branching(activations="primal", mixed="primal")),
    ],
)
def test_a_name_is_given_to_the_searches_that_know_it(name, expected):
    assert Branching.named(name) == expected


def test_an_unknown_name_lists_the_rules_of_all_searches():
    with pytest.raises(UnknownNameError) as caught:
        Branching.named("nothing of the kind")
    for rules in KINDS.values():
        assert all(name in str(caught.value) for name in rules.names())


def verify_with(tmp_path, rule, inputs, kept):
    """The outcome where a rule has the only search that may split, on a property that holds by a little."""
    network, _ = files.random_network(tmp_path / "n.onnx", 3, sizes=(inputs, 24, 16, 1))
    ends = [-0.3] * inputs, [0.3] * inputs
    settings = Settings(device="cpu", branching=rule)
    spec = files.write_specification(tmp_path / "s.vnnlib", *ends, 1, ["(>= Y_0 1000.0)"])
    points = (torch.rand(4000, inputs, generator=torch.Generator().manual_seed(0)) * 2 - 1) * 0.3
    highest = float(load_problem(network, spec, settings).outputs(points).max())
    spec = files.write_specification(tmp_path / "s.vnnlib", *ends, 1, [f"(>= Y_0 {highest + 0.1})"])
    others = {"input-splits", "mixed-splits", "activation-splits"} - {kept}
    without = ("attack", "inner-attack", "contraction", "clipping", *sorted(others))
    return verify_files(network, spec, Settings(1, device="cpu", branching=rule, without=without))


SEARCHES = [("inputs", 4, "input-splits"), ("activations", 70, "activation-splits"), ("mixed", 12, "mixed-splits")]


@pytest.mark.parametrize(
    ("kind", "inputs", "kept", "name"), [(*s, n) for s, n in zip(SEARCHES, ("widest", "radius", "inputs"), strict=True)]
)
def test_the_rule_that_is_asked_for_chooses_the_splits(tmp_path, monkeypatch, kind, inputs, kept, name):
    calls = []
    rule = KINDS[kind].get(name)

    def spy(facts):
        calls.append(name)
        return rule(facts)

    monkeypatch.setitem(KINDS[kind]._members, name, spy)
    verify_with(tmp_path, name, inputs, kept)
    assert calls


OWN = {
    "inputs": lambda facts: facts.width,
    "activations": lambda facts: facts.coefficients.abs() * torch.minimum(-facts.lower, facts.upper),
    "mixed": lambda facts: torch.cat(
        [facts.part.upper.where(facts.part.unstable_neurons, -1.0), facts.part.box_upper - facts.part.box_lower], dim=1
    ),
}


@pytest.mark.parametrize(("kind", "inputs", "kept"), SEARCHES)
def test_a_rule_of_ones_own_is_listed_and_chooses_the_splits(tmp_path, monkeypatch, capsys, kind, inputs, kept):
    monkeypatch.setattr(KINDS[kind], "_members", dict(KINDS[kind]._members))
    scored = []

    @KINDS[kind].register("my own")
    def mine(facts):
        """What I like best."""
        scored.append(OWN[kind](facts))
        return scored[-1]

    assert main(["list"]) == 0
    assert re.search(rf"^my own +{kind} +What I like best\.$", capsys.readouterr().out, re.MULTILINE)
    assert Branching.named("my own") == Branching(**{kind: "my own"})
    outcome = verify_with(tmp_path, "my own", inputs, kept)
    assert scored and all(scores.ndim == 2 for scores in scored)
    assert not any("failed" in note for note in outcome.notes)
    assert outcome.verdict is not Verdict.VIOLATED
