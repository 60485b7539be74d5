"""Proofs on reduced networks: from few neurons to all of them, until the specification is proved.

A reduced network's outputs, for all values of its interval biases, include the original's on the same input box (the
argument is in `reduction.neuron_merging`). So a specification that holds for the reduced network holds for the original
one. What does not hold for the reduced network says nothing: the next larger one is tried, and at rate 1 it is the
original one.

Source: Ladner & Althoff, Fully Automatic Neural Network Reduction for Formal Verification, arXiv 2305.01932.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.rounding import rounding
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import SettingError
from zonoplug.reduction.neuron_merging import NeuronMerging
from zonoplug.verify.problem.problem import Objective, Problem

if TYPE_CHECKING:
    from zonoplug.reduction.reduced_network import ReducedNetwork

RATES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """A zonotope bound of one input box through the network reduced to one rate.

    Attributes:
        rate: the share of each layer's neurons that was allowed to stay.
        proved: whether every disjunct is out of reach.
        margin: the least over the disjuncts of the best lower bound of a row's margin.
        neurons: how many stayed in each layer that merges.
        num_symbols: of the output zonotope.
        seconds: for reducing and bounding.
        network: what was bounded, where it was written out; its outputs are the specification's rows.
    """

    rate: float
    proved: bool
    margin: float
    neurons: tuple[int, ...]
    num_symbols: int
    seconds: float
    network: ReducedNetwork | None = None


@dataclass(frozen=True, slots=True)
class ReductionProof:
    """What was tried on each input box, smallest rate first.

    Attributes:
        attempts: for each box; boxes behind one that is not proved are left out.
        complete: whether every box was tried.
    """

    attempts: tuple[tuple[Attempt, ...], ...]
    complete: bool

    @property
    def proved(self) -> bool:
        """Whether the specification holds, for the reduced networks and so for the original one."""
        return self.complete and all(tried and tried[-1].proved for tried in self.attempts)

    @property
    def rate(self) -> float | None:
        """The smallest of the rates at which every box is proved by itself or a smaller one; None if not proved."""
        return max((tried[-1].rate for tried in self.attempts), default=None) if self.proved else None


def prove_by_merging(
    problem: Problem,
    module: Any,
    rates: Sequence[float] = RATES,
    merging: NeuronMerging | None = None,
    chain: ReducedNetwork | None = None,
) -> ReductionProof:
    """Prove a specification on the smallest reduced network that allows it.

    Args:
        problem: what is to be proved.
        module: the host's graph of the problem's model.
        rates: increasing, in (0, 1].
        merging: buckets and tracking; its rate is replaced.
        chain: the network as layers, from `lirpa.network_reduction.chain_of`: reduced networks are written out then,
            as torch modules. None merges inside the propagation over the graph, whatever network it is.
    Raises:
        SettingError: the rates do not increase.
    """
    if not rates or any(later <= earlier for earlier, later in pairwise(rates)):
        raise SettingError(f"prove_by_merging: rates are {tuple(rates)}, and must increase, with at least one.")
    merging = merging or NeuronMerging()
    boxes: list[tuple[Attempt, ...]] = []
    for index in range(problem.objective.num_boxes):
        box = problem.box.pick(slice(index, index + 1))
        boxes.append(_attempts(problem.objective, module, box, torch.tensor([index]), rates, merging, chain))
        if not boxes[-1][-1].proved:
            break
    return ReductionProof(tuple(boxes), len(boxes) == problem.objective.num_boxes)


def _attempts(
    objective: Objective,
    module: Any,
    box: Box,
    group: Tensor,
    rates: Sequence[float],
    merging: NeuronMerging,
    chain: ReducedNetwork | None,
) -> tuple[Attempt, ...]:
    tried: list[Attempt] = []
    group = group.to(box.lower.device)
    for rate in rates:
        started = time.perf_counter()
        chosen = replace(merging, rate=rate)
        with torch.no_grad():
            rows = objective.rows(group)
            if chain is None:
                bounds, neurons, num_symbols = _in_propagation(module, box, rows, chosen)
                network = None
            else:
                bounds, network, num_symbols = _written_out(chain, box, rows, chosen)
                neurons = tuple(kept for kept, _ in network.neurons)
            margins = objective.margins(bounds.lower, group)
            proved = bool(objective.excluded(margins, group).all())
            margin = float(objective.best(margins, group).min())
        seconds = time.perf_counter() - started
        tried.append(Attempt(rate, proved, margin, neurons, num_symbols, seconds, network))
        if proved:
            break
    return tuple(tried)


def _in_propagation(
    module: Any, box: Box, rows: Tensor, merging: NeuronMerging
) -> tuple[Interval, tuple[int, ...], int]:
    from zonoplug.lirpa.network_reduction import propagate_merged

    propagation = propagate_merged(module, box, merging, rows, rounding="inference")
    return propagation.bounds, tuple(int(kept[0]) for kept in propagation.kept.values()), propagation.output.num_symbols


def _written_out(
    chain: ReducedNetwork, box: Box, rows: Tensor, merging: NeuronMerging
) -> tuple[Interval, ReducedNetwork, int]:
    from zonoplug.reduction.network_reduction import reduce_network

    with rounding("inference"):
        network, output = reduce_network(chain.followed_by(rows[0]), box, merging)
    return output.interval_hull(), network, output.num_symbols
