"""Bounds of subdomains with smaller boxes and fixed signs: hulls, the dual of the margin, and contraction."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.domain.zonotope import Interval
from zonoplug.verify.bounding import Bounder
from zonoplug.verify.contraction import contract, least_in_half_space, middle_of
from zonoplug.verify.mixed_subdomains import MixedSubdomains
from zonoplug.verify.sign_subdomains import Aims

if TYPE_CHECKING:
    from zonoplug.lirpa.backward import Multipliers

ALPHA_RATE = 0.15
BETA_SHARE = 0.3
WEIGHT_RATE = 0.3
MEAN_SHARE = 0.2
POSITIVE = 0.0
EXACT_FACTOR = 8.0  # units of rounding, of the absolute terms of a sum, by which a first layer's hulls are widened


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A ReLU layer.

    Attributes:
        relu, source: names of the node and of its input.
        section: its place among all neurons.
        shape: of its input.
        matrix, middle, error: where its input is affine in the network's,  z = middle + matrix (x - c) +/- error  for c
            the middle of the whole box: (neurons, inputs), (neurons,), (neurons,); None elsewhere.
    """

    relu: str
    source: str
    section: slice
    shape: tuple[int, ...]
    matrix: Tensor | None = None
    middle: Tensor | None = None
    error: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Margins:
    """What was found about a batch of subdomains.

    Attributes:
        bound: lower bounds of the margin, (n,).
        slopes, floor, center: an unsafe point x of the subdomain has  floor + slopes . (x - center) <= 0;
            (n, inputs), (n,), (n, inputs).
        coefficients: of the bound behind each neuron, (n, neurons).
        minimiser: where in the box the linear bound is least, (n, inputs).
        point: the mean of such places over the steps, which comes close to the minimiser of the relaxation.
    """

    bound: Tensor
    slopes: Tensor
    floor: Tensor
    center: Tensor
    coefficients: Tensor
    minimiser: Tensor
    point: Tensor

    def pick(self, index: Tensor) -> Margins:
        parts = (getattr(self, field.name) for field in fields(self))
        return Margins(*(value[index] for value in parts))


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
        self._center = middle_of(box.lower, box.upper)[0].flatten()
        self.layers = self._layers(box)
        sources = {layer.source for layer in self.layers}
        self._rest = [name for name in self._hulls if name not in sources]
        self._later = [layer for layer in self.layers if layer.matrix is None]
        self._box = box

    def root(self) -> MixedSubdomains:
        """The whole box, once for each aim."""
        from zonoplug.lirpa.refine import first_alpha

        count = len(self._aims)
        lower, upper = (
            torch.cat([getattr(self._hulls[layer.source], end).flatten(1) for layer in self.layers], dim=1).expand(
                count, -1
            )
            for end in ("lower", "upper")
        )
        box = [end.flatten(1).expand(count, -1).clone() for end in (self._box.lower, self._box.upper)]
        zero = torch.zeros_like(lower)
        alpha = first_alpha(Interval(lower, upper))
        bound = lower.new_full((count,), -torch.inf)
        weights = self._aims.goal.new_zeros(count, self._aims.goal.shape[1])
        aim = torch.arange(count, device=lower.device)
        return MixedSubdomains(*box, lower, upper, zero, alpha, zero.clone(), weights, bound, aim)

    def refresh(self, part: MixedSubdomains) -> Tensor:
        """Intersect the hulls with those on each subdomain's box. Returns where no point is left, (n,)."""
        from zonoplug.lirpa.module import walk

        with torch.no_grad():
            gone = torch.zeros(len(part), dtype=torch.bool, device=part.bound.device)
            center, radius = middle_of(part.box_lower, part.box_upper)
            for layer in self.layers:
                if layer.matrix is not None and layer.middle is not None and layer.error is not None:
                    middle = layer.middle + (center - self._center) @ layer.matrix.T
                    reach = radius @ layer.matrix.abs().T + layer.error
                    self._intersect(part, layer, middle - reach, middle + reach, gone)
            if self._later:
                box = Box(*(end.unflatten(1, self._shape) for end in (part.box_lower, part.box_upper)))
                last = self._later[-1].source
                found = walk(self._module, [box], self._method, final=last, known=self.hulls(part))
                hulls = found.hulls | {last: found.bounds}
                for layer in self._later:
                    hull = hulls[layer.source]
                    error = self._later_error(layer)
                    self._intersect(
                        part, layer, hull.lower.flatten(1) - error, hull.upper.flatten(1) + error, gone
                    )
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
        climber = Adam([alpha, beta, weights], [ALPHA_RATE, self._beta_rate(part), WEIGHT_RATE], decay=0.96)
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
            coefficients = torch.cat([passed.coefficients[at.relu][:, 0].flatten(1) for at in self.layers], dim=1)
            minimiser = torch.where(slopes > 0, part.box_lower, part.box_upper)
            assert best is not None and mean is not None
            point = part.box_upper - mean * (part.box_upper - part.box_lower)
            return Margins(best - allowance, slopes, floor, center, coefficients.detach(), minimiser, point)

    def contract(self, part: MixedSubdomains, found: Margins, rounds: int = 2) -> Tensor:
        """Cut off what cannot be unsafe, or has other signs. Returns where no point is left, (n,)."""
        with torch.no_grad():
            center = middle_of(part.box_lower, part.box_upper)[0]
            rows = [found.slopes.unsqueeze(1)]
            room = [-found.floor.unsqueeze(1)]
            for layer in self.layers:
                if layer.matrix is None or layer.middle is None or layer.error is None:
                    continue
                sign = part.sign[:, layer.section]
                most = int((sign != 0).sum(dim=1).max())
                if not most:
                    continue
                index = sign.abs().topk(most, dim=1).indices
                chosen = sign.gather(1, index)
                rows.append(-chosen.unsqueeze(2) * layer.matrix[index])
                middle = layer.middle[index] + torch.einsum(
                    "nmk,nk->nm", layer.matrix[index], center - self._center
                )
                room.append(torch.where(chosen != 0, chosen * middle + layer.error[index], torch.inf))
            part.box_lower, part.box_upper, gone = contract(
                part.box_lower, part.box_upper, torch.cat(rows, dim=1), torch.cat(room, dim=1), rounds
            )
        return gone

    def clip(self, part: MixedSubdomains, found: Margins, most: int) -> Tensor:
        """Tighten hulls of open neurons by the unsafe half-space. Returns where no point is left, (n,).

        Source: Zhou et al., Clip-and-Verify, NeurIPS 2025.
        """
        with torch.no_grad():
            gone = torch.zeros(len(part), dtype=torch.bool, device=part.bound.device)
            center, radius = middle_of(part.box_lower, part.box_upper)
            shift = center - found.center
            room = -(found.floor + (found.slopes * shift).sum(dim=1))
            slope = found.slopes * radius
            wanted = torch.where(part.open_neurons, (-found.coefficients).clamp(min=0) + POSITIVE * found.coefficients.clamp(min=0), 0.0)
            for layer in self.layers:
                if layer.matrix is None or layer.middle is None or layer.error is None:
                    continue
                score = wanted[:, layer.section]
                count = min(most, int((score > 0).sum(dim=1).max()))
                if not count:
                    continue
                index = score.topk(count, dim=1).indices
                matrix = layer.matrix[index]
                middle = layer.middle[index] + torch.einsum("nmk,nk->nm", matrix, center - self._center)
                direction = matrix * radius.unsqueeze(1)
                below, above = least_in_half_space(
                    torch.cat([direction, -direction], dim=1), slope, room
                ).chunk(2, dim=1)
                error = layer.error[index]
                lower, upper = part.lower[:, layer.section], part.upper[:, layer.section]
                low = torch.fmax(lower.gather(1, index), middle + below - error)
                high = torch.fmin(upper.gather(1, index), middle - above + error)
                gone |= (low > high).any(dim=1)
                lower.scatter_(1, index, torch.minimum(low, high))
                upper.scatter_(1, index, torch.maximum(low, high))
        return gone

    def neurons_at(self, points: Tensor) -> Tensor:
        """Values of all ReLUs' inputs, (n, neurons), at points (n, inputs)."""
        with torch.no_grad():
            values = []
            for layer in self.layers:
                if layer.matrix is not None and layer.middle is not None:
                    values.append(layer.middle + (points - self._center) @ layer.matrix.T)
                else:
                    shaped = points.unflatten(1, self._shape)
                    values.append(self._module(shaped, final_node_name=layer.source).flatten(1))
            return torch.cat(values, dim=1)

    def hulls(self, part: MixedSubdomains) -> dict[str, Interval]:
        """By node name, bounds on each subdomain."""
        found = {
            layer.source: Interval(
                part.lower[:, layer.section].unflatten(1, layer.shape),
                part.upper[:, layer.section].unflatten(1, layer.shape),
            )
            for layer in self.layers
        }
        for name in self._rest:
            found[name] = Interval(*(side.expand(len(part), *side.shape[1:]) for side in self._hulls[name]))
        return found

    def _layers(self, box: Box) -> list[Layer]:
        from zonoplug.lirpa.backward import Backward

        layers: list[Layer] = []
        place = 0
        for node in self._backward.relus:
            source = node.inputs[0].name
            shape = tuple(self._hulls[source].lower.shape[1:])
            size = prod(shape)
            passes = Backward(self._module, source)
            section = slice(place, place + size)
            place += size
            if not passes.is_affine:
                layers.append(Layer(node.name, source, section, shape))
                continue
            point = self._center.unflatten(0, self._shape).unsqueeze(0)
            rows = torch.eye(size, dtype=point.dtype, device=point.device).unflatten(1, shape).flatten(1).unsqueeze(0)
            with torch.no_grad():
                linear = passes.bound(Box(point, point), {}, rows)
            error = EXACT_FACTOR * torch.finfo(point.dtype).eps * self._magnitudes[node.name].flatten()
            layers.append(
                Layer(node.name, source, section, shape, linear.inputs[0].flatten(1), linear.lower[0], error)
            )
        return layers

    def _later_error(self, layer: Layer) -> Tensor:
        return EXACT_FACTOR * torch.finfo(self._center.dtype).eps * self._magnitudes[layer.relu].flatten(1)

    @staticmethod
    def _intersect(part: MixedSubdomains, layer: Layer, lower: Tensor, upper: Tensor, gone: Tensor) -> None:
        """Intersect one layer's hulls with bounds (n, neurons) that include an allowance for rounding."""
        low = torch.fmax(part.lower[:, layer.section], lower)
        high = torch.fmin(part.upper[:, layer.section], upper)
        gone |= (low > high).any(dim=1)
        part.lower[:, layer.section] = torch.minimum(low, high)
        part.upper[:, layer.section] = torch.maximum(low, high)

    def _beta_rate(self, part: MixedSubdomains) -> float:
        return 0.05

    def _multipliers(self, alpha: Tensor, beta: Tensor, sign: Tensor) -> Multipliers:
        from zonoplug.lirpa.backward import Multipliers

        chosen = Multipliers()
        for layer in self.layers:
            for kind, values in ((chosen.alpha, alpha), (chosen.beta, beta), (chosen.sign, sign)):
                kind[layer.relu] = values[:, layer.section].unflatten(1, layer.shape)
        return chosen
