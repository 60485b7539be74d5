"""Branch and bound on the phases of ReLUs alone.

At the root the zonotope's pre-activation bounds are tightened layer by layer. A subdomain puts split constraints on
some pre-activations: its pre-activation bounds end at 0 there, and the split constraints enter the backward bound by
multipliers. Slopes and multipliers are optimised in a batch and inherited by the pieces of a split. Where all else is
exact, the network is put into affine form over its unstable neurons.
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
from zonoplug.verify.bounds.graph_bounds import GraphBounds
from zonoplug.verify.branching.activations import activation_rule
from zonoplug.verify.observer import Observer
from zonoplug.verify.problem.problem import Objective, Problem
from zonoplug.verify.search.base import BoxwiseSearch, SearchResult
from zonoplug.verify.search.relu_tree import ReluTree
from zonoplug.verify.search.tree_search import TreeSearch
from zonoplug.verify.search.unstable_search import UnstableSearch, easiest_first
from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains

if TYPE_CHECKING:
    from zonoplug.domain.zonotope import Interval

REFINEMENT_STEPS = 8  # gradient steps on the root's pre-activation bounds, where bounds over plain ones do not do
ROOT_STEPS = 20
BATCH = 64
FORM_BYTES = 512 * 2**20
CHECKED_POINTS = 64


class ActivationSearch(BoxwiseSearch):
    """Proves disjuncts one after another by splitting on the phases of ReLUs.

    Args:
        problem, bounder, attack, observer, without: see `Search`.
        branching: which neuron to split: a name in `ACTIVATION_RULES`, or "auto".
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
            raise UnsupportedOperatorError("The network has no ReLUs, and nothing else is split here.")
        self._trial = trial
        if trial and not self._is_affine_form:
            raise UnsupportedOperatorError("The network is not to be put into affine form over its unstable neurons.")

    def _search_box(self, objective: Objective, deadline: Deadline, result: SearchResult) -> bool:
        box = self._box
        self.bounds = GraphBounds(
            self._bounder.module, self._backward, box, self._bounder.preactivations(box), self._rule
        )
        properties = Properties.of(objective, self._box_number)
        self._tighten(0, deadline, properties.all_rows)
        if self._is_affine_form and self._fits_memory:
            left = self._over_affine_form(properties, deadline, result)
        else:
            left = len(properties) if self._trial else self._plainly(properties, deadline, result)
        return not left and result.counterexample is None and not deadline.passed

    @property
    def _is_affine_form(self) -> bool:
        """Whether the network is to be put into affine form over its unstable neurons.

        Leaves of such searches are not recorded.
        """
        left_out = "affine-form" in self._without or self._observer.record is not None
        return self._backward.only_relus and not left_out

    @property
    def _fits_memory(self) -> bool:
        from zonoplug.lirpa.backward.unstable_network import UnstableNetwork

        preactivations = (self.bounds.preactivations[at.source] for at in self.bounds.layout.places)
        return UnstableNetwork.bytes_for(self._box, preactivations) <= FORM_BYTES

    def _plainly(self, properties: Properties, deadline: Deadline, result: SearchResult) -> int:
        """Prove properties by backward bounds through the host's graph. Returns how many are left."""
        from zonoplug.lirpa.backward.tuning import tune_parameters

        for last in (False, True):
            root, properties = self._root(properties, deadline, result)
            if last or not len(properties) or deadline.passed:
                break
            if "tuned-linear-bounds" not in self._without:
                rows, goal = properties.all_rows, properties.goal.flatten()
                tune_parameters(self._backward, self._box, self.bounds.preactivations, rows, goal[None], deadline)
            self._tighten(REFINEMENT_STEPS, deadline, properties.all_rows)
        trees = [ReluTree.of(self.bounds, root.pick(at), properties.pick(at)) for at in easiest_first(root)]
        self._trees.close(trees, deadline, result)
        return len(trees)

    def _root(
        self, properties: Properties, deadline: Deadline, result: SearchResult
    ) -> tuple[ReluSubdomains, Properties]:
        """The whole box for each property that its bound leaves open."""
        parts = []
        for piece in torch.arange(len(properties)).split(BATCH):
            part = self.bounds.layout.root(self.bounds.preactivations, len(piece))
            if not deadline.passed:
                part.bound, _ = self.bounds.bound(part, properties.pick(piece), ROOT_STEPS)
                self._check_root(part.bound, properties.pick(piece))
                result.subdomains += len(part)
            parts.append(part)
        root = ReluSubdomains.join(parts)
        open_ = ~(root.bound > 0)
        self._observer.phases(root, open_, root.bound, 0)
        self._leaves(root.pick(~open_), properties.pick(~open_))
        return root.pick(open_), properties.pick(open_)

    def _over_affine_form(self, properties: Properties, deadline: Deadline, result: SearchResult) -> int:
        """Prove properties over the affine form over unstable neurons. Returns how many are left."""
        from zonoplug.lirpa.backward.passes import Backward

        module = self._bounder.precise_module or self._bounder.module
        backward = Backward(module, network=self._problem.dtype)
        what = module, backward, self._box, self._rule, self.bounds.layout.places, self._trees
        search = UnstableSearch(*what, self._check_bounds, self._check_root, self._without, self._trial)
        return len(search.run(self.bounds.preactivations, properties, deadline, result))

    def _tighten(self, steps: int, deadline: Deadline, rows: Tensor) -> None:
        """Tighten the root's pre-activation bounds by backward bounds."""
        from zonoplug.lirpa.backward.refinement import refine_bounds

        if "refined-bounds" in self._without:
            return
        preactivations = refine_bounds(
            self._bounder.module, self._box, self.bounds.preactivations, steps, deadline.part(0.4), rows
        )
        self._check_bounds(preactivations)
        self.bounds.preactivations = preactivations

    def _check_bounds(self, preactivations: Mapping[str, Interval]) -> None:
        """Pre-activation bounds on the whole box, by node name, that exclude what a sampled point reaches are wrong."""
        module, box = self._bounder.module, self._box
        points = self._attack.points[self._attack.groups == self._box_number][:CHECKED_POINTS]
        if not points.shape[0]:
            points = box.sample(CHECKED_POINTS)[:, 0]
        for name in (at.source for at in self.bounds.layout.places):
            with torch.no_grad():
                values = module(points, final_node_name=name)
            allowed = 256 * torch.finfo(values.dtype).eps * values.abs().max()
            outside = torch.maximum(preactivations[name].lower - values, values - preactivations[name].upper).max()
            if not bool(outside <= allowed):
                raise BrokenMethodError(
                    f"pre-activation bounds are broken on this model: a sampled point lies {float(outside):.3g} outside"
                    f" at {name!r}"
                )

    def _leaves(self, part: ReluSubdomains, properties: Properties) -> None:
        """These subdomains are proved, each for its property, and the proof needs them."""
        self._observer.relu_leaves(self._box_number, properties.number, part, self.bounds.layout.sizes)

    def _attacked_here(self, points: Tensor, result: SearchResult) -> bool:
        return self._attacked(points, self._box_number, result)
