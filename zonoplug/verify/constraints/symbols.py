"""Split constraints and the unsafe set as constraints on the noise symbols of one propagation.

A propagation represents every pre-activation z_k by symbols that represent the rows, too. So a split constraint s and
the rows of a disjunct are half-spaces of the same symbols:

    s z_k(e) >= 0,      l <= z_k(e) <= u,      rows(e) <= b

with boxes, and symbols that a reduction took, as slack. The least value of a row over them, by the dual, is a bound on
the subdomain alone; without constraints a zonotope bounds what is behind a split on the whole input box.

Source: Scott et al., Automatica 69, 2016 (constrained zonotopes); Koller, Ladner, Althoff, arXiv 2505.17854.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.domain.constrained import SymbolConstraints
from zonoplug.domain.zonotope import Zonotope
from zonoplug.transformers.affine import specification

if TYPE_CHECKING:
    from zonoplug.lirpa.operators.table import Call, Transformer

ROUNDING_UNITS = 16


class SplitConstraints:
    """Watches a propagation, and bounds rows under the split constraints.

    Args:
        sign: by name of the ReLU node, (batch, neurons) in {-1, 0, 1}.
        ends: by name of nodes that were split at other points, bounds of their inputs, (batch, neurons) each.
    """

    def __init__(self, sign: Mapping[str, Tensor], ends: Mapping[str, tuple[Tensor, Tensor]] | None = None) -> None:
        self._ends = dict(ends or {})
        self._between: dict[str, Zonotope] = {}
        self._fixed = {name: _fixed(values) for name, values in sign.items() if bool((values != 0).any())}
        self._sides: dict[str, Zonotope] = {}

    def observe(self, transformer: Transformer, call: Call) -> None:
        """Note -s z of the fixed neurons; for `propagation(..., observe=...)`."""
        fixed, value = self._fixed.get(call.node.name), call.operands[0]
        if call.node.name in self._ends and isinstance(value, Zonotope):
            size = value.center[0].numel()
            both = torch.eye(size, dtype=value.center.dtype, device=value.center.device).repeat(2, 1)
            both[:size] *= -1
            self._between[call.node.name] = specification(value, both.expand(value.center.shape[0], -1, -1))
        if fixed is not None and isinstance(value, Zonotope):
            side, neuron = fixed
            rows = side.new_zeros(*side.shape, value.center[0].numel())
            self._sides[call.node.name] = specification(
                value, rows.scatter_(2, neuron.unsqueeze(2), -side.unsqueeze(2))
            )

    def bound(
        self, rows: Zonotope, limit: Tensor, wanted: Tensor, start: Mapping[str, Tensor], steps: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Lower bounds of one row on the part of each subdomain where its split constraints hold and all rows are
        within limits.

        Args:
            rows: (batch, rows), as the propagation ended with.
            limit: (batch, rows) what the rows reach at most where it matters; +inf for rows that do not.
            wanted: (batch,) the row.
            start: multipliers of the signs to start from, by name of the ReLU, (batch, neurons) >= 0.
            steps: gradient steps on the multipliers.
        Returns:
            bounds (batch,), +inf where nothing is left, and the multipliers behind them.
        """
        forms = [*self._sides.values(), *self._between.values(), rows]
        ends = [torch.where(self._fixed[name][0] == 0, torch.inf, 0.0).to(limit) for name in self._sides]
        ends += [torch.cat([-self._ends[name][0], self._ends[name][1]], dim=1) for name in self._between] + [limit]
        first = [start[name].gather(1, self._fixed[name][1]) for name in self._sides]
        first += [limit.new_zeros(form.center.shape) for form in [*self._between.values(), rows]]
        linear = [_linear(form, rows.symbols) for form in forms]
        matrix, slack = (torch.cat(parts, dim=1) for parts in zip(*linear, strict=True))
        free = torch.cat([end - form.center for end, form in zip(ends, forms, strict=True)], dim=1) + slack
        constraints = SymbolConstraints.on_unit_cube(matrix, free).contracted()
        element = torch.arange(wanted.shape[0], device=wanted.device)
        place = element, matrix.shape[1] - limit.shape[1] + wanted
        least, y = constraints.least(matrix[place], steps, torch.cat(first, dim=1))
        terms = matrix.abs().sum(dim=2)
        spread = terms[place] + (y * (free.abs().nan_to_num(posinf=0.0) + terms)).sum(dim=1)
        bound = rows.center[element, wanted] - slack[place] + least
        units = sum(matrix.shape[1:]) + ROUNDING_UNITS  # sums over symbols, then over constraints
        bound = bound - units * torch.finfo(bound.dtype).eps * (spread + bound.abs())
        found = {}
        for name, part in zip(self._sides, y.split([form.center.shape[1] for form in forms], dim=1), strict=False):
            found[name] = torch.zeros_like(start[name]).scatter(1, self._fixed[name][1], part)
        return torch.where(constraints.empty, torch.inf, bound), found


def _fixed(sign: Tensor) -> tuple[Tensor, Tensor]:
    """Signs and places of the fixed neurons, (batch, m) each, m the most of any element; signs 0 fill up."""
    neuron = sign.abs().topk(int((sign != 0).sum(dim=1).max()), dim=1).indices
    return sign.gather(1, neuron), neuron


def _linear(form: Zonotope, symbols: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients of the symbols, (batch, m, k), and how far all else may move the values, (batch, m)."""
    matrix = form.generators(symbols).transpose(1, 2)
    return matrix, (form.radius() - matrix.abs().sum(dim=2)).clamp(min=0)
