"""Branch and bound on the signs of ReLUs alone.

At the root the zonotope's hulls are tightened layer by layer. A subdomain fixes the signs of some pre-activations: its
hulls end at 0 there, and the fixed signs enter the backward bound by multipliers. Slopes and multipliers are optimised
in a batch and inherited by the pieces of a split. Where all else is exact, the network is written in its open ReLUs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder, BrokenMethodError
from zonoplug.verify.bounds.graph_bounds import SignBounds
from zonoplug.verify.branching.activations import activation_rule
from zonoplug.verify.observer import Observer
from zonoplug.verify.problem.problem import Objective, Problem
from zonoplug.verify.search.base import BoxwiseSearch, SearchResult
from zonoplug.verify.search.relu_tree import SignTree
from zonoplug.verify.search.tree_search import TreeSearch
from zonoplug.verify.search.unstable_search import OpenSearch, easiest_first
from zonoplug.verify.subdomains.relu_phases import Aims, SignSubdomains

if TYPE_CHECKING:
    from zonoplug.domain.zonotope import Interval

HULL_STEPS = 8  # gradient steps on the root's hulls, where bounds over plain ones do not do
ROOT_STEPS = 20
BATCH = 64
OPEN_BYTES = 512 * 2**20
CHECKED_POINTS = 64


class ActivationSearch(BoxwiseSearch):
    """Proves disjuncts one after another by splitting on ReLU signs.

    Args:
        problem, bounder, attack, observer, without: see `Search`.
        branching: which sign to fix: a name in `ACTIVATION_RULES`, or "auto".
        trial: give up once it gains little.
    Raises:
        UnknownNameError: no rule is called so.
        UnsupportedOperatorError: the network has operators that backward bounds cannot pass, takes no batch, or has no
            ReLUs; or others than ReLUs, and this is a trial.
    """

    def __init__(
        self,
        problem: Problem,
        bounder: Bounder,
        attack: Attack,
        observer: Observer | None = None,
        without: Collection[str] = (),
        branching: str = "auto",
        trial: bool = False,
    ) -> None:
        from zonoplug.lirpa.backward.passes import Backward

        super().__init__(problem, bounder, attack, observer, without)
        self._rule = activation_rule(branching)
        if not bounder.takes_batches:
            raise UnsupportedOperatorError("The host's graph of this model takes one point at a time.")
        self._backward = Backward(bounder.module)
        self._trees = TreeSearch(self._observer, self._attacked_here, self._leaves)
        if not self._backward.relus:
            raise UnsupportedOperatorError("The network has no ReLUs, and signs of nothing else are split here.")
        self._trial = trial
        if trial and not self._is_open:
            raise UnsupportedOperatorError("The network is not to be written in its open ReLUs.")

    def _search_box(self, objective: Objective, deadline: Deadline, result: SearchResult) -> bool:
        box = self._box
        self.bounds = SignBounds(self._bounder.module, self._backward, box, self._bounder.hulls(box), self._rule)
        aims = Aims.of(objective, self._box_number)
        self._tighten(0, deadline, aims.all_rows)
        if self._is_open and self._fits_memory:
            left = self._openly(aims, deadline, result)
        else:
            left = len(aims) if self._trial else self._plainly(aims, deadline, result)
        return not left and result.counterexample is None and not deadline.passed

    @property
    def _is_open(self) -> bool:
        """Whether the network is to be written in its open ReLUs. Leaves of such searches are not recorded."""
        left_out = "open-network" in self._without or self._observer.record is not None
        return self._backward.only_relus and not left_out

    @property
    def _fits_memory(self) -> bool:
        from zonoplug.lirpa.backward.unstable_network import OpenNetwork

        hulls = (self.bounds.hulls[at.source] for at in self.bounds.layout.places)
        return OpenNetwork.bytes_for(self._box, hulls) <= OPEN_BYTES

    def _plainly(self, aims: Aims, deadline: Deadline, result: SearchResult) -> int:
        """Prove aims by backward bounds through the host's graph. Returns how many are left."""
        from zonoplug.lirpa.backward.tuning import tune_shares

        for last in (False, True):
            root, aims = self._root(aims, deadline, result)
            if last or not len(aims) or deadline.passed:
                break
            if "tuned-planes" not in self._without:
                rows, goal = aims.all_rows, aims.goal.flatten()
                tune_shares(self._backward, self._box, self.bounds.hulls, rows, goal[None], deadline)
            self._tighten(HULL_STEPS, deadline, aims.all_rows)
        trees = [SignTree.of(self.bounds, root.pick(at), aims.pick(at)) for at in easiest_first(root)]
        self._trees.close(trees, deadline, result)
        return len(trees)

    def _root(self, aims: Aims, deadline: Deadline, result: SearchResult) -> tuple[SignSubdomains, Aims]:
        """The whole box for each aim that its bound leaves open."""
        parts = []
        for piece in torch.arange(len(aims)).split(BATCH):
            part = self.bounds.layout.root(self.bounds.hulls, len(piece))
            if not deadline.passed:
                part.bound, _ = self.bounds.bound(part, aims.pick(piece), ROOT_STEPS)
                self._check_root(part.bound, aims.pick(piece))
                result.subdomains += len(part)
            parts.append(part)
        root = SignSubdomains.join(parts)
        open_ = ~(root.bound > 0)
        self._observer.signs(root, open_, root.bound, 0)
        self._leaves(root.pick(~open_), aims.pick(~open_))
        return root.pick(open_), aims.pick(open_)

    def _openly(self, aims: Aims, deadline: Deadline, result: SearchResult) -> int:
        """Prove aims over the network written in its open ReLUs. Returns how many are left."""
        from zonoplug.lirpa.backward.passes import Backward

        module = self._bounder.precise_module or self._bounder.module
        backward = Backward(module, network=self._problem.dtype)
        what = module, backward, self._box, self._rule, self.bounds.layout.places, self._trees
        search = OpenSearch(*what, self._check_hulls, self._check_root, self._without, self._trial)
        return len(search.run(self.bounds.hulls, aims, deadline, result))

    def _tighten(self, steps: int, deadline: Deadline, rows: Tensor) -> None:
        """Tighten the root's hulls by backward bounds."""
        from zonoplug.lirpa.backward.refinement import refine_hulls

        if "refined-hulls" in self._without:
            return
        hulls = refine_hulls(self._bounder.module, self._box, self.bounds.hulls, steps, deadline.part(0.4), rows)
        self._check_hulls(hulls)
        self.bounds.hulls = hulls

    def _check_hulls(self, hulls: Mapping[str, Interval]) -> None:
        """Hulls on the whole box, by node name, that exclude what a sampled point reaches are wrong."""
        module, box = self._bounder.module, self._box
        points = self._attack.points[self._attack.groups == self._box_number][:CHECKED_POINTS]
        if not points.shape[0]:
            points = box.sample(CHECKED_POINTS)[:, 0]
        for name in (at.source for at in self.bounds.layout.places):
            with torch.no_grad():
                values = module(points, final_node_name=name)
            allowed = 256 * torch.finfo(values.dtype).eps * values.abs().max()
            outside = torch.maximum(hulls[name].lower - values, values - hulls[name].upper).max()
            if not bool(outside <= allowed):
                raise BrokenMethodError(
                    f"hulls are broken on this model: a sampled point lies {float(outside):.3g} outside at {name!r}"
                )

    def _leaves(self, part: SignSubdomains, aims: Aims) -> None:
        """These subdomains are proved, each for its aim, and the proof needs them."""
        self._observer.sign_leaves(self._box_number, aims.number, part, self.bounds.layout.sizes)

    def _attacked_here(self, points: Tensor, result: SearchResult) -> bool:
        return self._attacked(points, self._box_number, result)
