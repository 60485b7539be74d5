"""The best multipliers of one subdomain with split constraints, by an exact linear program over the relaxation.

    least t  where  rows . (x, a) + constant <= t,  z = P x + M a + c,
                    a >= z, a >= 0, a <= chord(z) where the neuron is unstable,  s z >= -e where it is split, at a cost
                    of e

over inputs x in the box and images a of the ReLUs. The program's dual values are slopes, multipliers of split
constraints and shares of rows. Only these are taken: what they prove is computed anew, with all that rounding may do,
as from any others.
Split constraints that contradict one another have multipliers without a bound; the cost of e bounds them.

Source of the solver: SciPy's HiGHS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zonoplug.domain.zonotope import Interval
from zonoplug.verify.bounds.targets import Targets
from zonoplug.verify.subdomains.relu_phases import ReluSubdomains

if TYPE_CHECKING:
    from zonoplug.lirpa.backward.unstable_network import UnstableNetwork

LARGEST = 1e4  # multiplier of a sign
TINY = 1e-12

Floats = NDArray[np.float64]


class LPDuals(NamedTuple):
    """What a program ended with.

    Attributes:
        alpha, beta: (1, neurons).
        weights: (1, rows) of the rows, before a softmax.
        point: (inputs,) where the relaxation is least; the network itself is, if no neuron is unstable.
        least: the value of the program.
        infeasibility: the infeasibility of the split constraints, altogether: 0 where they are possible together.
    """

    alpha: Tensor
    beta: Tensor
    weights: Tensor
    point: Tensor
    least: float
    infeasibility: float


def lp_duals(network: UnstableNetwork, part: ReluSubdomains, target: Targets, seconds: float) -> LPDuals | None:
    """The multipliers for one subdomain and one target, or None if the solver is missing, fails or takes longer.

    Args:
        part, target: of one entry.
        seconds: the limit.
    """
    from zonoplug.lirpa.backward.triangle import relu_triangle

    try:
        from scipy.optimize import linprog
    except ImportError:  # the search does without
        return None
    triangles = relu_triangle(Interval(part.lower, part.upper))
    slope, intercept, unstable = (
        _array(side.flatten()) for side in (triangles.slope, triangles.intercept, triangles.unstable)
    )
    inputs, before, constant = (_array(values) for values in network.forms.parts()[:3])
    sign, free = _array(part.sign[0]), unstable > 0
    fixed = sign != 0
    rows = _array(target.there[0]) > 0
    row_inputs, row_before, row_constant = (_array(v[0])[rows] for v in target.parts()[:3])
    size, count, held = inputs.shape[1], len(network), int(fixed.sum())
    image, identity = np.zeros((count, size)), np.eye(count)

    # Columns: inputs, images of the neurons, infeasibility, t. Each line: its values are at most the limit.
    def lines(at_inputs: Floats, at_images: Floats, infeasibility: Floats | None = None, t: float = 0.0) -> Floats:
        many = len(at_inputs)
        return np.hstack(
            [
                at_inputs,
                at_images,
                np.zeros((many, held)) if infeasibility is None else infeasibility,
                np.full((many, 1), t),
            ]
        )

    chord = slope[:, None]
    matrix = np.vstack(
        [
            lines(row_inputs, row_before, t=-1.0),
            lines(inputs[free], (before - identity)[free]),
            lines(image[free], -identity[free]),
            lines(-(chord * inputs), identity - chord * before),
            lines(-sign[fixed, None] * inputs[fixed], -sign[fixed, None] * before[fixed], -np.eye(held)),
        ]
    )
    limits = np.concatenate(
        [
            -row_constant,
            -constant[free],
            np.zeros(int(free.sum())),
            slope * constant + intercept,
            sign[fixed] * constant[fixed],
        ]
    )
    # Where the neuron is stable the image equals the chord, from below too.
    equal = lines((chord * inputs)[~free], (chord * before - identity)[~free])
    box = network.box
    ends = [*zip(_array(box.lower.flatten()), _array(box.upper.flatten()), strict=True)]
    answer = linprog(
        np.concatenate([np.zeros(size + count), np.full(held, LARGEST), [1.0]]),
        A_ub=np.vstack([matrix, equal]),
        b_ub=np.concatenate([limits, -(slope * constant)[~free]]),
        bounds=[*ends, *[(None, None)] * count, *[(0, None)] * held, (None, None)],
        method="highs",
        options={"time_limit": seconds},
    )
    if answer.status != 0:
        return None
    duals = np.split(-answer.ineqlin.marginals, np.cumsum([len(row_inputs), free.sum(), free.sum(), count, held]))
    alpha, beta, weights = part.alpha.clone(), part.beta.clone(), target.constant.clone().fill_(0.0)
    shares = duals[1] / np.maximum(duals[1] + duals[2], TINY)
    alpha[0, free] = alpha.new_tensor(shares)
    beta[0] = 0.0
    beta[0, fixed] = beta.new_tensor(duals[4])
    weights[0, rows] = weights.new_tensor(np.log(np.maximum(duals[0], TINY)))
    infeasibility = float(answer.x[size + count : -1].sum())
    return LPDuals(alpha, beta, weights, alpha.new_tensor(answer.x[:size]), float(answer.fun), infeasibility)


def _array(values: Tensor) -> Floats:
    return values.detach().double().cpu().numpy()
