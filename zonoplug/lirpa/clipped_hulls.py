"""Bounds of single neurons over a part of a box: where some signs are fixed, and where a specification may fail.

Fixed signs, s z >= 0, and the negated specification, C y - goal <= 0, are constraints on the points that matter. Each
enters the bound of a neuron v by a multiplier >= 0:

    v  >=  least of  (v - sum beta s z + gamma (C y - goal))   on the box

where C y has been bounded backward as far as v's layer, so that both share all relaxations in front of it. Slopes and
multipliers go on from those of a larger set. Bounds that contradict each other prove that no such point exists.

Source: Wang et al., NeurIPS 2021 (beta); Kotha et al., NeurIPS 2023 (gamma); Koller, Ladner, Althoff, arXiv 2505.17854.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.ascent import Adam
from zonoplug.lirpa.backward import Backward, LinearBounds, Started
from zonoplug.lirpa.refine import NeuronSlopes, unit_rows
from zonoplug.lirpa.relu_sides import Multipliers
from zonoplug.relaxations import triangle_height

ALPHA_RATE, BETA_RATE, GAMMA_RATE = 0.1, 0.05, 0.5


@dataclass(frozen=True, slots=True, eq=False)
class UnsafeRow:
    """Points that matter only where  row . y <= goal,  or a mixture of rows.

    Attributes:
        whole: backward passes from the output.
        row: (1, 1, outputs).
        goal: (1, 1), raised by what rounding may do.
        multipliers: with which the row is bounded, (1, *shape) each.
    """

    whole: Backward
    row: Tensor
    goal: Tensor
    multipliers: Multipliers

    def started(self, behind: Backward, hulls: Mapping[str, Interval]) -> Started:
        """row . y - goal  in what `behind` passes."""
        with torch.no_grad():
            begun = self.whole.started(behind, hulls, self.row, self.multipliers)
        return Started(begun.pending, begun.constant - self.goal)


@dataclass(frozen=True, slots=True, eq=False)
class ClippedHulls:
    """What `clip_hulls` found.

    Attributes:
        hulls: by node name, (1, *shape). A lower end above its upper one: no point has all the signs and is unsafe.
        slopes: that the bounds ended with.
        impact: how much each neuron's relaxation costs the bounds behind it, by name of a ReLU, (1, *shape); every
            layer that is bounded weighs the same.
    """

    hulls: dict[str, Interval]
    slopes: dict[str, list[NeuronSlopes]]
    impact: dict[str, Tensor]

    @property
    def empty(self) -> bool:
        """Whether some ends contradict each other by more than rounding."""
        for hull in (self.hulls[name] for name in self.slopes):
            error = 256 * torch.finfo(hull.lower.dtype).eps * torch.maximum(hull.lower.abs(), hull.upper.abs()).max()
            if bool((hull.lower > hull.upper + error).any()):
                return True
        return False


def clip_hulls(
    passes: Mapping[str, Backward],
    box: Box,
    hulls: Mapping[str, Interval],
    slopes: Mapping[str, list[NeuronSlopes]],
    signs: Mapping[str, Tensor] | None = None,
    steps: int = 0,
    unsafe: UnsafeRow | None = None,
    magnitudes: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> ClippedHulls:
    """Bounds of ReLU inputs, layer by layer, where signs are fixed and the specification may fail.

    Args:
        passes: backward passes to each ReLU's input, by its name, in topological order.
        box: one input box, (1, *input_shape).
        hulls: that hold already where the signs are as fixed, (1, *shape) by node name.
        slopes: to start from, by name of a ReLU's input; other layers keep their hulls.
        signs: 1, -1 or 0, by name of a ReLU's input, (1, *shape); without steps they count by the hulls alone.
        steps: gradient steps on slopes and multipliers.
        unsafe: bound only what may be unsafe.
        magnitudes: of each layer, as `Backward.magnitudes` gives them, to allow for rounding.
    """
    tight = dict(hulls)
    impact: dict[str, Tensor] = {}
    kept: dict[str, list[NeuronSlopes]] = {}
    fixed = {name: sign for name, sign in (signs or {}).items() if bool(sign.any())}
    for name, known in slopes.items():
        hull = tight[name]
        flat = Interval(hull.lower.flatten(), hull.upper.flatten())
        lower, upper = flat.lower.clone(), flat.upper.clone()
        costs: dict[str, Tensor] = {}
        layer = _Layer(passes[name], name, box, tight, fixed, unsafe, (magnitudes or {}).get(name))
        kept[name] = []
        for one in known:
            still = ((flat.lower[one.neurons] < 0) & (flat.upper[one.neurons] > 0)).nonzero().flatten()
            if not still.shape[0]:
                continue
            part = one.pick(still)
            bounds, coefficients = layer.bound(part, (flat.upper - flat.lower)[part.neurons], steps)
            below, above = bounds.chunk(2)
            lower[part.neurons] = torch.fmax(lower[part.neurons], below)
            upper[part.neurons] = torch.fmin(upper[part.neurons], -above)
            kept[name].append(part)
            for key, a in coefficients.items():
                costs[key] = costs.get(key, torch.zeros_like(a[:1, 0])) + a.abs().sum(dim=(0, 1)).unsqueeze(0)
        tight[name] = Interval(lower.reshape(hull.lower.shape), upper.reshape(hull.upper.shape))
        spread = {key: cost * triangle_height(*tight[passes[name].source(key)]) for key, cost in costs.items()}
        total = sum(float(cost.sum()) for cost in spread.values())
        for key, cost in spread.items():
            impact[key] = impact.get(key, torch.zeros_like(cost)) + cost / max(total, torch.finfo(cost.dtype).tiny)
        if unsafe is not None and bool((lower > upper).any()):
            break  # what stands behind has nothing to add
    return ClippedHulls(tight, {**slopes, **kept}, impact)


class _Layer:
    """Bounds of the neurons of one layer."""

    def __init__(
        self,
        passes: Backward,
        name: str,
        box: Box,
        hulls: Mapping[str, Interval],
        signs: Mapping[str, Tensor],
        unsafe: UnsafeRow | None,
        magnitudes: Mapping[str, Tensor] | None,
    ) -> None:
        self._passes, self._name, self._box, self._hulls, self._magnitudes = passes, name, box, hulls, magnitudes
        self._sides = passes.sides(hulls)
        self._signs = {relu.name: signs[source] for relu in passes.relus if (source := relu.inputs[0].name) in signs}
        self._own = signs.get(name)
        self._begun = None if unsafe is None else unsafe.started(passes, hulls)

    def bound(self, part: NeuronSlopes, widths: Tensor, steps: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Lower bounds of v and of -v, (2 m,), and the last coefficients behind each ReLU. Updates `part`."""
        count = 2 * part.neurons.shape[0]
        unit = self._gamma_unit(widths)
        self._complete(part, count, steps)
        free = [*part.alpha.values(), *part.beta.values()]
        rates = [ALPHA_RATE] * len(part.alpha) + [BETA_RATE] * len(part.beta)
        if part.gamma is not None:
            free, rates = [*free, part.gamma], [*rates, GAMMA_RATE]
        box = self._box.expanded(count)
        hulls = {name: hull.expanded(count) for name, hull in self._hulls.items()}
        steps = steps if free else 0
        climber = Adam(free, rates)
        for value in free:
            value.requires_grad_(steps > 0)
        best = None
        for step in range(steps + 1):
            with torch.set_grad_enabled(step < steps):
                rows = self._rows(part)
                chosen = Multipliers(part.alpha, {k: b for k, b in part.beta.items() if k}, self._signs)
                also = None if part.gamma is None or self._begun is None else _times(self._begun, part.gamma * unit)
                found = self._passes.bound(box, hulls, rows, chosen, self._sides, also)
            with torch.no_grad():  # each step has an allowance of its own
                lower = found.lower[:, 0] - self._allowance(found, rows)
                best = lower if best is None else torch.fmax(best, lower)
            if step < steps:
                climber.climb((found.lower[:, 0] / widths.repeat(2)).sum())
                with torch.no_grad():
                    for slope in part.alpha.values():
                        slope.clamp_(0, 1)
                    for value in free[len(part.alpha) :]:
                        value.clamp_(min=0)
        assert best is not None
        for value in free:
            value.requires_grad_(False)
        return best, found.coefficients

    def _allowance(self, found: LinearBounds, rows: Tensor) -> Tensor | float:
        """What rounding may move the bounds, (2 m,), where it is allowed for."""
        if self._magnitudes is None:
            return 0.0
        return self._passes.allowance(found, rows, self._hulls, self._magnitudes)[:, 0]

    def _complete(self, part: NeuronSlopes, count: int, steps: int) -> None:
        """Multipliers of constraints that are new to these neurons begin at 0, where there are steps to move them."""
        known = {**self._signs, **({"": self._own} if self._own is not None else {})}
        part.beta = {
            relu: part.beta.get(relu, sign.new_zeros(count, *sign.shape[1:]))
            for relu, sign in known.items()
            if relu in part.beta or steps
        }
        if self._begun is None:
            part.gamma = None
        elif part.gamma is None and steps:
            part.gamma = self._begun.constant.new_zeros(count, 1)

    def _rows(self, part: NeuronSlopes) -> Tensor:
        """Unit rows, then their negatives; with the constraints on signs of the same layer."""
        rows = unit_rows(part.neurons, self._passes.size, self._box.lower)
        if "" in part.beta and self._own is not None:
            rows = rows - (part.beta[""] * self._own).flatten(1)
        return rows.unsqueeze(1)

    def _gamma_unit(self, widths: Tensor) -> Tensor:
        """Steps on gamma are measured by how far the neuron, and the specification over its layer, reach."""
        if self._begun is None or self._name not in self._begun.pending:
            return torch.ones_like(widths).repeat(2).unsqueeze(1)
        hull = self._hulls[self._name]
        reach = (self._begun.pending[self._name].abs().reshape(hull.lower.shape) * (hull.upper - hull.lower)).sum()
        return (widths / reach.clamp(min=torch.finfo(reach.dtype).tiny)).repeat(2).unsqueeze(1)


def _times(begun: Started, factor: Tensor) -> Started:
    """For each element of a batch, `begun` times its factor, (batch, 1)."""
    pending = {name: value * factor.reshape(-1, *([1] * (value.dim() - 1))) for name, value in begun.pending.items()}
    return Started(pending, begun.constant * factor)
