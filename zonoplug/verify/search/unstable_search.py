"""Splits of a network in affine form over its unstable neurons: pre-activation bounds are narrowed in bound-tightening
passes, and trees grow between.

Bounds over an `UnstableNetwork` are cheap. Trees of splits are tried at once, then after each bound-tightening pass,
which may grow more leaves than the last. What a bound-tightening pass gains decides whether there will be another; at
the end the trees get all the time there is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.bounds.unstable_bounds import UnstableBounds, UnstableMargins
from zonoplug.verify.branching.activations import ActivationRule
from zonoplug.verify.search.base import SearchResult
from zonoplug.verify.search.neuron_search import NeuronSearch
from zonoplug.verify.search.relu_tree import ReluTree
from zonoplug.verify.search.tree_search import TreeSearch
from zonoplug.verify.subdomains.neuron_layout import Place
from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.passes import Backward

ROOT_STEPS = 20
TIGHTENING_SHARE = 0.4  # of the time that is left
# Leaves for each bound of a neuron, and the share of trees then.
TIGHTENING_PASSES = ((0, 0.08), (1, 0.3), (64, 0.3), (256, 0.3), (1024, 0.3))
PROGRESS = 0.1  # of the margins' distance from 0, that a bound-tightening pass has to take off
DEEPEST = 48  # splits below the root: a tree that looks deeper is left for pre-activation bounds to be narrowed first


class UnstableSearch:
    """Proves properties on one box.

    Args:
        module: the host's, or the same in double precision; its operators are exact or ReLUs.
        backward: its backward bounds.
        box: (1, *input_shape).
        rule: scores neurons for splits.
        places: of the ReLUs, in topological order.
        trees: goes on with trees.
        check_bounds: refuses pre-activation bounds that exclude a sampled point.
        check_root: refuses bounds (n,) of properties on the whole box that exclude a sampled point.
        without: names of COMPONENTS to leave out.
        trial: give up where bound-tightening passes gain little.
    """

    def __init__(
        self,
        module: Any,
        backward: Backward,
        box: Box,
        rule: ActivationRule,
        places: list[Place],
        trees: TreeSearch,
        check_bounds: Callable[[Mapping[str, Interval]], None],
        check_root: Callable[[Tensor, Properties], None],
        without: Collection[str] = (),
        trial: bool = False,
    ) -> None:
        self._backward, self._rule, self._trees = backward, rule, trees
        self._without, self._trial = without, trial
        self._check_bounds, self._check_root = check_bounds, check_root
        self._neurons = NeuronSearch(module, box, rule, places)

    def run(
        self, preactivations: Mapping[str, Interval], properties: Properties, deadline: Deadline, result: SearchResult
    ) -> Properties:
        """The properties that could not be proved. A counterexample, if one is found, is in `result`."""
        known: dict[int, float] = {}  # the bounds of open properties on the whole box, by number
        for leaves, share in TIGHTENING_PASSES[:1] if "neuron-search" in self._without else TIGHTENING_PASSES:
            preactivations, margins = self._tightened(
                preactivations, properties, leaves, deadline.part(TIGHTENING_SHARE), result
            )
            root, properties = self._root(margins, properties, result)
            trees = [ReluTree.of(margins, root.pick(at), properties.pick(at)) for at in easiest_first(root)]
            now = dict(zip(properties.number.tolist(), root.bound.tolist(), strict=True))
            if sum(now.values()) < (1 - PROGRESS) * sum(known.get(number, -inf) for number in now):
                break
            known = now
            self._trees.close(trees, deadline.part(share), result, DEEPEST)
            properties = _left(properties, trees)
            if not trees or deadline.passed or result.counterexample is not None:
                return properties
        if not self._trial:
            self._trees.close(trees, deadline, result)
        return _left(properties, trees)

    def _tightened(
        self,
        preactivations: Mapping[str, Interval],
        properties: Properties,
        leaves: int,
        deadline: Deadline,
        result: SearchResult,
    ) -> tuple[Mapping[str, Interval], UnstableMargins]:
        """Narrower pre-activation bounds, and what bounds properties over them."""
        preactivations, network, bounded = self._neurons.tighten(preactivations, leaves, deadline)
        result.subdomains += bounded
        self._check_bounds(preactivations)
        forms = network.forms_of(self._backward, preactivations, properties.rows.flatten(0, 1))
        programs = "linear-programs" not in self._without
        return preactivations, UnstableMargins(UnstableBounds(network, self._rule), forms, properties, programs)

    def _root(
        self, margins: UnstableMargins, properties: Properties, result: SearchResult
    ) -> tuple[ReluSubdomains, Properties]:
        """The whole box for each property that its bound leaves open."""
        root = margins.root(len(properties))
        root.bound, _ = margins.bound(root, properties, ROOT_STEPS)
        result.subdomains += len(root)
        self._check_root(root.bound, properties)
        open_ = ~(root.bound > 0)
        self._trees.observer.phases(root, open_, root.bound, 0)
        return root.pick(open_), properties.pick(open_)


def _left(properties: Properties, trees: list[ReluTree]) -> Properties:
    """The properties that have trees."""
    left = torch.tensor([int(tree.target.number) for tree in trees], dtype=torch.int64, device=properties.number.device)
    return properties.pick(torch.isin(properties.number, left))


def easiest_first(root: ReluSubdomains) -> list[Tensor]:
    """Places (1,) of subdomains, the best bound first."""
    return list(root.bound.argsort(descending=True).split(1)) if len(root) else []
