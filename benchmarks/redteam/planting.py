"""Makes an instance of a network: finds a point that ONNX Runtime maps far out, and puts a threshold beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from redteam.draws import Draws
from redteam.exact import Statement, decimal
from redteam.graph import Graph, SkipError
from redteam.runtime import Runtime
from redteam.specs import FORMS, Row, Spec, cut_boxes, decimals_around

Floats = NDArray[Any]
CLIMBS = 120


@dataclass
class Built:
    """A network before its specification.

    Attributes:
        graph, output: the network, and the tensor that becomes Y.
        low, high: (inputs,) the input box.
        points: where its output may be far out.
        variant: which form of its class this is.
        place, sign: the output to push, and which way; chosen at random if None.
        modes: runs that this instance is meant for.
        boxes: the chance that the box is cut into several.
        whole: keep the whole input box.
        beside: how the threshold lies beside the value; see BESIDE. Chosen at random if None.
        gate: the chance of a second output that is 1 at the witness and 0 elsewhere, so that no attack finds it.
        base: runs that every such instance gets.
        computed: only what is computed is unsafe, not the real function.
    """

    graph: Graph
    output: str
    low: Floats
    high: Floats
    points: list[Floats]
    variant: str
    place: int | None = None
    sign: int | None = None
    modes: tuple[str, ...] = ()
    boxes: float = 0.25
    whole: bool = False
    beside: str | None = None
    gate: float = 0.8
    base: tuple[str, ...] = ("auto", "auto blind")
    computed: bool = False


@dataclass
class Instance:
    """A network and a specification, with what is known about them.

    Attributes:
        truth: "violated", with a witness; "holds": no input is unsafe, by exact arithmetic; "easy": a threshold far
            beyond anything seen, to see whether anything is proved at all.
        witness: (inputs,) a point that ONNX Runtime maps into the unsafe set.
        levels: the optimisation levels at which it does.
        real: violated by the real function too, by far more than rounding.
    """

    variant: str
    model: bytes
    spec: str
    truth: str
    witness: Floats | None = None
    levels: tuple[str, ...] = ()
    real: bool = False
    modes: tuple[str, ...] = ()
    base: tuple[str, ...] = ("auto", "auto blind")
    easy_spec: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


BESIDE = ("exact", "exact", "strict", "ulp", "hair 7", "hair 6", "hair 5", "hair 4", "gap")


def plant(d: Draws, built: Built) -> Instance:
    """The instance, its witness confirmed by ONNX Runtime in exact arithmetic.

    Raises SkipError where nothing finite comes out.
    """
    runtime = Runtime(built.graph.model(built.output))
    low, high = (np.asarray(side, runtime.dtype) for side in (built.low, built.high))
    start = [np.asarray(point, runtime.dtype) for point in built.points]
    weights = _objective(d, built, runtime, low, high, start)

    def score(point: Floats) -> float:
        outputs = runtime(point).astype(np.float64)
        return float(sum(float(weight) * outputs[j] for j, weight in weights.items()))

    best, seen = _climb(d, score, low, high, start)
    gated = d.flag(built.gate)
    if not built.whole and d.flag(0.85 if gated else 0.2 if start else 0.6):
        low, high = _smaller(d, low, high, best, RADII[:6] if gated else RADII)
        best, more = _climb(d, score, low, high, [best])
        seen += more
    model = runtime.model
    if gated:  # any point will do: a second row holds at it and nowhere else
        if d.flag():
            best = _smaller(d, low, high, low + (high - low) * d.arrays.random(low.size).astype(low.dtype))[0]
        model = _with_gate(d, built, best, high - low)
        runtime = Runtime(model)
    seen = [value for value in seen if np.isfinite(value)]
    values = [_exact(weights, runtime(best, level)) for level in runtime.levels]
    finite = [value for value in values if value is not None]
    if not seen or not finite:
        raise SkipError("nothing finite comes out")
    value = max(finite) if d.flag(0.2) else min(finite)
    beside = built.beside or d.choice(BESIDE)
    spread = Fraction(max(seen) - min(seen))
    bound, relation = _threshold(beside, value, spread, runtime.dtype)
    count = runtime(best).size
    spec = Spec(decimals_around(d, low, high), [Row(weights, relation, bound)], count, form=d.choice(FORMS))
    words = [built.variant, cut_boxes(d, spec, low, high, built.boxes)]
    if gated:
        words.append("gated")
        spec.rows.append(Row({count - 1: Fraction(1)}, ">=", Fraction(1)))
    if d.flag(0.15):
        spec.others.append([Row(weights, relation, bound + 2 * spread + abs(bound) + 1)])
        words.append("two disjuncts")
    easy = Spec(spec.bounds, [Row(weights, ">=", bound + 10 * spread + 5 * abs(bound) + 5)], count)
    instance = Instance(" ".join(filter(None, words)), model, spec.text(), "violated", best, modes=built.modes)
    instance.base = built.base
    instance.easy_spec, instance.real = easy.text(), beside == "gap" and not built.computed
    instance.facts = {
        "beside": beside,
        "boxes": 2 ** len(spec.cuts),
        "version two": d.flag(0.15) and "auto" in built.base,
    }
    return confirmed(instance, runtime)


def _objective(
    d: Draws, built: Built, runtime: Runtime, low: Floats, high: Floats, start: Sequence[Floats]
) -> dict[int, Fraction]:
    """What is to be large: an output or its negative, or a mixture of two; large at the given points, if any."""
    first = runtime((low + high) / 2).astype(np.float64)
    if not first.size:
        raise SkipError("nothing comes out")
    place = built.place if built.place is not None else d.integer(0, first.size - 1)
    if not start or built.sign is not None:
        weights = {place: Fraction(built.sign if built.sign is not None else d.choice((1, -1)))}
        if first.size > 1 and built.place is None and d.flag(0.25):
            weights[(place + 1) % first.size] = Fraction(d.choice((-1, 1, -2)))
        return weights
    elsewhere = [low + (high - low) * d.arrays.random(low.size).astype(low.dtype) for _ in range(3)]
    lift = runtime(start[0]).astype(np.float64) - np.median([runtime(point) for point in elsewhere], axis=0)
    moved = np.flatnonzero(np.nan_to_num(lift))
    if not moved.size:
        raise SkipError("nothing depends on the point")
    if built.place is None:
        place = int(d.choice(list(moved)))
    return {place: Fraction(1 if lift[place] >= 0 else -1)}


def _with_gate(d: Draws, built: Built, point: Floats, width: Floats) -> bytes:
    """The model with a last output that is 1 at the point, and 0 where some input is farther off than its share."""
    graph, size = built.graph, point.size
    steep = d.choice((4.0, 30.0)) / max(float(width.max()), 1e-6)
    unit = np.eye(size)
    far = graph.add("Relu", graph.add("Gemm", graph.rows("X"), np.hstack([unit, -unit]), np.hstack([-point, point])))
    gate = graph.add("Relu", graph.add("Gemm", far, np.full((2 * size, 1), -steep), np.ones(1)))
    return graph.model(graph.add("Concat", graph.rows(built.output), gate, axis=1))


def confirmed(instance: Instance, runtime: Runtime | None = None) -> Instance:
    """The instance with the levels at which its witness is unsafe. Raises SkipError if there is none."""
    runtime = runtime or Runtime(instance.model)
    statement = Statement(instance.spec)
    witness = instance.witness
    assert witness is not None
    instance.levels = tuple(level for level in runtime.levels if statement.holds(witness, runtime(witness, level)))
    if not instance.levels:
        raise SkipError("the witness is not confirmed")
    return instance


def _exact(weights: dict[int, Fraction], outputs: Floats) -> Fraction | None:
    if not np.isfinite(outputs).all():
        return None
    return sum((weight * Fraction(float(outputs[j])) for j, weight in weights.items()), Fraction(0))


def _threshold(beside: str, value: Fraction, spread: Fraction, dtype: Any) -> tuple[Fraction, str]:
    """A bound that `value` satisfies, and the relation: at it, a unit in the last place or some digits below."""
    if beside == "exact":
        return value, ">="
    if beside == "gap":
        return value - (spread / 32 if spread > abs(value) / 1000 else abs(value) / 50 + Fraction(1, 10**30)), ">="
    if beside.startswith("hair"):
        return value - (abs(value) + Fraction(1, 10**30)) / 10 ** int(beside[-1]), ">="
    below = Fraction(float(np.nextafter(dtype.type(float(value)), dtype.type(-np.inf))))
    return min(below, value - Fraction(1, 10**60)), ">" if beside == "strict" else ">="


def _climb(d: Draws, score: Any, low: Floats, high: Floats, start: Sequence[Floats]) -> tuple[Floats, list[float]]:
    """The best point found by random points, corners and steps of single coordinates; and all values seen."""
    dtype, random = low.dtype, d.arrays
    varying = np.flatnonzero(high > low)
    points = [np.clip(point, low, high) for point in start]
    for _ in range(12):
        points.append((low + random.random(low.size) * (high - low)).astype(dtype).clip(low, high))
        points.append(np.where(random.random(low.size) < 0.5, low, high))
    values = [score(point) for point in points]
    known = [value if np.isfinite(value) else -np.inf for value in values]
    best, top = points[int(np.argmax(known))], max(known)
    if not varying.size:
        return best, values
    size = 1.0
    for step in range(CLIMBS):
        axis = varying[step % varying.size]
        trial = best.copy()
        how = random.random()
        width = high[axis] - low[axis]
        trial[axis] = (
            low[axis] if how < 0.3 else high[axis] if how < 0.6 else best[axis] + random.normal() * size * width
        )
        trial = trial.astype(dtype).clip(low, high)
        got = score(trial)
        values.append(got)
        if np.isfinite(got) and got > top:
            best, top = trial, got
        size *= 0.96
    return best, values


RADII = (0.3, 0.1, 0.03, 1e-2, 1e-3, 1e-4, 1e-6, 0.0)


def _smaller(
    d: Draws, low: Floats, high: Floats, best: Floats, radii: Sequence[float] = RADII
) -> tuple[Floats, Floats]:
    """A box around the point, inside the old one: anything from a third of the width down to the point itself."""
    radius = d.choice(radii)
    dtype, random = low.dtype, d.arrays
    width = (high - low) * radius
    share = random.random(low.size)
    a = np.maximum(low, (best - share * width).astype(dtype))
    b = np.minimum(high, (best + (1 - share) * width).astype(dtype))
    return np.minimum(a, best), np.maximum(b, best)


def point_box(points: Floats) -> list[tuple[str, str]]:
    """Bounds that allow one point."""
    return [(decimal(value), decimal(value)) for value in points]
