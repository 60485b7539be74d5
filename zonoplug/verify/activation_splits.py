"""Branch and bound on the signs of ReLUs, for networks with more inputs than can be split.

At the root the zonotope's hulls are tightened layer by layer. A subdomain fixes the signs of some pre-activations: its
hulls end at 0 there, and the fixed signs enter the backward bound by multipliers. Slopes and multipliers are optimised
in a batch and inherited by the pieces of a split.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.verify.activation_branching import activation_rule
from zonoplug.verify.attack import Attack
from zonoplug.verify.bounding import Bounder, BrokenMethodError
from zonoplug.verify.hull_tree import HullTree
from zonoplug.verify.neuron_search import NeuronSearch
from zonoplug.verify.observer import Observer
from zonoplug.verify.open_bounds import OpenBounds, OpenMargins
from zonoplug.verify.problem import Objective, Problem
from zonoplug.verify.search import BoxwiseSearch, SearchResult
from zonoplug.verify.sign_bounds import SignBounds
from zonoplug.verify.sign_subdomains import Aims, SignSubdomains
from zonoplug.verify.sign_tree import SignTree
from zonoplug.verify.tree_search import TreeSearch

if TYPE_CHECKING:
    from zonoplug.domain.zonotope import Interval
    from zonoplug.lirpa.refine import NeuronSlopes

ROOT_STEPS = (0, 8)  # gradient steps on the root's hulls: first none, more where that does not do
ROOT_BOUND_STEPS = 20
BATCH = 64
FIRST_SHARE = 0.12  # of the time: for splits without new hulls, which are cheap
DEEPEST = 48  # splits below the root: a tree that looks deeper is left for hulls to be narrowed first
HULL_SHARE = 0.6
SWEEP_SHARE = 0.4
LEAVES = 64
PROGRESS = 0.9
import os
DEBUG = bool(os.environ.get("DBG"))
CHECKED_POINTS = 64


class ActivationSearch(BoxwiseSearch):
    """Proves disjuncts one after another by splitting on ReLU signs.

    Args:
        problem, bounder, attack, observer, without: see `Search`.
        branching: which sign to fix: a name in `ACTIVATION_RULES`, or "auto".
    Raises:
        UnknownNameError: no rule is called so.
        UnsupportedOperatorError: the network has operators that backward bounds cannot pass, takes no batch, or has no
            ReLUs.
    """

    def __init__(
        self,
        problem: Problem,
        bounder: Bounder,
        attack: Attack,
        observer: Observer | None = None,
        without: Collection[str] = (),
        branching: str = "auto",
    ) -> None:
        from zonoplug.lirpa.backward import Backward

        super().__init__(problem, bounder, attack, observer, without)
        self._rule = activation_rule(branching)
        if not bounder.takes_batches:
            raise UnsupportedOperatorError("The host's graph of this model takes one point at a time.")
        self._backward = Backward(bounder.module)
        self._trees = TreeSearch(self._observer, self._attacked_box, self.leaves)
        if not self._backward.relus:
            raise UnsupportedOperatorError("The network has no ReLUs, and signs of nothing else are split here.")

    def _search_box(self, objective: Objective, deadline: Deadline, result: SearchResult) -> bool:
        from zonoplug.lirpa.tuning import tune_shares

        box, module = self._box, self._bounder.module
        self.bounds = SignBounds(module, self._backward, box, self._bounder.hulls(box), self._rule)
        aims = Aims.of(objective, self._box_number)
        refined = "refined-hulls" not in self._without
        for steps in ROOT_STEPS:
            slopes = self._tighten(steps, deadline, aims.all_rows) if refined else {}
            parts = []
            for piece in torch.arange(len(aims)).split(BATCH):
                part = self.bounds.layout.root(self.bounds.hulls, len(piece))
                part.bound, _ = self.bounds.bound(part, aims.pick(piece), ROOT_BOUND_STEPS)
                self._check_root(part.bound, aims.pick(piece))
                result.subdomains += len(part)
                parts.append(part)
                if deadline.passed:
                    return False
            root = SignSubdomains.join(parts)
            open_ = ~(root.bound > 0)
            self._observer.signs(root, open_, root.bound, 0)
            self.leaves(root.pick(~open_), aims.pick(~open_))
            aims, root = aims.pick(open_), root.pick(open_)
            if not len(aims):
                return not deadline.passed
            if "tuned-planes" not in self._without:
                rows, goal = aims.all_rows, aims.goal.flatten()
                tune_shares(self._backward, box, self.bounds.hulls, rows, goal[None], deadline)
        trees = [
            SignTree.of(self.bounds, root.pick(at), aims.pick(at))
            for at in root.bound.argsort(descending=True).split(1)
        ]
        if self._takes_neurons and refined:
            aims = self._by_neurons(aims, deadline, result)
            return not len(aims) and result.counterexample is None and not deadline.passed
        if slopes and "hull-tree" not in self._without:
            self._trees.close(trees, deadline.part(FIRST_SHARE), result, DEEPEST)
            if trees and result.counterexample is None and not deadline.passed:
                self._by_hulls(trees, root, aims, slopes, deadline.part(HULL_SHARE), result)
        self._trees.close(trees, deadline, result)
        return not trees and result.counterexample is None and not deadline.passed

    @property
    def _takes_neurons(self) -> bool:
        return self._observer.record is None and self._backward.only_relus

    def _by_neurons(self, aims: Aims, deadline: Deadline, result: SearchResult) -> Aims:
        def note(count: int) -> None:
            result.subdomains += count

        search = NeuronSearch(self._bounder.module, self.bounds.box, self._rule, self.bounds.layout.places, note)
        leaves, loss = 0, torch.inf
        trees: list[SignTree] = []
        while not deadline.passed:
            hulls, network = search.sweep(self.bounds.hulls, leaves, deadline.part(SWEEP_SHARE))
            self._replace_hulls(hulls)
            rows = aims.rows.flatten(0, 1)
            margins = OpenMargins(OpenBounds(network, self._rule), network.forms_of(self._backward, hulls, rows), aims)
            root = margins.root(len(aims))
            root.bound, _ = margins.bound(root, aims, ROOT_BOUND_STEPS)
            self._check_root(root.bound, aims)
            if DEBUG: print(f"{deadline.elapsed_seconds:.1f}s leaves {leaves} network {len(network)} worst {float(root.bound.min()):.3f} subdomains {result.subdomains}", flush=True)
            open_ = ~(root.bound > 0)
            self._observer.signs(root, open_, root.bound, 0)
            root, aims = root.pick(open_), aims.pick(open_)
            if not len(aims):
                return aims
            trees = [SignTree.of(margins, root.pick(at), aims.pick(at)) for at in root.bound.argsort(descending=True).split(1)]
            before, loss = loss, float(-root.bound.sum())
            if loss > PROGRESS * before:
                break
            self._trees.close(trees, deadline.part(FIRST_SHARE), result, DEEPEST)
            left = torch.cat([tree.aim.number for tree in trees]) if trees else aims.number[:0]
            aims = aims.pick(torch.isin(aims.number, left))
            if DEBUG: print(f"{deadline.elapsed_seconds:.1f}s left {len(aims)} subdomains {result.subdomains}", flush=True)
            if not trees or result.counterexample is not None:
                return aims
            leaves = 4 * leaves or LEAVES
        self._trees.close(trees, deadline, result)
        left = torch.cat([tree.aim.number for tree in trees]) if trees else aims.number[:0]
        return aims.pick(torch.isin(aims.number, left))

    def _by_hulls(
        self,
        trees: list[SignTree],
        root: SignSubdomains,
        aims: Aims,
        slopes: dict[str, list[NeuronSlopes]],
        deadline: Deadline,
        result: SearchResult,
    ) -> None:
        """Take away the trees whose aims are proved by splits that narrow the hulls behind them."""
        # A certificate's reader bounds leaves by their signs alone.
        recording = self._observer.record is not None
        clips = "clipping" not in self._without and not recording
        hulls = HullTree(self, self.bounds, slopes, clips, recording)
        wanted = torch.isin(aims.number, torch.cat([tree.aim.number for tree in trees]))
        left = hulls.run(root.pick(wanted), aims.pick(wanted), deadline, result)
        trees[:] = [tree for tree in trees if int(tree.aim.number) in left]

    def _tighten(self, steps: int, deadline: Deadline, rows: Tensor) -> dict[str, list[NeuronSlopes]]:
        """Tighten the root's hulls by backward bounds, and compare them with sampled points before they count."""
        from zonoplug.lirpa.refine import refine_hulls

        module, box = self._bounder.module, self.bounds.box
        slopes: dict[str, list[NeuronSlopes]] = {}
        hulls = refine_hulls(module, box, self.bounds.hulls, steps, deadline.part(0.4), slopes, rows)
        self._replace_hulls(hulls)
        return slopes

    def _replace_hulls(self, hulls: dict[str, Interval]) -> None:
        """Compare hulls with sampled points before they count."""
        module, box = self._bounder.module, self.bounds.box
        points = self._attack.points[self._attack.groups == self._box_number][:CHECKED_POINTS]
        if not points.shape[0]:
            points = box.sample(CHECKED_POINTS)[:, 0]
        for name in (at.source for at in self.bounds.layout.places):
            with torch.no_grad():
                values = module(points, final_node_name=name)
            allowed = 256 * torch.finfo(values.dtype).eps * values.abs().max()
            outside = torch.maximum(hulls[name].lower - values, values - hulls[name].upper).max()
            if bool(outside > allowed):
                raise BrokenMethodError(
                    f"hulls are broken on this model: a sampled point lies {float(outside):.3g} outside at {name!r}"
                )
        self.bounds.hulls = hulls

    def note(self, proved: SignSubdomains) -> float:
        """Subdomains of one disjunct were proved; returns their share of the input box."""
        self._observer.signs(proved, torch.zeros(len(proved), dtype=torch.bool), proved.bound, 0)
        return float((0.5 ** (proved.sign != 0).sum(dim=1).double()).sum())

    def withdraw(self, share: float) -> None:
        """What was said to be proved of a disjunct, but does not help to prove the whole of it."""
        self._observer.proved(-share)

    def leaves(self, part: SignSubdomains, aims: Aims) -> None:
        """These subdomains are proved, each for its aim, and the proof needs them."""
        self._observer.sign_leaves(self._box_number, aims.number, part, self.bounds.layout.sizes)

    def search(self, tree: SignTree, deadline: Deadline, result: SearchResult, limit: int = 2**62, deepest: float = torch.inf) -> bool:
        return self._trees.search(tree, deadline, result, limit, deepest)

    def _attacked_box(self, points: Tensor, result: SearchResult) -> bool:
        return self._attacked(points, self._box_number, result)

    def attack(self, result: SearchResult) -> bool:
        """Try the inputs at which the latest bounds were least."""
        return self._attacked(self.bounds.minimisers, self._box_number, result)
