"""Bounds of subdomains with smaller boxes and fixed signs: hulls of neurons, and the dual of the margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.bounding import Bounder
from zonoplug.verify.contraction import middle_of
from zonoplug.verify.mixed_subdomains import Margins, MixedSubdomains
from zonoplug.verify.relu_layers import Layer, ReluLayers
from zonoplug.verify.sign_subdomains import Aims

if TYPE_CHECKING:
    from zonoplug.lirpa.relu_sides import Multipliers

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
        from zonoplug.lirpa.module import walk

        assert bounder.backward is not None
        self._module = bounder.module
        self._backward = bounder.backward
        self._aims = aims
        self._shape = box.lower.shape[1:]
        self._method = BoundMethod.parse("zonotope")
        with torch.no_grad():
            self._hulls = walk(self._module, [box], self._method).hulls
            self._magnitudes = self._backward.magnitudes(box, self._hulls)
        self.layers = ReluLayers(self._module, self._backward, box, self._hulls)
        sources = {layer.source for layer in self.layers.all}
        self._rest = [name for name in self._hulls if name not in sources]
        self._box = box

    def root(self) -> MixedSubdomains:
        """The whole box, once for each aim."""
        from zonoplug.lirpa.refine import first_alpha

        count = len(self._aims)
        lower, upper = (
            torch.cat([getattr(self._hulls[layer.source], end).flatten(1) for layer in self.layers.all], dim=1).expand(
                count, -1
            )
            for end in ("lower", "upper")
        )
        box_lower, box_upper = (end.flatten(1).expand(count, -1).clone() for end in (self._box.lower, self._box.upper))
        zero = torch.zeros_like(lower)
        alpha = first_alpha(Interval(lower, upper))
        bound = lower.new_full((count,), -torch.inf)
        weights = self._aims.goal.new_zeros(count, self._aims.goal.shape[1])
        aim = torch.arange(count, device=lower.device)
        share = torch.ones_like(bound)
        return MixedSubdomains(
            box_lower, box_upper, lower, upper, zero, alpha, zero.clone(), weights, bound, share, aim
        )

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
                chosen = self._multipliers(alpha, beta, part.sign)
                passed = self._backward.bound(box, hulls, mixture @ aims.rows, chosen, sides)
                margin = passed.lower[:, 0] - (mixture @ aims.goal.unsqueeze(2))[:, 0, 0]
                gain = margin.sum()
            low = passed.inputs[:, 0].detach().flatten(1) > 0
            mean = low.to(margin.dtype) if mean is None else mean + (low.to(margin.dtype) - mean) * MEAN_SHARE
            best = margin.detach() if best is None else torch.fmax(best, margin.detach())
            if step == steps or bool((best > 0).all()):
                break
            climber.climb(gain)
            with torch.no_grad():
                alpha.clamp_(0, 1)
                beta.clamp_(min=0)
        with torch.no_grad():
            part.alpha, part.beta, part.weights = alpha.detach(), beta.detach(), weights.detach()
            allowance = self._backward.allowance(passed, mixture @ aims.rows, hulls, self._magnitudes)[:, 0]
            slopes = passed.inputs[:, 0].flatten(1).detach()
            center, radius = middle_of(part.box_lower, part.box_upper)
            floor = margin + (slopes.abs() * radius).sum(dim=1) - allowance
            coefficients = torch.cat([passed.coefficients[at.relu][:, 0].flatten(1) for at in self.layers.all], dim=1)
            minimiser = torch.where(slopes > 0, part.box_lower, part.box_upper)
            assert best is not None and mean is not None
            point = part.box_upper - mean * (part.box_upper - part.box_lower)
            return Margins(best - allowance, slopes, floor, center, coefficients.detach(), minimiser, point)

    def hulls(self, part: MixedSubdomains) -> dict[str, Interval]:
        """By node name, bounds on each subdomain."""
        found = {
            layer.source: Interval(
                part.lower[:, layer.section].unflatten(1, layer.shape),
                part.upper[:, layer.section].unflatten(1, layer.shape),
            )
            for layer in self.layers.all
        }
        for name in self._rest:
            found[name] = Interval(*(side.expand(len(part), *side.shape[1:]) for side in self._hulls[name]))
        return found

    @staticmethod
    def _intersect(part: MixedSubdomains, layer: Layer, lower: Tensor, upper: Tensor, gone: Tensor) -> None:
        """Intersect one layer's hulls with bounds (n, neurons), widened by what rounding may move the layer."""
        low = torch.fmax(part.lower[:, layer.section], lower - layer.error)
        high = torch.fmin(part.upper[:, layer.section], upper + layer.error)
        gone |= (low > high).any(dim=1)
        part.lower[:, layer.section] = torch.minimum(low, high)
        part.upper[:, layer.section] = torch.maximum(low, high)

    def _multipliers(self, alpha: Tensor, beta: Tensor, sign: Tensor) -> Multipliers:
        from zonoplug.lirpa.relu_sides import Multipliers

        chosen = Multipliers()
        for layer in self.layers.all:
            for kind, values in ((chosen.alpha, alpha), (chosen.beta, beta), (chosen.sign, sign)):
                kind[layer.relu] = values[:, layer.section].unflatten(1, layer.shape)
        return chosen
