"""Bounds of the checker's network that hold whatever float64 rounds: intervals forward, linear forms backward.

With unit roundoff u and gamma(m) = m u / (1 - m u), a sum of m products, computed in any order, is off by at most
gamma(m) times the sum of absolute products. A backward pass may use any coefficients it likes, rounded ones included:
what counts is the constant. Where  a y >= A x + const  is computed with rounding errors dA, |x| <= X makes it

    a y  >=  A x + const - |dA| X - |dconst|

so the errors of a whole pass are one number for each row, taken off at the end.

The bounds hold for the real function and for what the runtime computes. There, the outputs of a block are those of the
real block at computed inputs, plus an error of at most d: intervals are widened by d, and a backward pass that meets
coefficients A at the outputs takes |A| d off. These coefficients have their signs cancelled by then, so an error counts
by its own way to the output alone. See runtime_rounding.py for d.

Source: Higham, Accuracy and Stability of Numerical Algorithms, section 3.1 (gamma); Zhang et al., NeurIPS 2018 (linear
bounds backward); Wang et al., NeurIPS 2021 (multipliers of split constraints).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zonoplug.certificates.lines import TINY, UNIT, Lines, best_lines, down, enclose, gamma, image, up
from zonoplug.certificates.network import Activation, Affine, Floats, Network, Places
from zonoplug.certificates.runtime_rounding import runtime_error


@dataclass(frozen=True, slots=True, eq=False)
class RowBounds:
    """Lower bounds of linear forms, and what they came from.

    Attributes:
        lower: (batch, rows); NaN where nothing is known.
        inputs: the coefficients at the inputs, (batch, rows, inputs).
        activations: behind each activation, by its start, (batch, rows, n), if they were asked for.
    """

    lower: Floats
    inputs: Floats
    activations: dict[int, Floats]


class Bounds:
    """Bounds of every place of a network's row on a batch of boxes.

    Args:
        network: what is bounded.
        lower, upper: input boxes, (batch, inputs).
        start: bounds that are known to hold on every box of the batch, (1 or batch, places) each.

    Attributes:
        lower, upper: (batch, places). After `run` they hold for every point of a box whose activations have the signs
            that were given.
        empty: (batch,) no such point exists.
        overflows: (batch,) the runtime's numbers may overflow; no backward pass proves anything there.
    """

    def __init__(
        self, network: Network, lower: Floats, upper: Floats, start: tuple[Floats, Floats] | None = None
    ) -> None:
        self.network = network
        size = (lower.shape[0], network.size)
        self.lower, self.upper = np.full(size, -np.inf), np.full(size, np.inf)
        if start is not None:
            self.lower[:], self.upper[:] = start
        inputs = slice(0, network.num_inputs)
        self.lower[:, inputs], self.upper[:, inputs] = lower, upper
        self.empty = np.zeros(size[0], np.bool_)
        self.overflows = np.zeros(size[0], np.bool_)
        self.lines: dict[int, Lines] = {}
        self._errors: dict[int, Floats] = {}
        self._peak = np.maximum(np.abs(lower), np.abs(upper)).max(axis=1, initial=1.0)

    def run(self, phases: dict[int, Floats], strategies: tuple[str, ...] = ()) -> None:
        """Bound all places from the inputs on.

        Args:
            phases: by an activation's start, its inputs' signs, (batch, n) in {-1, 0, 1}, 0 where nothing is known.
            strategies: slopes of backward passes that tighten the inputs of activations: "adaptive", "parallel".
        """
        for block in self.network.blocks:
            if isinstance(block, Affine):
                self._affine(block)
            else:
                for strategy in strategies:
                    self._tighten(block, strategy)
                if block.start in phases:
                    self._apply_phases(block, phases[block.start])
                self._image(block)

    def make_lines(self, strategy: str, alpha: dict[int, Floats] | None = None) -> None:
        """Choose lines for every activation.

        Args:
            strategy: "parallel" for the chord's slope on both sides, "adaptive" for the slope that wastes less.
            alpha: by an activation's start, lower slopes in [0, 1] to use where a ReLU is unstable.
        """
        for block in self.network.activations:
            self._choose_lines(block, strategy, None if alpha is None else alpha.get(block.start))

    def rows_below(
        self, places: Places, rows: Floats, pulls: dict[int, Floats] | None = None, keep: bool = False
    ) -> RowBounds:
        """Lower bounds of rows . row[places].

        Args:
            places: (n,); the coefficients of a place that repeats are added up.
            rows: (rows, n), or (batch, rows, n).
            pulls: by an activation's start, what to take off the coefficients of its inputs, (batch, n): beta times the
                sign, where beta >= 0 and sign times the input is known to be >= 0.
            keep: the coefficients behind activations are wanted.
        """
        network, batch = self.network, self.lower.shape[0]
        count = rows.shape[-2]
        last = int(places.max(initial=-1)) + 1
        a = np.zeros((batch, count, max(last, network.num_inputs)))
        np.add.at(a, np.s_[:, :, places], rows)  # type: ignore[arg-type]
        touched = np.zeros(a.shape[2], np.bool_)
        touched[places] = True
        largest = np.maximum(np.abs(self.lower), np.abs(self.upper))
        constant = np.zeros((batch, count))
        error = np.zeros((batch, count))
        if np.unique(places).size < places.size:
            error += (
                2
                * places.size
                * UNIT
                * _times(np.broadcast_to(np.abs(rows), (batch, count, places.size)), largest[:, places])
            )
        self._find_errors(last, largest)
        kept = {}
        for block in reversed(network.blocks):
            if block.start >= last or not touched[block.start : min(block.stop, last)].any():
                continue
            mine = a[:, :, block.start : block.stop]
            reach = TINY * (1.0 + largest[:, block.places].sum(axis=1))[:, None]
            own = self._errors[block.start]
            if isinstance(block, Affine):
                flat = np.zeros((batch * count, block.stop - block.start))
                flat[:, : mine.shape[2]] = mine.reshape(batch * count, -1)
                part = block.matrix.backward(flat).reshape(batch, count, -1)
                full = flat.reshape(batch, count, -1)
                constant += full @ block.bias
                error += _times(np.abs(full), own) + (block.matrix.terms + block.bias.size) * reach
            else:
                width = mine.shape[2]
                if keep:
                    kept[block.start] = mine
                below_slope, below, above_slope, above = (
                    line[:, None, :width] for line in self.lines[block.start].parts()
                )
                positive, negative = np.maximum(mine, 0.0), np.minimum(mine, 0.0)
                part = positive * below_slope + negative * above_slope
                constant += (positive * below + negative * above).sum(axis=2)
                magnitude = np.maximum(np.abs(below), np.abs(above))[:, 0]
                steepest = np.maximum(np.abs(below_slope), np.abs(above_slope))[:, 0]
                inputs = largest[:, block.places[:width]]
                charge = gamma(width) * magnitude + 4 * UNIT * (inputs * steepest) + own[:, :width]
                error += _times(np.abs(mine), charge) + (width + 1) * reach
                if pulls is not None and block.start in pulls:
                    part -= pulls[block.start][:, None, :width]
                    error += 4 * UNIT * _times(np.abs(part), inputs)
            target = block.places[: part.shape[2]]
            if not block.distinct:
                np.add.at(a, np.s_[:, :, target], part)  # type: ignore[arg-type]
                error += 2 * target.size * UNIT * _times(np.abs(part), largest[:, target])
                error += 2 * target.size * UNIT * _times(np.abs(a[:, :, target]), largest[:, target])
            elif touched[target].any():
                a[:, :, target] += part
                error += 2 * UNIT * _times(np.abs(a[:, :, target]), largest[:, target])
            else:
                a[:, :, target] = part
            touched[target] = True
            error += 2 * UNIT * np.abs(constant)
        inputs = slice(0, network.num_inputs)
        at_input = a[:, :, inputs]
        least = _times(np.maximum(at_input, 0.0), self.lower[:, inputs])
        least += _times(np.minimum(at_input, 0.0), self.upper[:, inputs])
        terms = network.num_inputs
        error += gamma(terms) * _times(np.abs(at_input), largest[:, inputs]) + (terms + 1) * TINY
        error[self.overflows] = np.inf
        total = constant + least
        error = error * (1.0 + gamma(len(network.blocks) * 8)) + 4 * UNIT * (np.abs(total) + np.abs(least))
        return RowBounds(down(total - error), at_input, kept)

    def _affine(self, block: Affine) -> None:
        low, high = self.lower[:, block.places], self.upper[:, block.places]
        center = low + (high - low) / 2
        radius = up(np.maximum(high - center, center - low))
        middle = block.matrix.forward(center) + block.bias
        spread, magnitude = np.split(
            block.matrix.forward(np.concatenate([radius, np.abs(center) + radius]), absolute=True), 2
        )
        magnitude = magnitude + np.abs(block.bias)
        runtime = self._affine_error(block, magnitude)
        reach = spread + (2 * gamma(block.matrix.terms) * magnitude + (block.matrix.terms + 1) * TINY + runtime)
        self._meet(slice(block.start, block.stop), down(middle - reach), up(middle + reach))

    def _affine_error(self, block: Affine, magnitude: Floats) -> Floats:
        """What the runtime rounds, (batch, n). Notes it, and what a backward pass here rounds, per unit of coefficient.

        Args:
            magnitude: bounds of the outputs' sums of absolute values, (batch, n).
        """
        rounding, runtime = self.network.rounding, np.zeros((1, 1))
        if rounding is not None:
            runtime = rounding.relative[block.start] * magnitude + (rounding.underflow * (1.0 + self._peak))[:, None]
            fits = (magnitude <= rounding.limit).all(axis=1)
            self.overflows |= ~fits
            self._peak = np.fmax(self._peak, magnitude.max(axis=1, initial=0.0))
        self._errors[block.start] = gamma(block.matrix.terms + block.bias.size) * magnitude + runtime
        return runtime

    def _activation_error(self, block: Activation, magnitude: Floats) -> Floats:
        """The same for a function of one variable; `magnitude` bounds its outputs."""
        rounding, runtime = self.network.rounding, np.zeros(magnitude.shape)
        if rounding is not None:
            relative, absolute = runtime_error(block.function.name, rounding.kind.name)
            runtime = 1.01 * (relative * magnitude + absolute) + (rounding.underflow * (1.0 + self._peak))[:, None]
        self._errors[block.start] = runtime
        return runtime

    def _find_errors(self, last: int, largest: Floats) -> None:
        """The errors of blocks before the place `last` that `run` has not met."""
        for block in self.network.blocks:
            if block.start >= last or block.start in self._errors:
                continue
            x = largest[:, block.places]
            if isinstance(block, Affine):
                self._affine_error(block, block.matrix.forward(x, absolute=True) + np.abs(block.bias))
            else:
                low, high = image(block.function, -x, x)
                self._activation_error(block, np.maximum(np.abs(low), np.abs(high)))

    def _image(self, block: Activation) -> None:
        """Bounds of an activation's outputs from those of its inputs."""
        low, high = image(block.function, self.lower[:, block.places], self.upper[:, block.places])
        runtime = self._activation_error(block, np.maximum(np.abs(low), np.abs(high)))
        low, high = down(low - runtime), up(high + runtime)
        if not block.function.ulps:  # exact: no number below or above the function's values
            least, most = (block.function.value(np.array(end)) for end in (-np.inf, np.inf))
            low, high = np.maximum(low, least), np.minimum(high, most)
        self._meet(slice(block.start, block.stop), low, high)

    def _meet(self, where: slice | Places, lower: Floats, upper: Floats) -> None:
        """Intersect; NaN on either side leaves the other."""
        self.lower[:, where] = np.fmax(self.lower[:, where], lower)
        self.upper[:, where] = np.fmin(self.upper[:, where], upper)

    def _apply_phases(self, block: Activation, sign: Floats) -> None:
        low, high = self.lower[:, block.places], self.upper[:, block.places]
        none = ((sign > 0) & (high < 0)).any(axis=1) | ((sign < 0) & (low > 0)).any(axis=1)
        self.empty |= none & ~self.overflows
        box, neuron = np.nonzero(sign)
        place, value = block.places[neuron], sign[box, neuron]
        np.maximum.at(self.lower, (box, place), np.where(value > 0, 0.0, -np.inf))
        np.minimum.at(self.upper, (box, place), np.where(value < 0, 0.0, np.inf))
        self.upper[box, place] = np.maximum(self.lower[box, place], self.upper[box, place])

    def _tighten(self, block: Activation, strategy: str) -> None:
        """Bound the activation's inputs by backward passes, where it is not linear on the interval."""
        low, high = self.lower[:, block.places], self.upper[:, block.places]
        open_ = high > low
        if block.function.breakpoints and not block.function.curvature:
            inner = [(low < value) & (value < high) for value in block.function.breakpoints]
            open_ = np.logical_or.reduce(inner)
        which = np.unique(block.places[open_.any(axis=0)])
        earlier = [other for other in self.network.activations if other.start < block.start]
        if not which.size or not earlier:
            return
        for other in earlier:
            self._choose_lines(other, strategy, None)
        most = max(1, 2**24 // (2 * self.lower.shape[0] * self.network.size))
        for first in range(0, which.size, most):
            part = which[first : first + most]
            unit = np.eye(part.size)
            bound = self.rows_below(part, np.concatenate([unit, -unit])).lower
            self._meet(part, bound[:, : part.size], -bound[:, part.size :])

    def _choose_lines(self, block: Activation, strategy: str, alpha: Floats | None) -> None:
        low, high = self.lower[:, block.places], self.upper[:, block.places]
        best = best_lines(block.function, low, high, adaptive=strategy == "adaptive")
        if alpha is not None:
            slope = np.where((low < 0) & (high > 0), alpha, best.below_slope)
            best = enclose(block.function, low, high, slope, best.above_slope)
        self.lines[block.start] = best


def _times(a: Floats, b: Floats) -> Floats:
    """sum_j a[i, r, j] b[i, j]: (batch, rows)."""
    return np.asarray(np.matmul(a, b[:, :, None])[:, :, 0])
