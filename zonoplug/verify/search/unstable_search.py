"""Signs of a network that is written in its open ReLUs: neurons' hulls are narrowed in sweeps, and trees grow between.

Bounds over an `OpenNetwork` are cheap. Trees of splits are tried at once, then after each sweep, which may grow more
leaves than the last. What a sweep gains decides whether there will be another; at the end the trees get all the time
there is.
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
from zonoplug.verify.bounds.unstable_bounds import OpenBounds, OpenMargins
from zonoplug.verify.branching.activations import ActivationRule
from zonoplug.verify.search.base import SearchResult
from zonoplug.verify.search.neuron_search import NeuronSearch
from zonoplug.verify.search.relu_tree import SignTree
from zonoplug.verify.search.tree_search import TreeSearch
from zonoplug.verify.subdomains.neuron_layout import Place
from zonoplug.verify.subdomains.relu_phases import Aims, SignSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.passes import Backward

ROOT_STEPS = 20
SWEEP_SHARE = 0.4  # of the time that is left
SWEEPS = ((0, 0.08), (1, 0.3), (64, 0.3), (256, 0.3), (1024, 0.3))  # leaves for each end of a hull; share of trees then
PROGRESS = 0.1  # of the margins' distance from 0, that a sweep has to take off
DEEPEST = 48  # splits below the root: a tree that looks deeper is left for hulls to be narrowed first


class OpenSearch:
    """Proves aims on one box.

    Args:
        module: the host's, or the same in double precision; its operators are exact or ReLUs.
        backward: its backward bounds.
        box: (1, *input_shape).
        rule: scores neurons for splits.
        places: of the ReLUs, in topological order.
        trees: goes on with trees.
        check_hulls: refuses hulls that exclude a sampled point.
        check_root: refuses bounds (n,) of aims on the whole box that exclude a sampled point.
        without: names of INGREDIENTS to leave out.
        trial: give up where sweeps gain little.
    """

    def __init__(
        self,
        module: Any,
        backward: Backward,
        box: Box,
        rule: ActivationRule,
        places: list[Place],
        trees: TreeSearch,
        check_hulls: Callable[[Mapping[str, Interval]], None],
        check_root: Callable[[Tensor, Aims], None],
        without: Collection[str] = (),
        trial: bool = False,
    ) -> None:
        self._backward, self._rule, self._trees = backward, rule, trees
        self._without, self._trial = without, trial
        self._check_hulls, self._check_root = check_hulls, check_root
        self._neurons = NeuronSearch(module, box, rule, places)

    def run(self, hulls: Mapping[str, Interval], aims: Aims, deadline: Deadline, result: SearchResult) -> Aims:
        """The aims that could not be proved. A counterexample, if one is found, is in `result`."""
        known: dict[int, float] = {}  # the bounds of open aims on the whole box, by number
        for leaves, share in SWEEPS[:1] if "neuron-search" in self._without else SWEEPS:
            hulls, margins = self._swept(hulls, aims, leaves, deadline.part(SWEEP_SHARE), result)
            root, aims = self._root(margins, aims, result)
            trees = [SignTree.of(margins, root.pick(at), aims.pick(at)) for at in easiest_first(root)]
            now = dict(zip(aims.number.tolist(), root.bound.tolist(), strict=True))
            if sum(now.values()) < (1 - PROGRESS) * sum(known.get(number, -inf) for number in now):
                break
            known = now
            self._trees.close(trees, deadline.part(share), result, DEEPEST)
            aims = _left(aims, trees)
            if not trees or deadline.passed or result.counterexample is not None:
                return aims
        if not self._trial:
            self._trees.close(trees, deadline, result)
        return _left(aims, trees)

    def _swept(
        self, hulls: Mapping[str, Interval], aims: Aims, leaves: int, deadline: Deadline, result: SearchResult
    ) -> tuple[Mapping[str, Interval], OpenMargins]:
        """Narrower hulls, and what bounds aims over them."""
        hulls, network, bounded = self._neurons.sweep(hulls, leaves, deadline)
        result.subdomains += bounded
        self._check_hulls(hulls)
        forms = network.forms_of(self._backward, hulls, aims.rows.flatten(0, 1))
        programs = "linear-programs" not in self._without
        return hulls, OpenMargins(OpenBounds(network, self._rule), forms, aims, programs)

    def _root(self, margins: OpenMargins, aims: Aims, result: SearchResult) -> tuple[SignSubdomains, Aims]:
        """The whole box for each aim that its bound leaves open."""
        root = margins.root(len(aims))
        root.bound, _ = margins.bound(root, aims, ROOT_STEPS)
        result.subdomains += len(root)
        self._check_root(root.bound, aims)
        open_ = ~(root.bound > 0)
        self._trees.observer.signs(root, open_, root.bound, 0)
        return root.pick(open_), aims.pick(open_)


def _left(aims: Aims, trees: list[SignTree]) -> Aims:
    """The aims that have trees."""
    left = torch.tensor([int(tree.aim.number) for tree in trees], dtype=torch.int64, device=aims.number.device)
    return aims.pick(torch.isin(aims.number, left))


def easiest_first(root: SignSubdomains) -> list[Tensor]:
    """Places (1,) of subdomains, the best bound first."""
    return list(root.bound.argsort(descending=True).split(1)) if len(root) else []
