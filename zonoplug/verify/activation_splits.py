"""Branch and bound on the signs of ReLUs, for networks with more inputs than can be split.

At the root the zonotope's hulls are tightened layer by layer. A subdomain fixes the signs of some pre-activations: its
hulls end at 0 there, and the fixed signs enter the backward bound by multipliers. Slopes and multipliers are optimised
in a batch and inherited by the pieces of a split.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.verify.activation_branching import ActivationFacts, activation_rule, open_scores
from zonoplug.verify.attack import Attack
from zonoplug.verify.batch import take
from zonoplug.verify.bounding import Bounder, BrokenMethodError
from zonoplug.verify.branch_and_bound import SearchResult
from zonoplug.verify.hull_tree import HullTree
from zonoplug.verify.neuron_layout import NeuronLayout
from zonoplug.verify.observer import Observer
from zonoplug.verify.problem import Objective, Problem
from zonoplug.verify.sign_subdomains import Aims, SignSubdomains, split_signs
from zonoplug.verify.sign_tree import SignTree

if TYPE_CHECKING:
    from zonoplug.lirpa.backward import LinearBounds
    from zonoplug.lirpa.clipped_hulls import UnsafeRow
    from zonoplug.lirpa.refine import NeuronSlopes

ROOT_STEPS = (0, 8)  # gradient steps on the root's hulls: first none, more where that does not do
SEARCH_STEPS = 4
ROOT_BOUND_STEPS = 20
BATCH = 64
FIRST_SHARE = 0.12  # of the time: for splits without new hulls, which are cheap
DEEPEST = 48  # splits below the root: a tree that looks deeper is left for hulls to be narrowed first
HULL_SHARE = 0.6
ALPHA_RATE = 0.15
BETA_RATE = 0.05
MEAN_SHARE = 0.2  # of each step in the mean of the points where the bound is least
STATE_BYTES = 64 * 2**20
CHECKED_POINTS = 64


class ActivationSearch:
    """Proves disjuncts one after another by splitting on ReLU signs.

    Args:
        problem, bounder, attack: what is verified, and with what.
        observer: told of every step.
        without: names of INGREDIENTS to leave out.
        branching: one of ACTIVATION_RULES, or "auto" for the one that measured best.
    Raises:
        UnknownNameError: no rule is called so.
        UnsupportedOperatorError: the network has operators that backward bounds cannot pass, or takes no batch.
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

        self._problem = problem
        self._bounder = bounder
        self._attack = attack
        self._observer = observer or Observer()
        self._without = without
        self._rule = activation_rule(branching)
        self._random = torch.Generator().manual_seed(0)
        if not bounder.takes_batches:
            raise UnsupportedOperatorError("The host's graph of this model takes one point at a time.")
        self._backward = Backward(bounder.module)

    def run(self, objective: Objective, deadline: Deadline) -> SearchResult:
        """Search. Each box and disjunct that is still open in `objective` gets its share of the time left."""
        result = SearchResult(proved=True)
        self._observer.search_starts(int(objective.exists.sum()))
        for box_number in objective.exists.any(dim=1).nonzero().flatten().tolist():
            found = self._search_box(objective, box_number, deadline, result)
            if found or not result.proved or deadline.passed:
                result.proved = result.proved and not found and not deadline.passed
                return result
        return result

    def _search_box(self, objective: Objective, box_number: int, deadline: Deadline, result: SearchResult) -> bool:
        """Prove all disjuncts of one box. Returns whether a counterexample ended the search."""
        from zonoplug.lirpa.tuning import tune_shares

        box = Box(
            self._problem.box.lower[box_number : box_number + 1], self._problem.box.upper[box_number : box_number + 1]
        )
        self._hulls = self._bounder.hulls(box)
        self._layout = NeuronLayout(self._backward, self._hulls)
        self._box, self._box_number = box, box_number
        self._magnitudes: dict[str, Tensor] | None = None
        aims = Aims.of(objective, box_number)
        for steps in ROOT_STEPS:
            refined = "refined-hulls" not in self._without
            slopes = self._tighten(box, box_number, steps, deadline, aims.all_rows) if refined else {}
            parts = []
            for piece in torch.arange(len(aims)).split(BATCH):
                part = self._layout.root(self._hulls, len(piece))
                part.bound, _ = self.bound(part, aims.pick(piece), ROOT_BOUND_STEPS)
                self._check_root(part.bound, aims.pick(piece))
                result.subdomains += len(part)
                parts.append(part)
                if deadline.passed:
                    result.proved = False
                    return False
            root = SignSubdomains.join(parts)
            open_ = ~(root.bound > 0)
            self._observer.signs(root, open_, root.bound, 0)
            self.leaves(root.pick(~open_), aims.pick(~open_))
            aims, root = aims.pick(open_), root.pick(open_)
            if not len(aims):
                return False
            if "tuned-planes" not in self._without:
                rows, goal = aims.all_rows, aims.goal.flatten()
                tune_shares(self._backward, box, self._hulls, rows, goal[None], deadline)
        trees = [SignTree.of(root.pick(at), aims.pick(at)) for at in root.bound.argsort(descending=True).split(1)]
        if slopes and "hull-tree" not in self._without:
            self._close(trees, deadline.part(FIRST_SHARE), result, DEEPEST)
            if trees and result.counterexample is None and not deadline.passed:
                self._by_hulls(trees, root, aims, slopes, deadline.part(HULL_SHARE), result)
        self._close(trees, deadline, result)
        result.proved &= not trees
        return result.counterexample is not None

    def _close(
        self, trees: list[SignTree], deadline: Deadline, result: SearchResult, deepest: float = torch.inf
    ) -> None:
        """Go on with trees, one after another, and take away those that are proved, until one resists."""
        while trees and self.search(trees[0], deadline, result, deepest=deepest):
            done = trees.pop(0)
            for part in done.closed:
                self.leaves(part, done.aim.pick(torch.zeros(len(part), dtype=torch.int64)))

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
        hulls = HullTree(self, self._bounder.module, self._box, self._hulls, self._layout, slopes, clips, recording)
        wanted = torch.isin(aims.number, torch.cat([tree.aim.number for tree in trees]))
        left = hulls.run(root.pick(wanted), aims.pick(wanted), deadline, result)
        trees[:] = [tree for tree in trees if int(tree.aim.number) in left]

    def _tighten(
        self, box: Box, box_number: int, steps: int, deadline: Deadline, rows: Tensor
    ) -> dict[str, list[NeuronSlopes]]:
        """Tighten the root's hulls by backward bounds, and compare them with sampled points before they count."""
        from zonoplug.lirpa.refine import refine_hulls

        module = self._bounder.module
        slopes: dict[str, list[NeuronSlopes]] = {}
        hulls = refine_hulls(module, box, self._hulls, steps, deadline.part(0.4), slopes, rows)
        points = self._attack.points[self._attack.groups == box_number][:CHECKED_POINTS]
        if not points.shape[0]:
            points = box.sample(CHECKED_POINTS)[:, 0]
        for name in (at.source for at in self._layout.places):
            with torch.no_grad():
                values = module(points, final_node_name=name)
            allowed = 256 * torch.finfo(values.dtype).eps * values.abs().max()
            outside = torch.maximum(hulls[name].lower - values, values - hulls[name].upper).max()
            if bool(outside > allowed):
                raise BrokenMethodError(
                    f"hulls are broken on this model: a sampled point lies {float(outside):.3g} outside at {name!r}"
                )
        self._hulls = hulls
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
            part.bound, scores = self.bound(part, tree.aim, SEARCH_STEPS)
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

    def leaves(self, part: SignSubdomains, aims: Aims) -> None:
        """These subdomains are proved, each for its aim, and the proof needs them."""
        self._observer.sign_leaves(self._box_number, aims.number, part, self._layout.sizes)

    def attack(self, result: SearchResult) -> bool:
        """Try the inputs at which the latest bounds were least."""
        if "inner-attack" in self._without:
            return False
        points = self._minimisers
        group = torch.full((points.shape[0],), self._box_number, dtype=torch.int64, device=points.device)
        result.counterexample = self._attack.try_points(points, group)
        return result.counterexample is not None

    def bound(self, part: SignSubdomains, aims: Aims, steps: int) -> tuple[Tensor, Tensor]:
        """Margins of the best mixture of rows, (n,), and scores for splits, (n, neurons). Updates the multipliers.

            max over weights w >= 0 of sum 1, alpha, beta  of  the lower bound of  w . (rows y - goal)

        If some point of the subdomain met every row, no mixture could be above 0.

        Args:
            aims: one for each subdomain, or one for all.
        """
        from zonoplug.lirpa.ascent import Adam

        count, box = len(part), self._box
        many = Box(box.lower.expand(count, *box.lower.shape[1:]), box.upper.expand(count, *box.upper.shape[1:]))
        hulls = self._layout.hulls(part.lower, part.upper, self._hulls)
        sides = self._backward.sides(hulls)
        alpha, beta = (value.clone().requires_grad_(True) for value in (part.alpha, part.beta))
        weights = aims.goal.new_zeros(count, aims.goal.shape[1]).requires_grad_(True)
        climber = Adam([alpha, beta, weights], [ALPHA_RATE, BETA_RATE, 0.3], decay=0.96)
        best = aims.goal.new_full((count,), -torch.inf)
        at_lower = torch.zeros_like(
            many.lower
        )  # the mean share of steps that used an input's lower end, the later ones most
        kept_alpha, kept_beta, kept_weights = part.alpha, part.beta, weights.detach()
        for step in range(steps + 1):
            with torch.enable_grad():
                mixture = weights.masked_fill(~aims.there, -torch.inf).softmax(dim=1).unsqueeze(1)
                chosen = self._layout.multipliers(alpha, beta, part.sign)
                rows = mixture @ aims.rows
                passed = self._backward.bound(many, hulls, rows, chosen, sides)
                margin = passed.lower[:, 0] - (mixture @ aims.goal.unsqueeze(2))[:, 0, 0]
                gain = margin.clamp(max=0.1).sum()
            with torch.no_grad():
                safe = margin - self._allowance(passed, rows)[:, 0]  # each step has an allowance of its own
                better = (safe > best).unsqueeze(1)
                kept_alpha, kept_beta = (
                    torch.where(better, now, kept) for now, kept in ((alpha, kept_alpha), (beta, kept_beta))
                )
                kept_weights = torch.where(better, weights, kept_weights)
            best = torch.fmax(best, safe)
            low = (passed.inputs[:, 0].detach() > 0).to(margin.dtype)
            at_lower = at_lower + (MEAN_SHARE if step else 1.0) * (low - at_lower)
            if step == steps or bool((best > 0).all()):
                break
            climber.climb(gain)
            with torch.no_grad():
                alpha.clamp_(0, 1)
                beta.clamp_(min=0)
        part.alpha, part.beta, self._weights = kept_alpha, kept_beta, kept_weights
        at_input = passed.inputs[:, 0].detach()
        self._minimisers = torch.where(at_input > 0, many.lower, many.upper)
        coefficients = self._layout.coefficients(passed)
        point = many.upper - at_lower * (many.upper - many.lower)
        values = partial(self._layout.values, self._bounder.module, point)
        facts = ActivationFacts(
            part.lower, part.upper, coefficients, part.alpha, part.open_neurons, values, self._random
        )
        return best, open_scores(self._rule, facts)

    def unsafe(self, part: SignSubdomains, aim: Aims) -> UnsafeRow:
        """Where one aim may fail, after `bound` has optimised its multipliers: the constraint that clips hulls."""
        from zonoplug.lirpa.clipped_hulls import UnsafeRow

        with torch.no_grad():
            weights = self._weights.masked_fill(~aim.there, -torch.inf).softmax(dim=1).unsqueeze(1)
            row = weights @ aim.rows
            chosen = self._layout.multipliers(part.alpha, part.beta, part.sign)
            hulls = self._layout.hulls(part.lower, part.upper, self._hulls)
            passed = self._backward.bound(self._box, hulls, row, chosen)
            goal = weights @ aim.goal.unsqueeze(2)
        return UnsafeRow(self._backward, row, goal[:, :, 0] + self._allowance(passed, row), chosen)

    def _allowance(self, passed: LinearBounds, rows: Tensor) -> Tensor:
        """What rounding may move the rows, (n, rows), with the magnitudes on the whole box."""
        if self._magnitudes is None:
            self._magnitudes = self._backward.magnitudes(self._box, self._hulls)
        return self._backward.allowance(
            passed, rows.expand(passed.lower.shape[0], -1, -1), self._hulls, self._magnitudes
        )

    def _check_root(self, bound: Tensor, aims: Aims) -> None:
        """A bound on a whole box that lies above what a sampled point of it reaches on every row is wrong."""
        outputs = self._attack.outputs[self._attack.groups == self._box_number]
        if outputs.shape[0]:
            values = torch.einsum("po,amo->pam", outputs, aims.rows) - aims.goal
            reached = values.masked_fill(~aims.there, -torch.inf).amax(dim=2).amin(dim=0)
            if bool((bound > reached + 1e-6 * reached.abs().clamp(min=1)).any()):
                raise BrokenMethodError(
                    "backward bounds are broken on this model: a sampled point lies below its bound"
                )
