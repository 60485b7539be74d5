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
from zonoplug.verify.batch import take
from zonoplug.verify.bounding import Bounder, BrokenMethodError
from zonoplug.verify.hull_tree import HullTree
from zonoplug.verify.observer import Observer
from zonoplug.verify.problem import Objective, Problem
from zonoplug.verify.search import BoxwiseSearch, SearchResult
from zonoplug.verify.sign_bounds import SignBounds
from zonoplug.verify.sign_subdomains import Aims, SignSubdomains, split_signs
from zonoplug.verify.sign_tree import SignTree

if TYPE_CHECKING:
    from zonoplug.lirpa.refine import NeuronSlopes

ROOT_STEPS = (0, 8)  # gradient steps on the root's hulls: first none, more where that does not do
SEARCH_STEPS = 6
LAST_STEPS = 200  # where no sign is left to fix
ROOT_BOUND_STEPS = 20
BATCH = 64
FIRST_SHARE = 0.12  # of the time: for splits without new hulls, which are cheap
DEEPEST = 48  # splits below the root: a tree that looks deeper is left for hulls to be narrowed first
HULL_SHARE = 0.6
STATE_BYTES = 64 * 2**20
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
        trees = [SignTree.of(root.pick(at), aims.pick(at)) for at in root.bound.argsort(descending=True).split(1)]
        if slopes and "hull-tree" not in self._without:
            self._close(trees, deadline.part(FIRST_SHARE), result, DEEPEST)
            if trees and result.counterexample is None and not deadline.passed:
                self._by_hulls(trees, root, aims, slopes, deadline.part(HULL_SHARE), result)
        self._close(trees, deadline, result)
        return not trees and result.counterexample is None and not deadline.passed

    def _close(
        self, trees: list[SignTree], deadline: Deadline, result: SearchResult, deepest: float = torch.inf
    ) -> None:
        """Go on with trees, one after another, and take away those that are proved, until one resists."""
        while trees and self.search(trees[0], deadline, result, deepest=deepest):
            for part, aims in trees.pop(0).leaves:
                self.leaves(part, aims)

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
        return slopes

    def search(
        self, tree: SignTree, deadline: Deadline, result: SearchResult, limit: int = 2**62, deepest: float = torch.inf
    ) -> bool:
        """Split by signs alone, hulls as they are.

        Args:
            limit: subdomains that may be bounded.
            deepest: stop where the tree looks deeper than this.
        Returns:
            whether every piece was excluded. A counterexample, if one is found, is in `result`.
        """
        self._observer.proved(tree.proved)
        last = tree.bounded + limit
        while tree.queue or tree.stuck:
            if deadline.passed or tree.stuck or tree.bounded >= last or tree.looks_deeper_than(deepest):
                self._observer.proved(-tree.proved)
                return False
            batch = max(1, min(BATCH, STATE_BYTES // tree.queue[-1].bytes_each))
            part = take(tree.queue, batch)
            part.bound, scores = self._bounded(part, tree.aim)
            result.subdomains += len(part)
            open_ = ~(part.bound > 0)
            tree.note(part, open_)
            self._observer.signs(part, open_, part.bound, sum(map(len, tree.queue)))
            if self._observer.record is not None:
                tree.closed.append(part.pick(~open_))
            if not bool(open_.any()):
                continue
            if self.attack(result):
                tree.stuck += int(open_.sum())
                return False
            pieces, stuck = split_signs(part.pick(open_), scores[open_], batch - sum(map(len, tree.queue)))
            self._observer.split("sign", len(pieces) - int(open_.sum()) + stuck)
            tree.stuck += stuck
            result.stuck += stuck
            if len(pieces):
                tree.queue.append(pieces)
        return True

    def note(self, proved: SignSubdomains) -> float:
        """Subdomains of one disjunct were proved; returns their share of the input box."""
        self._observer.signs(proved, torch.zeros(len(proved), dtype=torch.bool), proved.bound, 0)
        return float((0.5 ** (proved.sign != 0).sum(dim=1).double()).sum())

    def withdraw(self, share: float) -> None:
        """What was said to be proved of a disjunct, but does not help to prove the whole of it."""
        self._observer.proved(-share)

    def _bounded(self, part: SignSubdomains, aim: Aims) -> tuple[Tensor, Tensor]:
        """Margins and scores, as `SignBounds.bound`; with more steps where nothing is left to split."""
        bound, scores = self.bounds.bound(part, aim, SEARCH_STEPS)
        whole = (~(bound > 0) & ~part.open_neurons.any(dim=1)).nonzero().flatten()
        if whole.shape[0]:
            pieces, minimisers = part.pick(whole), self.bounds.minimisers
            bound[whole], _ = self.bounds.bound(pieces, aim, LAST_STEPS)
            part.alpha, part.beta = (
                part.alpha.index_copy(0, whole, pieces.alpha),
                part.beta.index_copy(0, whole, pieces.beta),
            )
            self.bounds.minimisers = minimisers
        return bound, scores

    def leaves(self, part: SignSubdomains, aims: Aims) -> None:
        """These subdomains are proved, each for its aim, and the proof needs them."""
        self._observer.sign_leaves(self._box_number, aims.number, part, self.bounds.layout.sizes)

    def attack(self, result: SearchResult) -> bool:
        """Try the inputs at which the latest bounds were least."""
        return self._attacked(self.bounds.minimisers, self._box_number, result)
