"""Specifications that a known point violates, and certificates that claim they hold."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from zonoplug.certificates.certificate import Certificate, InputSplit, Leaf, Proof, ReluSplit, sha256_of
from zonoplug.certificates.onnx_reader import read_network
from zonoplug.errors import ZonoplugError

POINTS = 24


def violated_rows(run, random, inputs, dtype):
    """A box, and rows (coefficients, bound) that the worst of some points of it satisfies; None if nothing is finite.

    The bound of each row is its exact value at that point, rounded up: the least bound that the point still violates.
    """
    center = random.normal(size=inputs) * random.choice([1.0, 1.0, 100.0, 1e-3])
    width = random.choice([0.0, 1e-6, 0.1, 1.0]) * random.random(inputs) * (random.random(inputs) < 0.7)
    lower, upper = ((center + sign * width).astype(dtype) for sign in (-1, 1))
    share = random.uniform(size=(POINTS, inputs))
    share[POINTS // 2 :] = share[POINTS // 2 :] < 0.5
    points = np.clip((lower + share * (upper - lower)).astype(dtype), lower, upper)
    outputs = np.stack([run(point) for point in points]).astype(np.float64)
    if not np.isfinite(outputs).all():
        return None
    chosen = [_row(random, outputs.shape[1]) for _ in range(random.integers(1, 3))]
    worst = int((outputs @ chosen[0]).argmin())
    rows = [(row, _at_least(_exact(row, outputs[worst]))) for row in chosen]
    return lower, upper, rows


def lowered(rows, run, lower, upper):
    """The same rows with bounds far below anything near: claims that are true, for small boxes at least."""
    middle = np.abs(run((lower.astype(float) + upper) / 2)).astype(float)
    return [(row, bound - 1e3 * (np.abs(row) @ middle + 1.0)) for row, bound in rows]


def certificates(network, spec, random, inputs, lower, upper, trees):
    """A single leaf, and random trees with random slopes and multipliers."""
    try:
        sizes = [block.places.size for block in read_network(network)[0].relus]
    except ZonoplugError:
        sizes = []
    yield guess(network, spec)
    for nodes in (_tree(random, inputs, sizes, lower, upper) for _ in range(trees)):
        yield Certificate(sha256_of(network), sha256_of(spec), [Proof(0, (0,), nodes)])


def _tree(random, inputs, sizes, lower, upper):
    nodes, open_ = [], 1
    while open_:
        kind = random.integers(4) if len(nodes) < 6 else 3
        axis = int(random.integers(inputs))
        if kind == 0:
            nodes.append(InputSplit(axis, float(random.uniform(lower[axis], upper[axis]))))
        elif kind == 1 and sizes:
            layer = int(random.integers(len(sizes)))
            nodes.append(ReluSplit(layer, int(random.integers(sizes[layer]))))
        else:
            nodes.append(_leaf(random, sizes))
        open_ += -1 if isinstance(nodes[-1], Leaf) else 1
    return nodes


def _leaf(random, sizes):
    alpha = random.choice([0.0, 0.3, 1.0], sum(sizes)) if random.random() < 0.7 else None
    neurons = [(layer, int(random.integers(size))) for layer, size in enumerate(sizes) for _ in range(2)]
    return Leaf("a guess", alpha, tuple((*at, float(random.choice([0.5, 1e6, 1e-300, 1e308]))) for at in neurons))


def _row(random, outputs):
    row = np.zeros(outputs)
    kind = random.integers(3)
    row[random.integers(outputs)] = random.choice([1.0, -1.0])
    if kind == 1:
        row[random.integers(outputs)] = random.choice([1.0, -1.0])
    elif kind == 2:
        row += random.normal(size=outputs) * (random.random(outputs) < 0.5)
    return row


def _exact(row, values):
    return sum((Fraction(float(a)) * Fraction(float(y)) for a, y in zip(row, values, strict=True)), Fraction(0))


def _at_least(value):
    near = float(value)
    return near if Fraction(near) >= value else float(np.nextafter(near, np.inf))


def guess(network, spec):
    """The certificate of a single leaf."""
    return Certificate(sha256_of(network), sha256_of(spec), [Proof(0, (0,), [Leaf("a guess")])])
