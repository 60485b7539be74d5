"""What symbol reduction does to an explanation: how maps drift, and how the unattributed mass grows.

Reducing symbols that are not the input's moves their mass to the box and leaves every a_i as it was at that point of
the network. Behind it, wider pre-activation bounds choose other relaxations, so the a_i of the output may still change.
A reduction that takes input symbols takes their pixels out of the map.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.domain.input_sets import InputSet
from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Interval
from zonoplug.errors import ZonoplugError
from zonoplug.explain.decision import Decision
from zonoplug.explain.influence import Influence, decompose
from zonoplug.explain.metrics import spearman, top_agreement
from zonoplug.lirpa.forward.options import PropagationOptions
from zonoplug.lirpa.forward.propagation import Propagation, propagate
from zonoplug.lirpa.module import ZonotopeModule
from zonoplug.reduction import REDUCTIONS, AboveSymbols, Reduction
from zonoplug.relaxations import relu

TOP_SHARE = 0.05


def reduced_influence(
    module: ZonotopeModule,
    input_set: InputSet,
    decision: Decision,
    reduction: Reduction | None,
    max_symbols: int = 0,
    protect_inputs: bool = True,
    known: Mapping[str, Interval] | None = None,
) -> tuple[Influence, Propagation]:
    """Symbol influence through a network whose zonotopes are reduced on the way.

    Args:
        reduction: None for none.
        max_symbols: the budget at every layer.
        protect_inputs: whether the input set's symbols stay, even above the budget.
        known: bounds of nodes that hold from elsewhere; with an unreduced propagation's, relaxations stay what they
            were.
    """
    symbols = SymbolSource()
    name = module.input_name[0]
    with torch.no_grad():
        inputs = input_set.to_zonotope(symbols, name)
        options = PropagationOptions()
        if reduction is not None:
            options = PropagationOptions(reduction, AboveSymbols(max_symbols), protect_inputs)
        preactivations = {name: input_set.interval_hull(), **(known or {})}
        slopes = _chords(module, known or {})
        propagation = propagate(
            module, {name: inputs}, symbols, options, decision.rows, known=preactivations, slopes=slopes
        )
    return decompose(propagation, module, inputs, decision), propagation


def _chords(module: ZonotopeModule, preactivations: Mapping[str, Interval]) -> dict[str, Tensor]:
    """ReLU -> the slope that an unreduced propagation takes on these bounds; a box in a reduced one may change it."""
    relus = [node for node in module._modules.values() if type(node).__name__ == "BoundRelu"]
    return {
        node.name: relu(*preactivations[node.inputs[0].name]).slope
        for node in relus
        if node.inputs[0].name in preactivations
    }


@dataclass(frozen=True, slots=True)
class Drift:
    """One reduction's effect on one explanation, for the margin over the nearest rival of the unreduced one.

    Attributes:
        reduction, max_symbols, protected: what was done.
        spearman: rank correlation of |a_i| with the unreduced map.
        top: share of the most influential inputs that both maps agree on.
        lost: share of inputs that had influence and have none now.
        unattributed: mass that no input explains, as a multiple of the unreduced one.
        lower: the margin's lower bound.
        seconds: of the propagation.
    """

    reduction: str
    max_symbols: int
    protected: bool
    spearman: float
    top: float
    lost: float
    unattributed: float
    lower: float
    seconds: float


def drift(
    module: ZonotopeModule,
    input_set: InputSet,
    decision: Decision,
    budgets: Sequence[int],
    reductions: Sequence[str] | None = None,
    protect: Sequence[bool] = (False, True),
) -> list[Drift]:
    """The effect of each reduction and budget on the explanation of one input.

    Protected inputs need a budget of at least their number; smaller ones are left out. So is a reduction that refuses
    a budget.

    Args:
        reductions: names in `REDUCTIONS`; all of them by default.
    """
    plain, _ = reduced_influence(module, input_set, decision, None)
    row = int(plain.nearest()[0])
    whole = plain.magnitude()[0, row].flatten()
    mass = float(plain.unattributed[0, row])
    found = []
    for name in REDUCTIONS.names() if reductions is None else reductions:
        for budget in budgets:
            for kept in protect:
                if kept and budget < plain.symbols.shape[2]:
                    continue
                start = time.perf_counter()
                try:
                    reduced, _ = reduced_influence(module, input_set, decision, REDUCTIONS.get(name)(), budget, kept)
                except ZonoplugError:
                    continue
                seconds = time.perf_counter() - start
                part = reduced.magnitude()[0, row].flatten()
                gone = (part == 0) & (whole > 0)
                found.append(
                    Drift(
                        name,
                        budget,
                        kept,
                        spearman(whole, part),
                        top_agreement(whole, part, max(1, int(TOP_SHARE * whole.numel()))),
                        float(gone.sum()) / max(int((whole > 0).sum()), 1),
                        float(reduced.unattributed[0, row]) / mass if mass > 0 else float("nan"),
                        float(reduced.lower[0, row]),
                        seconds,
                    )
                )
    return found
