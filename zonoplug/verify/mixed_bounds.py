"""Bounds of subdomains with smaller boxes and fixed signs: hulls of neurons, and the dual of the margin."""

from __future__ import annotations

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.bounding import Bounder
from zonoplug.verify.contraction import middle_of
from zonoplug.verify.mixed_subdomains import Margins, MixedSubdomains
from zonoplug.verify.relu_layers import Layer, ReluLayers
from zonoplug.verify.sign_subdomains import Aims

ALPHA_RATE = 0.15
BETA_RATE = 0.05
WEIGHT_RATE = 0.3
MEAN_SHARE = 0.2  # of each step in the mean of the places where the bound is least


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
        with torch.no_grad():
            self._magnitudes = self._backward.magnitudes(box, self._hulls)
        self.layers = ReluLayers(self._module, self._backward, box, self._hulls, self._magnitudes)
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
                box = Box(*(end.unflatten(1, self._shape) for end in (part.box_lower, part.box_upper)))
                last = self.layers.later[-1].source
                found = walk(self._module, [box], self._method, final=last, known=self.hulls(part))
                hulls = found.hulls | {last: found.bounds}
                for layer in self.layers.later:
                    hull = hulls[layer.source]
                    self._intersect(part, layer, hull.lower.flatten(1), hull.upper.flatten(1), gone)
        return gone

    def margins(self, part: MixedSubdomains, steps: int) -> Margins:
        """Bound the margin of each subdomain's aim, and keep the multipliers that were found in it.

        max over weights w >= 0 of sum 1, alpha, beta  of  the lower bound of  w . (rows y - goal)
        """
        from zonoplug.lirpa.ascent import Adam

        aims = self._aims.pick(part.aim)
        box = Box(*(end.unflatten(1, self._shape) for end in (part.box_lower, part.box_upper)))
        hulls = self.hulls(part)
        sides = self._backward.sides(hulls)
        alpha, beta, weights = (value.clone().requires_grad_(True) for value in (part.alpha, part.beta, part.weights))
        climber = Adam([alpha, beta, weights], [ALPHA_RATE, BETA_RATE, WEIGHT_RATE], decay=0.96)
        best: Tensor | None = None
        mean: Tensor | None = None
        for step in range(steps + 1):
            with torch.enable_grad():
                mixture = weights.masked_fill(~aims.there, -torch.inf).softmax(dim=1).unsqueeze(1)
                chosen = self.layers.layout.multipliers(alpha, beta, part.sign)
                rows = mixture @ aims.rows
                passed = self._backward.bound(box, hulls, rows, chosen, sides)
                margin = passed.lower[:, 0] - (mixture @ aims.goal.unsqueeze(2))[:, 0, 0]
                gain = margin.sum()
            with torch.no_grad():  # each step has an allowance of its own
                allowance = self._backward.allowance(passed, rows, hulls, self._magnitudes)[:, 0]
                low = (passed.inputs[:, 0].flatten(1) > 0).to(margin.dtype)
                mean = low if mean is None else mean + (low - mean) * MEAN_SHARE
                best = margin - allowance if best is None else torch.fmax(best, margin - allowance)
            if step == steps or bool((best > 0).all()):
                break
            climber.climb(gain)
            with torch.no_grad():
                alpha.clamp_(0, 1)
                beta.clamp_(min=0)
        with torch.no_grad():
            part.alpha, part.beta, part.weights = alpha.detach(), beta.detach(), weights.detach()
            slopes = passed.inputs[:, 0].flatten(1).detach()
            center, radius = middle_of(part.box_lower, part.box_upper)
            floor = margin + (slopes.abs() * radius).sum(dim=1) - allowance
            coefficients = self.layers.layout.coefficients(passed)
            minimiser = torch.where(slopes > 0, part.box_lower, part.box_upper)
            assert best is not None and mean is not None
            point = part.box_upper - mean * (part.box_upper - part.box_lower)
            return Margins(best, slopes, floor, center, coefficients, minimiser, point)

    def hulls(self, part: MixedSubdomains) -> dict[str, Interval]:
        """By node name, bounds on each subdomain."""
        return self.layers.layout.hulls(part.lower, part.upper, self._hulls)

    @staticmethod
    def _intersect(part: MixedSubdomains, layer: Layer, lower: Tensor, upper: Tensor, gone: Tensor) -> None:
        """Intersect one layer's hulls with bounds (n, neurons), widened by what rounding may move the layer."""
        low = torch.fmax(part.lower[:, layer.section], lower - layer.error)
        high = torch.fmin(part.upper[:, layer.section], upper + layer.error)
        gone |= (low > high).any(dim=1)
        part.lower[:, layer.section] = torch.minimum(low, high)
        part.upper[:, layer.section] = torch.maximum(low, high)
