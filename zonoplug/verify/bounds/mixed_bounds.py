"""Bounds of subdomains with smaller boxes and split constraints: pre-activation bounds, and the dual of the margin."""

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
from zonoplug.verify.subdomains.relu_phases import Properties


class MixedBounds:
    """Bounds subdomains of one input box.

    Args:
        bounder: of the problem; its backward bounds must apply.
        box: (1, *input_shape).
        properties: the disjuncts; `MixedSubdomains.target` is a place among them.
    """

    def __init__(self, bounder: Bounder, box: Box, properties: Properties) -> None:
        from zonoplug.lirpa.methods import BoundMethod

        assert bounder.backward is not None
        self._module = bounder.module
        self._backward = bounder.backward
        self._properties = properties
        self._shape = box.lower.shape[1:]
        self._method = BoundMethod.parse("zonotope")
        self._preactivations = bounder.preactivations(box)
        self._errors = self._backward.errors(box, self._preactivations)
        self.layers = ReluLayers(self._module, self._backward, box, self._preactivations)
        self._ascent = DualAscent(self._backward, self.layers.layout)
        self._box = box

    def root(self) -> MixedSubdomains:
        """The whole box, once for each property."""
        phases = self.layers.layout.root(self._preactivations, len(self._properties))
        return MixedSubdomains.whole(phases, self._box, self._properties)

    def refresh(self, part: MixedSubdomains) -> Tensor:
        """Intersect the pre-activation bounds with those on each subdomain's box.

        Returns where no point is left, (n,).
        """
        from zonoplug.lirpa.module import forward_propagation

        with torch.no_grad():
            gone = torch.zeros(len(part), dtype=torch.bool, device=part.bound.device)
            center, radius = middle_of(part.box_lower, part.box_upper)
            for layer, matrix, middle in self.layers.affine:
                values = middle + (center - self.layers.center) @ matrix.T
                reach = radius @ matrix.abs().T
                self._intersect(part, layer, values - reach, values + reach, gone)
            if self.layers.later:
                last = self.layers.later[-1].source
                boxes, known = self._boxes(part), self.preactivations(part)
                found = forward_propagation(
                    self._module, [boxes], self._method, final=last, known=known, rounding="inference"
                )
                preactivations = found.preactivations | {last: found.bounds}
                for layer in self.layers.later:
                    preactivation = preactivations[layer.source]
                    self._intersect(part, layer, preactivation.lower.flatten(1), preactivation.upper.flatten(1), gone)
        return gone

    def margins(self, part: MixedSubdomains, steps: int) -> Margins:
        """Bound the margin of each subdomain's property, and keep the multipliers that were found in it."""
        properties, box, preactivations = (
            self._properties.pick(part.target),
            self._boxes(part),
            self.preactivations(part),
        )
        found = self._ascent.climb(part, box, preactivations, properties, part.weights, steps, self._errors)
        part.weights, slopes = found.weights, found.slopes.flatten(1)
        center, radius = middle_of(part.box_lower, part.box_upper)
        reach = (slopes.abs() * radius).sum(dim=1)
        inexact = (found.margin.abs() + reach) * (2 * gamma(slopes.shape[1] + 8, reach.dtype))
        floor = found.margin + reach - found.error - inexact
        coefficients = self.layers.layout.coefficients(found.last)
        return Margins(
            found.bound, slopes, floor, center, coefficients, found.minimiser.flatten(1), found.point.flatten(1)
        )

    def preactivations(self, part: MixedSubdomains) -> dict[str, Interval]:
        """By node name, bounds on each subdomain."""
        return self.layers.layout.preactivations(part.lower, part.upper, self._preactivations)

    def _boxes(self, part: MixedSubdomains) -> Box:
        """(n, *input_shape)."""
        return Box(*(end.unflatten(1, self._shape) for end in (part.box_lower, part.box_upper)))

    @staticmethod
    def _intersect(part: MixedSubdomains, layer: Layer, lower: Tensor, upper: Tensor, gone: Tensor) -> None:
        """Intersect one layer's pre-activation bounds with bounds (n, neurons), widened by what rounding may move the
        layer.
        """
        low = torch.fmax(part.lower[:, layer.section], lower - layer.error)
        high = torch.fmin(part.upper[:, layer.section], upper + layer.error)
        gone |= (low > high).any(dim=1)
        part.lower[:, layer.section] = torch.minimum(low, high)
        part.upper[:, layer.section] = torch.maximum(low, high)
