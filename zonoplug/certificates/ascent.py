"""Better slopes and multipliers for backward bounds, by gradient steps; bounds with any of them hold.

The bound of a row is the value, at the corner x of the input box where the row's linear form is least, of the network
in which every activation is replaced by the line that the pass used. So its derivative by a ReLU's lower slope is the
coefficient behind the ReLU, where that is positive, times the ReLU's input at x in that network; and by the multiplier
of a split constraint, minus the sign times that input.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from zonoplug.certificates.network import Affine, Floats, Network, Places
from zonoplug.certificates.rounded_bounds import Bounds, RowBounds

RATE = 0.2
DECAY = 0.95
ENTRIES = 2**22


@dataclass(slots=True)
class _Adam:
    """Steps uphill of a size that does not depend on the gradient's."""

    rate: float
    first: Floats | float = 0.0
    second: Floats | float = 0.0
    steps: int = 0

    def step(self, gradient: Floats) -> Floats:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient * gradient
        mean, square = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        self.rate *= DECAY
        return np.asarray(self.rate * mean / (np.sqrt(square) + 1e-12))


@dataclass(slots=True, eq=False)
class Choices:
    """Lower slopes, and multipliers of split constraints, by the start of a ReLU, (batch, n) each."""

    alpha: dict[int, Floats] = field(default_factory=dict)
    beta: dict[int, Floats] = field(default_factory=dict)


def ascend(
    bounds: Bounds, places: Places, rows: Floats, goal: Floats, phases: dict[int, Floats], start: Choices, steps: int
) -> Floats:
    """The best lower bound of one row for each box of a batch over some gradient steps: (batch,).

    Args:
        bounds: of every place, on the batch.
        places, rows: (n,) and (batch, 1, n).
        goal: (batch,) bounds above it are good enough.
        phases: the signs of ReLUs' inputs that are known on each box, (batch, n) in {-1, 0, 1}.
        start: what to begin with; the slopes that waste less, and no multipliers, where it says nothing.
    """
    network = bounds.network
    last = int(places.max()) + 1
    relus = [block for block in network.relus if block.start < last]
    bounds.make_lines("adaptive", start.alpha or None)
    alpha = {block.start: bounds.lines[block.start].below_slope.copy() for block in relus}
    beta = {at: start.beta.get(at, np.zeros(sign.shape)) for at, sign in phases.items() if at in alpha}
    climbers = {at: _Adam(RATE) for at in alpha} | {-1 - at: _Adam(RATE) for at in beta}
    best = np.full(bounds.lower.shape[0], -np.inf)
    for step in range(steps + 1):
        passed = bounds.rows_below(places, rows, {at: beta[at] * phases[at] for at in beta}, keep=True)
        best = np.fmax(best, passed.lower[:, 0])
        if step == steps or (best > goal).all():
            break
        inputs = _inputs_at_minimum(bounds, passed, last)
        for block in relus:
            at, z = block.start, inputs[block.start]
            positive = np.maximum(passed.activations[at][:, 0], 0.0) if at in passed.activations else np.zeros((1, 1))
            width = positive.shape[1]
            gradient = np.zeros(z.shape)
            gradient[:, :width] = positive * z[:, :width]
            alpha[at] = np.clip(alpha[at] + climbers[at].step(np.nan_to_num(gradient)), 0.0, 1.0)
            if at in beta:
                pull = climbers[-1 - at].step(np.nan_to_num(-phases[at] * z))
                beta[at] = np.maximum(beta[at] + pull, 0.0) * (phases[at] != 0)
        bounds.make_lines("adaptive", alpha)
    return best


def tighten(network: Network, lower: Floats, upper: Floats, steps: int) -> tuple[Floats, Floats]:
    """Bounds of every place on one box, (1, places) each; each unstable neuron gets slopes of its own.

    Args:
        lower, upper: the input box, (inputs,).
    """
    whole = Bounds(network, lower[None], upper[None])
    whole.run({}, ("adaptive", "parallel"))
    for block in network.relus[1:]:
        low, high = whole.lower[0, block.places], whole.upper[0, block.places]
        open_ = np.unique(block.places[(low < 0) & (high > 0)])
        for part in np.array_split(open_, max(1, 2 * open_.size * network.size // ENTRIES)) if open_.size else []:
            many = np.repeat(part, 2)
            sides = np.tile([1.0, -1.0], part.size)
            boxes = np.broadcast_to(lower, (many.size, lower.size)), np.broadcast_to(upper, (many.size, upper.size))
            bounds = Bounds(network, *boxes, (whole.lower, whole.upper))
            rows = np.zeros((many.size, 1, part.size))
            rows[np.arange(many.size), 0, np.repeat(np.arange(part.size), 2)] = sides
            found = ascend(bounds, part, rows, np.zeros(many.size), {}, Choices(), steps)
            whole.lower[0, part] = np.fmax(whole.lower[0, part], found[::2])
            whole.upper[0, part] = np.fmin(whole.upper[0, part], -found[1::2])
        whole.run({})
    return whole.lower, whole.upper


def _inputs_at_minimum(bounds: Bounds, passed: RowBounds, last: int) -> dict[int, Floats]:
    """The activations' inputs, (batch, n) by start, in the network of lines at the minimising corner."""
    network = bounds.network
    inputs = slice(0, network.num_inputs)
    row = np.zeros((bounds.lower.shape[0], network.size))
    row[:, inputs] = np.where(passed.inputs[:, 0] > 0, bounds.lower[:, inputs], bounds.upper[:, inputs])
    found = {}
    for block in network.blocks:
        if block.start >= last:
            break
        x = row[:, block.places]
        if isinstance(block, Affine):
            row[:, block.start : block.stop] = block.matrix.forward(x) + block.bias
            continue
        found[block.start] = x
        lines = bounds.lines[block.start]
        y = lines.above_slope * x + lines.above
        if block.start in passed.activations:
            a = passed.activations[block.start][:, 0]
            width = a.shape[1]
            below = lines.below_slope * x + lines.below
            y[:, :width] = np.where(a > 0, below[:, :width], y[:, :width])
        row[:, block.start : block.stop] = y
    return found
