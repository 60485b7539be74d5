"""Relaxations that are kept for the bounds that they were found on."""

from __future__ import annotations

import gc

import torch

from zonoplug.domain.zonotope import Interval
from zonoplug.relaxations import relu
from zonoplug.transformers import elementwise
from zonoplug.transformers.elementwise import covering


class Counted:
    """A relaxation rule that counts how often it is asked."""

    def __init__(self, slope=None):
        self.calls, self._slope = 0, slope

    def __call__(self, lower, upper):
        self.calls += 1
        return relu(lower, upper, self._slope)


def bounds(seed=0):
    random = torch.Generator().manual_seed(seed)
    return Interval(-torch.rand(2, 5, generator=random), torch.rand(2, 5, generator=random))


def test_a_rule_is_asked_once_for_the_same_tensors():
    rule, interval = Counted(), bounds()
    first, again = covering(rule, interval), covering(rule, Interval(*interval))
    assert rule.calls == 1
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_rule_is_asked_again_for_other_tensors_and_for_changed_ones():
    rule, interval = Counted(), bounds()
    covering(rule, interval)
    covering(rule, Interval(interval.lower, interval.upper.clone()))
    interval.upper.add_(1.0)
    found = covering(rule, interval)
    assert rule.calls == 3
    assert all(torch.equal(a, b) for a, b in zip(found, relu(*interval), strict=True))
    other = Counted()
    covering(other, interval)
    assert other.calls == 1


def test_what_carries_gradients_is_not_kept():
    slope = torch.full((2, 5), 0.5, requires_grad=True)
    rule, interval = Counted(slope), bounds()
    with torch.no_grad():
        covering(rule, interval)
    for _ in range(2):
        covering(rule, interval).offset.sum().backward()
    assert rule.calls == 3
    assert bool((slope.grad != 0).any())


def test_nothing_is_kept_longer_than_its_bounds():
    gc.collect()
    before, interval = len(elementwise._last), bounds()
    covering(Counted(), interval)
    assert len(elementwise._last) == before + 1
    del interval
    gc.collect()
    assert len(elementwise._last) == before
