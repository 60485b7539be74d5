"""Bounds of subdomains with split constraints, over a network in affine form over its unstable neurons."""

from __future__ import annotations

from functools import partial
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from zonoplug.clock import Deadline
from zonoplug.domain.rounding import unit
from zonoplug.domain.zonotope import Interval
from zonoplug.lirpa.backward.unstable_network import BLOCK
from zonoplug.verify.bounds.dual_ascent import ALPHA_RATE, BETA_RATE, DECAY, WEIGHT_RATE
from zonoplug.verify.bounds.lp_duals import lp_duals
from zonoplug.verify.bounds.targets import Targets
from zonoplug.verify.branching.activations import ActivationFacts, ActivationRule, unstable_scores
from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.unstable_network import Forms, UnstableNetwork

ENOUGH = 0.1
ERROR_SLACK = 1.01  # errors are summed with rounding too
LAST_STEPS = 200
EXACT, EXACT_SECONDS = 8, 2.0  # subdomains of a batch that get a linear program, and the limit for all of them
EXACT_ENTRIES = 2**20  # of the program's matrix


class UnstableBounds:
    """Bounds subdomains of one box; neurons are the unstable ones of an `UnstableNetwork`.

    Args:
        network: of the box.
        rule: scores neurons for splits.

    Attributes:
        network: as given.
        minimisers: (n, *input_shape) the inputs at which the latest bounds were least.
    """

    def __init__(self, network: UnstableNetwork, rule: ActivationRule) -> None:
        self.network, self._rule = network, rule
        box = network.box
        self.minimisers = box.lower
        self._center = (box.lower + (box.upper - box.lower) / 2).flatten()
        self._radius = torch.maximum(box.upper.flatten() - self._center, self._center - box.lower.flatten())
        self._random = torch.Generator().manual_seed(0)

    @property
    def is_small(self) -> bool:
        """Whether linear programs over the network take little time."""
        return 4 * len(self.network) * (len(self.network) + self._center.shape[0]) <= EXACT_ENTRIES

    def root(self, count: int) -> ReluSubdomains:
        """Some subdomains, all the same, without split constraints."""
        lower, upper = (end.expand(count, -1) for end in (self.network.lower, self.network.upper))
        zero = torch.zeros_like(lower)
        alpha = (upper > -lower).to(lower.dtype)
        return ReluSubdomains(lower, upper, zero, alpha, zero.clone(), lower.new_full((count,), -inf))

    def bound(
        self, part: ReluSubdomains, targets: Targets, steps: int, weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Bounds of the best mixture of rows, (n,), and scores for splits, (n, neurons). Updates the multipliers.

        Args:
            weights: of the rows, before a softmax, to start from, (n, rows); equal ones by default.
        """
        from zonoplug.lirpa.ascent import Adam
        from zonoplug.lirpa.backward.triangle import relu_triangle

        triangles = relu_triangle(Interval(part.lower, part.upper))
        slope, intercept, unstable = (
            side.squeeze(1) for side in (triangles.slope, triangles.intercept, triangles.unstable)
        )
        mixed = targets.there.shape[1] > 1
        weights = part.alpha.new_zeros(len(part), targets.there.shape[1]) if weights is None else weights
        kept = [part.alpha, part.beta, weights]
        free = alpha, beta, weights = [value.clone() for value in kept]
        climber = Adam(free, [ALPHA_RATE, BETA_RATE, WEIGHT_RATE], DECAY)
        best = part.bound.new_full((len(part),), -inf)
        for step in range(steps + 1):
            shares = weights.masked_fill(~targets.there, -inf).softmax(dim=1)
            below = torch.where(unstable, alpha, slope)
            behind, at_input, value = self._backward(shares, targets, below, slope, intercept, beta * part.sign)
            better = (value > best).unsqueeze(1)
            kept = [torch.where(better, now, before) for now, before in zip(free, kept, strict=True)]
            best = torch.fmax(best, value)
            primal = partial(self._primal, at_input, behind, below, slope, intercept)
            if step == steps or bool((best > 0).all()):
                break
            z, images, x = primal()
            rising = (value <= ENOUGH).unsqueeze(1).to(z.dtype)
            moves = [behind.clamp(min=0) * z * unstable * rising, -part.sign * z * rising, None]
            if mixed:
                rows = targets.constant + (
                    targets.inputs @ x.unsqueeze(2) + targets.before @ images.unsqueeze(2)
                ).squeeze(2)
                moves[2] = shares * (rows - (shares * rows).sum(dim=1, keepdim=True)) * rising
            climber.step(moves)
            alpha.clamp_(0, 1)
            beta.clamp_(min=0)
        part.alpha, part.beta, _ = kept
        box = self.network.box
        self.minimisers = torch.where(at_input.unflatten(1, box.lower.shape[1:]) > 0, box.lower, box.upper)
        facts = ActivationFacts(
            part.lower, part.upper, behind, part.alpha, part.unstable_neurons, lambda: primal()[0], self._random
        )
        return best, unstable_scores(self._rule, facts)

    def _backward(
        self, shares: Tensor, targets: Targets, below: Tensor, slope: Tensor, intercept: Tensor, fixed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients behind the ReLUs, (n, neurons), and at the inputs, (n, inputs), and the lower bound, (n,)."""
        forms, shares = self.network.forms, shares.unsqueeze(1)
        behind = (shares @ targets.before).squeeze(1)
        front = torch.empty_like(behind)
        for section in reversed(self.network.sections):
            a = behind[:, section]
            negative = a.clamp(max=0)
            image = (a - negative) * below[:, section] + negative * slope[:, section] - fixed[:, section]
            front[:, section] = image
            if section.start:
                behind[:, : section.start] += image @ forms.before[section, : section.start]
        at_input = (shares @ targets.inputs).squeeze(1) + front @ forms.inputs
        value = (shares @ targets.constant.unsqueeze(2))[:, 0, 0] + (behind.clamp(max=0) * intercept).sum(dim=1)
        value = value + front @ forms.constant + self._least(at_input)
        error = (shares @ targets.error.unsqueeze(2))[:, 0, 0] + front.abs() @ forms.error
        return behind, at_input, value - ERROR_SLACK * error

    def _least(self, at_input: Tensor) -> Tensor:
        """The least of  a . x  on the box, (n,): sums of blocks, added up in double precision."""
        whole = at_input * self._center - at_input.abs() * self._radius
        missing = -whole.shape[1] % BLOCK
        blocks = functional.pad(whole, (0, missing)).unflatten(1, (-1, BLOCK)).sum(dim=2)
        total: Tensor = blocks.sum(dim=1, dtype=torch.float64)
        return total.to(whole.dtype)

    def _primal(
        self, at_input: Tensor, behind: Tensor, below: Tensor, slope: Tensor, intercept: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where the bound is least: pre-activations and images of the neurons, (n, neurons), and the inputs."""
        forms = self.network.forms
        x = self._center - self._radius * at_input.sign()
        z = x @ forms.inputs.T + forms.constant
        images = torch.empty_like(z)
        for section in self.network.sections:
            if section.start:
                z[:, section] += images[:, : section.start] @ forms.before[section, : section.start].T
            own = z[:, section]
            upper = slope[:, section] * own + intercept[:, section]
            images[:, section] = torch.where(behind[:, section] >= 0, below[:, section] * own, upper)
        return z, images, x


class UnstableMargins:
    """Bounds of the margins of properties, as `relu_tree.Bounds`.

    Args:
        bounds: over the network.
        forms: of the rows of all properties, one property after another.
        properties: of rising numbers.
        programs: whether `last` may use linear programs.
    """

    batch = 256

    def __init__(self, bounds: UnstableBounds, forms: Forms, properties: Properties, programs: bool = True) -> None:
        self._bounds, self._numbers = bounds, properties.number
        self._programs = programs and bounds.is_small
        inputs, before, constant, error = (part.unflatten(0, properties.goal.shape) for part in forms.parts())
        error = error + properties.goal.abs() * (4 * unit(error.dtype))  # of the difference
        self._targets = Targets(inputs, before, constant - properties.goal, error, properties.there)

    @property
    def minimisers(self) -> Tensor:
        """(n, *input_shape) the inputs at which the latest bounds were least."""
        return self._bounds.minimisers

    @minimisers.setter
    def minimisers(self, points: Tensor) -> None:
        self._bounds.minimisers = points

    def root(self, count: int) -> ReluSubdomains:
        """Some subdomains, all the same, without split constraints."""
        return self._bounds.root(count)

    def bound(self, part: ReluSubdomains, properties: Properties, steps: int) -> tuple[Tensor, Tensor]:
        """Margins of the best mixture of rows, (n,), and scores for splits, (n, neurons)."""
        return self._bounds.bound(part, self.targets(properties), steps)

    def targets(self, properties: Properties) -> Targets:
        """What is bounded for some of the properties."""
        return self._targets.pick(torch.searchsorted(self._numbers, properties.number))

    def last(self, part: ReluSubdomains, properties: Properties) -> Tensor:
        """By many gradient steps; then for a few by a linear program, whose points `minimisers` are then."""
        bound, _ = self.bound(part, properties, LAST_STEPS)
        targets = self.targets(properties)
        points, deadline = [], Deadline(EXACT_SECONDS)
        for at in (~(bound > 0)).nonzero().flatten()[:EXACT].tolist() if self._programs else []:
            piece = part.pick(slice(at, at + 1))
            target = targets.pick(slice(at, at + 1) if len(targets) > 1 else slice(None))
            found = lp_duals(self._bounds.network, piece, target, max(deadline.left_seconds, 0.0))
            if found is not None:
                piece.alpha, piece.beta = found.alpha, found.beta
                bound[at] = torch.fmax(bound[at], self._bounds.bound(piece, target, 0, found.weights)[0][0])
                points.append(found.point)
        if points:
            self.minimisers = torch.stack(points).unflatten(1, self.minimisers.shape[1:])
        return bound
