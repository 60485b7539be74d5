"""Reductions during one propagation: when, to how many, and what the rule may know of the graph around."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from zonoplug.domain.symbols import SymbolSource
from zonoplug.domain.zonotope import Zonotope
from zonoplug.lirpa.forward.influence import Influences, constants_of
from zonoplug.lirpa.operators.all import Call, NotApplicableError, entry_for
from zonoplug.reduction import LiveValue, ReductionContext, ReductionReport, reduce_with_report
from zonoplug.reduction.base import NO_SYMBOLS
from zonoplug.reduction.columns import any_shared
from zonoplug.reduction.context import Ahead
from zonoplug.transformers.affine import Operand

if TYPE_CHECKING:
    from zonoplug.lirpa.forward.options import PropagationOptions
    from zonoplug.lirpa.fusion.plan import GraphPlan


class Reducer:
    """Reduces values of one propagation as its options say.

    Args:
        plan, module, inputs, symbols, options: as in the propagation.
        scoring: tells rules how values move the specification; None if nothing is known yet.
        measuring: the same for the reports, on the pre-activation bounds that this propagation will find; None for
            reports without losses.
    """

    def __init__(
        self,
        plan: GraphPlan,
        module: Any,
        inputs: Mapping[str, Operand],
        symbols: SymbolSource,
        options: PropagationOptions,
        scoring: Influences | None = None,
        measuring: Influences | None = None,
    ) -> None:
        self._plan, self._module, self._symbols, self._options = plan, module, symbols, options
        self._scoring, self._measuring = scoring, measuring
        self._fresh = 0
        self._layer = 0
        self._inputs = [value for value in inputs.values() if isinstance(value, Zonotope)]
        looks_ahead = options.reduction is not None and options.reduction.looks_ahead
        self._constants = constants_of(plan, module, inputs) if looks_ahead else {}
        self.reports: list[ReductionReport] = []

    def reduce(self, place: int, values: Mapping[str, Operand]) -> Operand:
        """The value of the node at `place` of the plan, reduced if it is due.

        Args:
            values: those that are still to be read, the node's own among them.
        """
        node, options = self._plan.order[place], self._options
        zonotope = values[node.name]
        if options.reduction is None or isinstance(zonotope, Tensor) or not zonotope.num_symbols:
            return zonotope
        self._layer += bool(node.inputs)
        context = self._context(place, zonotope, values, self._scoring)
        budget = options.schedule.budget(zonotope, context)
        if budget is None:
            return zonotope
        protect = NO_SYMBOLS
        if options.protect_inputs:
            protect = torch.cat([NO_SYMBOLS, *(value.symbols for value in self._inputs)])
            budget = max(budget, int(torch.isin(zonotope.symbols, protect).sum()))
        measured_in = self._context(place, zonotope, values, self._measuring)
        before = introduced(self._symbols)
        reduced, report = reduce_with_report(options.reduction, zonotope, budget, protect, context, measured_in)
        self._fresh += introduced(self._symbols) - before
        if report is not None:
            self.reports.append(report)
        return reduced

    def _context(
        self, place: int, zonotope: Zonotope, values: Mapping[str, Operand], known: Influences | None
    ) -> ReductionContext:
        node = self._plan.order[place]
        elsewhere = tuple(
            LiveValue(value, None if known is None else known.of(name, place))
            for name, value in values.items()
            if name != node.name and isinstance(value, Zonotope) and any_shared(value, zonotope.symbols)
        )
        return ReductionContext(
            node.name,
            self._layer if node.inputs else 0,
            self._symbols,
            influence=None if known is None else known.of(node.name, place),
            elsewhere=elsewhere,
            ahead=self._ahead(node.name) if self._constants else (),
            widest=self._widest(node.name),
            introduced=introduced(self._symbols) - self._fresh,
        )

    def _readers(self, name: str) -> list[Any]:
        return [node for node in self._plan.order if any(parent.name == name for parent in node.inputs)]

    def _widest(self, name: str) -> int:
        """The most coordinates from a value to the next operators that are not exact, these included."""
        most, pending = 0, [name]
        while pending:
            for reader in self._readers(pending.pop()):
                shape = getattr(reader, "output_shape", None) or ()
                most = max(most, prod(int(size) for size in shape[1:]))
                if is_exact(reader):
                    pending.append(reader.name)
        return most

    def _ahead(self, name: str) -> tuple[Ahead, ...]:
        """The exact operators with one changing operand that follow a value, for each of its readers that is one."""
        chains = []
        for reader in self._readers(name):
            chain: list[tuple[Any, list[Tensor | None]]] = []
            at: Any = reader
            before = name
            while is_exact(at):
                operands = [None if parent.name == before else self._constants.get(parent.name) for parent in at.inputs]
                if sum(operand is None for operand in operands) != 1:
                    break
                chain.append((at, operands))
                following = self._readers(at.name)
                if len(following) != 1:
                    break
                before, at = at.name, following[0]
            if chain:
                chains.append(partial(_through, chain))
        return tuple(chains)


def introduced(symbols: SymbolSource) -> int:
    """How many symbols a source has given out."""
    return sum(origin.count for origin in symbols.origins)


def is_exact(node: Any) -> bool:
    """Whether a zonotope passes the node's operator exactly."""
    entry = entry_for(node)
    return entry is not None and entry.kind == "exact"


def _through(chain: list[tuple[Any, list[Tensor | None]]], zonotope: Zonotope) -> Zonotope:
    """The image under a chain of exact operators; up to the first that does not apply to such operands."""
    for node, operands in chain:
        entry = entry_for(node)
        assert entry is not None
        full = [zonotope if operand is None else operand for operand in operands]
        try:
            image = entry.transformer(Call(node, full, SymbolSource()))
        except NotApplicableError:
            return zonotope
        assert isinstance(image, Zonotope)
        zonotope = image
    return zonotope
