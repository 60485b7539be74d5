"""Bounds of subdomains with smaller boxes and fixed signs: hulls of neurons, and the dual of the margin."""

from __future__ import annotations

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.rounding import gamma
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.bounds.dual_ascent import DualAscent
from zonoplug.verify.constraints.half_spaces import middle_of
from zonoplug.verify.subdomains.mixed import Margins, MixedSubdomains
from zonoplug.verify.subdomains.relu_layers import Layer, ReluLayers
from zonoplug.verify.subdomains.relu_phases import Aims


class MixedBounds:
    """Bounds subdomains of one input box.

    Args:
        bounder: of the problem; its backward bounds must apply.
        box: (1, *input_shape).
        aims: the disjuncts; `MixedSubdomains.aim` is a place among them.
    """

    def __init__(self, bounder: Bounder, box: Box, aims: Aims) -> None:
        from zonoplug.lirpa.methods import BoundMethod

        assert bounder.backward is not None
        self._module = bounder.module
        self._backward = bounder.backward
        self._aims = aims
        self._shape = box.lower.shape[1:]
        self._method = BoundMethod.parse("zonotope")
        self._hulls = bounder.hulls(box)
        self._errors = self._backward.errors(box, self._hulls)
        self.layers = ReluLayers(self._module, self._backward, box, self._hulls)
        self._ascent = DualAscent(self._backward, self.layers.layout)
        self._box = box

    def root(self) -> MixedSubdomains:
        """The whole box, once for each aim."""
        signs = self.layers.layout.root(self._hulls, len(self._aims))
        return MixedSubdomains.whole(signs, self._box, self._aims)

    def refresh(self, part: MixedSubdomains) -> Tensor:
        """Intersect the hulls with those on each subdomain's box. Returns where no point is left, (n,)."""
        from zonoplug.lirpa.module import walk

        with torch.no_grad():
            gone = torch.zeros(len(part), dtype=torch.bool, device=part.bound.device)
            center, radius = middle_of(part.box_lower, part.box_upper)
            for layer, matrix, middle in self.layers.affine:
                values = middle + (center - self.layers.center) @ matrix.T
                reach = radius @ matrix.abs().T
                self._intersect(part, layer, values - reach, values + reach, gone)
            if self.layers.later:
                last = self.layers.later[-1].source
                boxes, known = self._boxes(part), self.hulls(part)
                found = walk(self._module, [boxes], self._method, final=last, known=known, rounding="inference")
                hulls = found.hulls | {last: found.bounds}
                for layer in self.layers.later:
                    hull = hulls[layer.source]
                    self._intersect(part, layer, hull.lower.flatten(1), hull.upper.flatten(1), gone)
        return gone

    def margins(self, part: MixedSubdomains, steps: int) -> Margins:
        """Bound the margin of each subdomain's aim, and keep the multipliers that were found in it."""
        aims, box, hulls = self._aims.pick(part.aim), self._boxes(part), self.hulls(part)
        found = self._ascent.climb(part, box, hulls, aims, part.weights, steps, self._errors)
        part.weights, slopes = found.weights, found.slopes.flatten(1)
        center, radius = middle_of(part.box_lower, part.box_upper)
        reach = (slopes.abs() * radius).sum(dim=1)
        inexact = (found.margin.abs() + reach) * (2 * gamma(slopes.shape[1] + 8, reach.dtype))
        floor = found.margin + reach - found.error - inexact
        coefficients = self.layers.layout.coefficients(found.last)
        return Margins(
            found.bound, slopes, floor, center, coefficients, found.minimiser.flatten(1), found.point.flatten(1)
        )

    def hulls(self, part: MixedSubdomains) -> dict[str, Interval]:
        """By node name, bounds on each subdomain."""
        return self.layers.layout.hulls(part.lower, part.upper, self._hulls)

    def _boxes(self, part: MixedSubdomains) -> Box:
        """(n, *input_shape)."""
        return Box(*(end.unflatten(1, self._shape) for end in (part.box_lower, part.box_upper)))

    @staticmethod
    def _intersect(part: MixedSubdomains, layer: Layer, lower: Tensor, upper: Tensor, gone: Tensor) -> None:
        """Intersect one layer's hulls with bounds (n, neurons), widened by what rounding may move the layer."""
        low = torch.fmax(part.lower[:, layer.section], lower - layer.error)
        high = torch.fmin(part.upper[:, layer.section], upper + layer.error)
        gone |= (low > high).any(dim=1)
        part.lower[:, layer.section] = torch.minimum(low, high)
        part.upper[:, layer.section] = torch.maximum(low, high)
