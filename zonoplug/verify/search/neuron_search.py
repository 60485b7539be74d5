"""Narrower pre-activation bounds of a whole input box: branch and bound on single neurons, layer by layer.

    z  >=  least over leaves of the lower bound of z on a leaf,    leaves: signs fixed in the layers in front of z

and the same for -z. The worst leaves of every bound are split in two, those of all neurons of a layer in one batch.
Each layer uses the pre-activation bounds of the layers before it, so that what is gained grows from layer to layer.

Source: after Tjeng et al., ICLR 2019 (bounds tightened by exact solvers); Wang et al., NeurIPS 2021 (multipliers).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.bounds.targets import Targets
from zonoplug.verify.bounds.unstable_bounds import UnstableBounds
from zonoplug.verify.branching.activations import ActivationRule
from zonoplug.verify.subdomains.batch import Batch
from zonoplug.verify.subdomains.neuron_layout import Place
from zonoplug.verify.subdomains.relu_phases import ReluSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.unstable_network import Forms, UnstableNetwork

FIRST_STEPS, STEPS = 15, 3
BATCH = 512
FEWEST = 4  # rounds of splits, for fewer of which it is not worth to begin
LEAF_BYTES = 256 * 2**20  # of one layer


class _Now(NamedTuple):
    """What is known of a layer in one bound-tightening pass.

    Attributes:
        network: the layers before.
        bounds: over it.
        neurons: (m,) places of the unstable neurons in the flattened layer.
        forms: of these, in the unstable neurons of the layers before.
        preactivation: of the layer.
    """

    network: UnstableNetwork
    bounds: UnstableBounds
    neurons: Tensor
    forms: Forms
    preactivation: Interval


class NeuronSearch:
    """Narrows pre-activation bounds of one input box, pass after pass; leaves are kept from one to the next.

    Args:
        module: the host's, or the same in double precision; its operators are ReLUs, or exact.
        box: (1, *input_shape).
        rule: scores neurons for splits.
        places: the ReLUs whose inputs are bounded, in topological order.
    """

    def __init__(self, module: Any, box: Box, rule: ActivationRule, places: list[Place]) -> None:
        from zonoplug.lirpa.backward.passes import Backward

        self._box, self._rule = box, rule
        network = box.lower.dtype
        self._passes = [(at, Backward(module, at.source, network=network)) for at in places]
        self._trees: dict[str, _Trees] = {}

    def tighten(
        self, preactivations: Mapping[str, Interval], leaves: int, deadline: Deadline
    ) -> tuple[dict[str, Interval], UnstableNetwork, int]:
        """Narrower pre-activation bounds, by node name, (1, *shape); the network in affine form over what is unstable
        then; leaves bounded for it.

        Args:
            preactivations: that hold on the box, at least as narrow as in the bound-tightening pass before.
            leaves: that each bound may have at the end; 0 to leave the pre-activation bounds as they are.
            deadline: each layer gets the same part of the time that is left.
        """
        from zonoplug.lirpa.backward.refinement import unit_rows
        from zonoplug.lirpa.backward.unstable_network import UnstableNetwork

        most = sum(len(_open(preactivations[at.source])) for at, _ in self._passes)
        found, network, bounded = dict(preactivations), UnstableNetwork(self._box, most), 0
        for done, (at, passes) in enumerate(self._passes):
            preactivation = found[at.source]
            neurons = _open(preactivation)
            if not len(neurons):
                network.append(at.relu, neurons, preactivation)
                continue
            forms = network.forms_of(passes, found, unit_rows(neurons, passes.size, preactivation.lower))
            if leaves and len(network):
                trees = self._trees.get(at.relu)
                if trees is None or not trees.grown:
                    trees = self._trees[at.relu] = _Trees(neurons, network)
                limit = deadline.part(1 / (len(self._passes) - done))
                now = _Now(network, UnstableBounds(network, self._rule), neurons, forms, preactivation)
                bounded += trees.grow(now, leaves, limit)
                found[at.source] = preactivation = trees.narrowed(preactivation)
                still = torch.isin(neurons, _open(preactivation))
                neurons, forms = neurons[still], forms.pick(still)
            network.append(at.relu, neurons, preactivation, forms)
        return found, network, bounded


def _open(preactivation: Interval) -> Tensor:
    """Flat places of the unstable neurons, (m,)."""
    from zonoplug.lirpa.backward.unstable_network import unstable_places

    return unstable_places(preactivation).nonzero().flatten()


@dataclass(slots=True, eq=False)
class _Leaves(Batch):
    """Leaves of several trees.

    Attributes:
        tree: (n,) whose.
        bound: (n,)
        neuron: (n,) where to split, -1 where no neuron is unstable.
        alpha, beta, sign: (n, columns) of the neurons that were unstable at first.
    """

    tree: Tensor
    bound: Tensor
    neuron: Tensor
    alpha: Tensor
    beta: Tensor
    sign: Tensor

    def put(self, place: Tensor | slice, leaves: _Leaves) -> None:
        """Write over some entries."""
        for mine, new in zip(self.parts(), leaves.parts(), strict=True):
            mine[place] = new


class _Trees:
    """A tree of leaves for each end of some pre-activation bounds; the bound of an end is the least of its leaves'.

    Args:
        neurons: (m,) places in the flattened layer; the trees are for their lower ends, then for their upper ones.
        network: the layers before.
    """

    def __init__(self, neurons: Tensor, network: UnstableNetwork) -> None:
        self._neurons, self._columns = neurons, network.numbers
        self._used = 0
        self._store: _Leaves | None = None

    def __len__(self) -> int:
        return 2 * len(self._neurons)

    @property
    def grown(self) -> bool:
        """Whether there are more leaves than trees; they are of the neurons that were unstable when they were made."""
        return self._used > len(self)

    @property
    def _leaves(self) -> _Leaves:
        assert self._store is not None
        return self._store.pick(slice(0, self._used))

    def narrowed(self, preactivation: Interval) -> Interval:
        """The bounds of the layer, cut at the trees' bounds."""
        lower, upper = preactivation.lower.flatten().clone(), preactivation.upper.flatten().clone()
        below, above = self._bound().chunk(2)
        lower[self._neurons] = torch.fmax(lower[self._neurons], below)
        upper[self._neurons] = torch.fmin(upper[self._neurons], -above)
        return Interval(lower.reshape(preactivation.lower.shape), upper.reshape(preactivation.upper.shape))

    def _bound(self) -> Tensor:
        """(trees,), NaN for those that were not begun."""
        found = torch.full((len(self),), torch.nan, device=self._neurons.device)
        if self._used:
            leaves = self._leaves
            found = found.to(leaves.bound).scatter_reduce(0, leaves.tree, leaves.bound, "amin", include_self=False)
        return found

    def grow(self, now: _Now, limit: int, deadline: Deadline) -> int:
        """Split the worst leaves of each tree, until it has `limit` or its bound is above 0.

        Returns:
            how many leaves were bounded.
        """
        ends = torch.cat(
            [now.preactivation.lower.flatten()[self._neurons], -now.preactivation.upper.flatten()[self._neurons]]
        )
        open_ = torch.isin(self._neurons, now.neurons).repeat(2)
        limit = min(
            limit, LEAF_BYTES // (len(self) * (3 * len(self._columns) + 2) * now.preactivation.lower.element_size())
        )
        bounded = 0
        if not self._used:
            start = time.monotonic()
            for trees in torch.arange(len(self), device=ends.device).split(BATCH):
                if deadline.passed:
                    return bounded
                whole = now.bounds.root(len(trees))
                root = _Leaves(trees, ends[trees], trees, whole.alpha, whole.beta, whole.sign)
                self._add(self._bounded(now, root, FIRST_STEPS))
                bounded += len(trees)
            level = 2 * (time.monotonic() - start) * (STEPS + 1) / (FIRST_STEPS + 1)
            if FEWEST * level > deadline.left_seconds:
                return bounded
        while True:
            worst = self._worst(open_, limit)
            if not worst.shape[0]:
                return bounded
            for slots in worst.split(BATCH // 2):
                if deadline.passed:
                    return bounded
                found = self._bounded(now, _halves(self._leaves.pick(slots)), STEPS)
                self._leaves.put(slots, found.pick(slice(0, len(slots))))
                self._add(found.pick(slice(len(slots), None)))
                bounded += len(found)

    def _worst(self, open_: Tensor, limit: int) -> Tensor:
        """The leaves to split next, (m,): the worst ones of each tree that is wanted, more of each if these are few."""
        leaves = self._leaves
        sizes = torch.bincount(leaves.tree, minlength=len(self))
        wanted = open_ & (self._bound() < 0)
        order = leaves.bound.argsort()
        order = order[leaves.tree[order].argsort(stable=True)]
        tree = leaves.tree[order]
        rank = torch.arange(len(order), device=order.device) - (sizes.cumsum(0) - sizes)[tree]
        each = max(BATCH // 2 // max(int((wanted & (sizes < limit)).sum()), 1), 1)
        chosen = wanted[tree] & (rank < (limit - sizes).clamp(max=each)[tree])
        chosen &= (leaves.bound[order] < 0) & (leaves.neuron[order] >= 0)
        return order[chosen]

    def _bounded(self, now: _Now, leaves: _Leaves, steps: int) -> _Leaves:
        """Leaves with their bounds. One with a split constraint that the box does not allow holds no point."""
        network = now.network
        own = torch.searchsorted(self._columns, network.numbers)
        part = ReluSubdomains(
            network.lower.expand(len(leaves), -1).masked_fill(leaves.sign[:, own] > 0, 0.0),
            network.upper.expand(len(leaves), -1).masked_fill(leaves.sign[:, own] < 0, 0.0),
            leaves.sign[:, own],
            leaves.alpha[:, own],
            leaves.beta[:, own],
            leaves.bound,
        )
        forms = now.forms.pick(torch.searchsorted(now.neurons, self._neurons[leaves.tree % len(self._neurons)]))
        side = torch.where(leaves.tree < len(self._neurons), 1.0, -1.0).to(part.lower).unsqueeze(1)
        bound, scores = now.bounds.bound(part, Targets.of(forms, side), steps)
        bound = torch.fmax(leaves.bound, bound)
        lower, upper = network.all_lower[self._columns], network.all_upper[self._columns]
        empty = ((leaves.sign > 0) & (upper < 0)) | ((leaves.sign < 0) & (lower > 0))
        bound = bound.masked_fill(empty.any(dim=1), torch.inf)
        value, neuron = scores.max(dim=1)
        alpha, beta = leaves.alpha.clone(), leaves.beta.clone()
        alpha[:, own], beta[:, own] = part.alpha, part.beta
        return _Leaves(leaves.tree, bound, own[neuron].masked_fill(~(value >= 0), -1), alpha, beta, leaves.sign)

    def _add(self, leaves: _Leaves) -> None:
        needed = self._used + len(leaves)
        if self._store is None:
            self._store = leaves.copy()
        while len(self._store) < needed:
            self._store = _Leaves.join([self._store, self._store])
        self._store.put(slice(self._used, needed), leaves)
        self._used = needed


def _halves(leaves: _Leaves) -> _Leaves:
    """The pieces of leaves: where their neurons are positive, and then where they are negative."""
    phases = leaves.alpha.new_ones(2 * len(leaves), 1)
    phases[len(leaves) :] = -1.0
    both = _Leaves.join([leaves, leaves])
    both.sign.scatter_(1, both.neuron.unsqueeze(1), phases)
    return both
