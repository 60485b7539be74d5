"""Exact membership in an affine image, by linear programming."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import linprog

PRECISE = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}


@pytest.fixture
def how_far_outside():
    """A function: by how much, in a coordinate, points (m, batch, *shape) of a set's zonotope are missed at most.

    minimise t  with  |x - c - sum_j g_j e_j| <= box + noise + t,  |e_j| <= 1.
    """

    def measure(known, points):
        worst = -np.inf
        for element in range(known.center.shape[0]):
            center = known.center[element].flatten().double().numpy()
            generators = known.generators[element].flatten(1).double().numpy().T
            room = np.zeros_like(center)
            for radius in (known.box, known.noise):
                room += 0 if radius is None else radius[element].flatten().double().numpy()
            # In units of the largest generator, as the solver drops coefficients below 1e-9.
            unit = np.abs(generators).max(initial=0.0)
            if unit < 1e-12:
                worst = max(worst, (np.abs(points[:, element].flatten(1).double().numpy() - center) - room).max())
                continue
            ones = np.ones((len(center), 1))
            sides = np.block([[generators / unit, -ones], [-generators / unit, -ones]])
            cost = np.r_[np.zeros(generators.shape[1]), 1.0]
            limits = [(-1, 1)] * generators.shape[1] + [(None, None)]
            for point in points[:, element].flatten(1).double().numpy():
                gap = point - center
                bounds = np.r_[gap + room, -gap + room] / unit
                found = linprog(cost, sides, bounds, bounds=limits, method="highs", options=PRECISE)
                assert found.status == 0
                symbols = found.x[:-1].clip(-1, 1)
                worst = max(worst, (np.abs(gap - generators @ symbols) - room).max())
        return worst

    return measure
