"""Networks written in their unstable neurons, and exact bounds over them by linear programs, for tests."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import settings
from scipy.optimize import linprog
from torch import nn

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.lirpa.backward.passes import Backward
from zonoplug.lirpa.backward.unstable_network import Forms
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import build, forward_propagation
from zonoplug.verify.bounds.unstable_bounds import UnstableBounds
from zonoplug.verify.branching.activations import activation_rule
from zonoplug.verify.search.neuron_search import NeuronSearch
from zonoplug.verify.subdomains.neuron_layout import NeuronLayout
from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains

RULE = activation_rule("auto")
few = settings(max_examples=5)


class Residual(nn.Module):
    """Convolutions whose results are added to what went in, and a concatenation of both branches."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.middle, self.last = nn.Linear(64, 6), nn.Linear(6, 3)

    def forward(self, x):
        y = torch.relu(self.first(x))
        z = torch.relu(self.second(y) + y)
        return self.last(torch.relu(self.middle(torch.cat([y.flatten(1), z.flatten(1)], dim=1))))


def dense(*sizes):
    """A fully connected network."""
    pairs = [(nn.Linear(a, b), nn.ReLU()) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*itertools.chain(*pairs))[:-1]


def convolutional():
    """Two convolutions, the second with strides, and two dense layers."""
    first, second = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 2, 2, stride=2)
    last = (nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), *last)


MAKERS = {
    "dense": (lambda: dense(4, 8, 7, 6, 3), (4,), 0.8),
    "convolutional": (convolutional, (1, 4, 4), 0.3),
    "residual": (Residual, (1, 4, 4), 0.15),
    "tiny": (lambda: dense(3, 4, 3, 4, 2), (3,), 0.9),
}
KINDS = ("dense", "convolutional", "residual")


def model_of(kind, seed, dtype=torch.float64):
    """A random network of a kind, and an input box."""
    torch.manual_seed(seed)
    make, shape, radius = MAKERS[kind]
    model = make().to(dtype).eval()
    for name, value in model.named_parameters():
        value.data *= 2.0 if name.endswith("weight") else 1.0
    return model, Box.ball(torch.randn(1, *shape, dtype=dtype), radius)


class Opened:
    """A model on a box, over the zonotope's pre-activation bounds, in its unstable neurons; and affine forms of rows of
    its outputs.

    Args:
        rows: (r, outputs), random ones if there are none.
        change: what becomes of the pre-activation bounds, by node name, before they are used.
    """

    def __init__(self, model, box, rows=None, change=dict):
        self.box, self.module = box, build(model, box.lower)
        with torch.no_grad():
            self.zonotope = change(
                forward_propagation(self.module, [box], BoundMethod.parse("zonotope")).preactivations
            )
        self.backward = Backward(self.module)
        self.layout = NeuronLayout(self.backward, self.zonotope)
        self.search = NeuronSearch(self.module, box, RULE, self.layout.places)
        self.rows = torch.randn(4, self.backward.size, dtype=box.lower.dtype) if rows is None else rows
        self.preactivations, self.network, _ = self.tighten(0)
        self.forms = self.network.forms_of(self.backward, self.preactivations, self.rows)
        self.bounds = UnstableBounds(self.network, RULE)

    @classmethod
    def random(cls, kind, seed, dtype=torch.float64):
        """Of a random model."""
        return cls(*model_of(kind, seed, dtype))

    def tighten(self, leaves, seconds=60.0, preactivations=None):
        """One of the search on single neurons."""
        return self.search.tighten(
            self.zonotope if preactivations is None else preactivations, leaves, Deadline(seconds)
        )

    def points(self, count, seed=0):
        """Of the box, (count, *input_shape)."""
        return self.box.sample(count, torch.Generator().manual_seed(seed))[:, 0]

    def every(self, points):
        """All pre-activations at points, (count, all neurons)."""
        return self.layout.values(self.module, points)

    def unstable(self, points):
        """The open pre-activations at points, (count, unstable neurons)."""
        return self.every(points)[:, self.network.numbers]

    def outputs(self, points):
        """The rows of the outputs at points, (count, r)."""
        with torch.no_grad():
            return self.module(points) @ self.rows.T

    def fixed(self, signs):
        """Subdomains with split constraints (n, unstable neurons)."""
        part = self.bounds.root(len(signs))
        lower, upper = part.lower.masked_fill(signs > 0, 0.0), part.upper.masked_fill(signs < 0, 0.0)
        return ReluSubdomains(lower, upper, signs, part.alpha.clone(), part.beta, part.bound)

    def properties(self, goal, there=None):
        """All rows as one disjunct, which goals (r,) are to be exceeded by."""
        there = torch.ones_like(goal, dtype=torch.bool) if there is None else there
        return Properties(self.rows[None], goal[None], there[None], torch.zeros(1, dtype=torch.int64))


def signs_of(values, share, seed):
    """The signs of values (n, neurons), as far as a share of the neurons is fixed."""
    random = torch.Generator().manual_seed(seed)
    return values.sign() * (torch.rand(values.shape, generator=random) < share)


def evaluate(forms, network, points, relus):
    """Affine forms at points, (count, r), where the unstable neurons have given images (count, unstable neurons)."""
    return points.flatten(1) @ forms.inputs.T + relus[:, : forms.before.shape[1]] @ forms.before.T + forms.constant


def least(opened, forms, sign, minus=None):
    """The least value that the largest of forms, less `minus`, has over the triangles of a subdomain with split
    constraints.

    A linear program in inputs x, images h of the unstable neurons, and the value t; inf where there is no point.
    """
    network, box = opened.network, opened.box
    size, count, rows = box.lower.numel(), len(network), len(forms.constant)
    own = [part.numpy() for part in network.forms.parts()]
    above, right = [], []

    def at_most(inputs, before, value, bound):
        above.append(np.concatenate([inputs, before, [value]]))
        right.append(bound)

    unit = np.eye(count)
    lower, upper = network.lower.numpy(), network.upper.numpy()
    for i in range(count):
        x, h, c = own[0][i], own[1][i], own[2][i]
        if sign[i] >= 0:
            at_most(x, h - unit[i], 0.0, -c)  # z <= h
        if sign[i] > 0:
            at_most(-x, unit[i] - h, 0.0, c)  # h <= z, and h >= 0 as everywhere
        if sign[i] < 0:
            at_most(x, h, 0.0, -c)
            at_most(0 * x, unit[i], 0.0, 0.0)
        if sign[i] == 0:
            slope = upper[i] / (upper[i] - lower[i])
            at_most(-slope * x, unit[i] - slope * h, 0.0, slope * (c - lower[i]))
    for row in range(rows):
        constant = forms.constant[row] - (0.0 if minus is None else minus[row])
        at_most(forms.inputs[row].numpy(), forms.before[row].numpy(), -1.0, -float(constant))
    ends = zip(box.lower.flatten().tolist(), box.upper.flatten().tolist(), strict=True)
    limits = [*ends, *[(0, None)] * count, (None, None)]
    cost = np.eye(size + count + 1)[-1]
    exactly = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
    found = linprog(cost, np.array(above), np.array(right), bounds=limits, method="highs", options=exactly)
    assert found.status in (0, 2)
    return float(found.fun) if found.status == 0 else float("inf")


def negative(forms):
    """Forms of the values' negatives."""
    return Forms(-forms.inputs, -forms.before, -forms.constant, forms.error)


def exact_least(opened, forms):
    """The least value of a form on the box: over all patterns of signs of the unstable neurons."""
    patterns = itertools.product((1.0, -1.0), repeat=len(opened.network))
    return min(least(opened, forms, pattern) for pattern in patterns)
