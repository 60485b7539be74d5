"""Classes about what a specification says: numbers that floats do not have, strictness, boxes without a float."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from redteam.draws import Draws
from redteam.exact import decimal, written
from redteam.graph import Graph
from redteam.planting import Instance, confirmed
from redteam.stems import spike

TINY = Fraction(1, 10**60)


def _line(d: Draws, dtype: Any = np.float32) -> tuple[bytes, int]:
    """Y = X or Y = -X, exactly, as a model; and the sign."""
    sign = d.choice((1, 1, -1))
    graph = Graph([1, 1], dtype)
    how = d.choice(("gemm", "mul", "identity"))
    if how == "identity" and sign == 1:
        return graph.model(graph.add("Identity", "X")), 1
    weight = np.array([[float(sign)]])
    return graph.model(graph.add("Gemm", "X", weight) if how == "gemm" else graph.add("Mul", "X", weight)), sign


def _text(bounds: list[str], rows: list[str], inputs: int = 1, outputs: int = 1) -> str:
    names = [f"(declare-const X_{i} Real)" for i in range(inputs)] + [
        f"(declare-const Y_{i} Real)" for i in range(outputs)
    ]
    return "\n".join([*names, *(f"(assert {term})" for term in [*bounds, *rows])]) + "\n"


def _boxed(count: int) -> list[str]:
    return [f"({side}= X_{i} {end})" for i in range(count) for side, end in ((">", "-1.0"), ("<", "1.0"))]


def coefficients(d: Draws) -> Instance:
    """Coefficients that a float does not have, or only as a subnormal number; on a spike of height 1."""
    dtype = d.choice((np.float32, np.float32, np.float32, np.float64))
    stem = spike(d, dtype)
    count, graph = stem.graph.count, stem.graph
    share = d.choice(("0.9", "0.999", "0.5"))
    tiny = ("1e-40", "1e-44", "1e-46", "1e-60", "1e-40", "1e-42", "1e39", "-1e-40", "1e-320", "1e-400")
    factor = d.turn(tiny if dtype is np.float32 else ("1e-310", "1e-320", "1e-330", "1e-400", "1e309", "1e-40"))
    relation = d.choice((">=", ">"))
    scale, bound = Fraction(factor), Fraction(share)
    if scale < 0:
        relation = relation.replace(">", "<")
    kind = d.choice(("one", "one", "one", "two", "mixed", "sum"))
    output, outputs = stem.name, 1
    left, right = f"(* {factor} Y_0)", scale * bound
    if kind == "two":
        output, outputs = graph.add("Concat", stem.name, graph.add("Mul", stem.name, 3.0), axis=1), 2
        left, right = f"(+ (* {factor} Y_0) (* {factor} Y_1))", 4 * scale * bound
    elif kind == "mixed":  # a large output with a tiny coefficient, beside an ordinary one
        output, outputs = graph.add("Concat", stem.name, graph.add("Mul", stem.name, 1e35), axis=1), 2
        relation, left, right = relation.replace("<", ">"), "(+ Y_0 (* 1e-35 Y_1))", 2 * bound
    elif kind == "sum":
        left, right = f"(+ (* {factor} Y_0) (* {factor} Y_0) (* -1.0 (* {factor} Y_0)))", scale * bound
    model = graph.model(output)
    spec = _text(_boxed(count), [f"({relation} {left} {written(right)})"], count, outputs)
    return confirmed(Instance(f"{kind} {factor} {relation}", model, spec, "violated", stem.points[0]))


def constants(d: Draws) -> Instance:
    """Constants that cancel only in exact arithmetic: in one direction a false `sat`, in the other a false `unsat`."""
    large = d.choice(("1e16", "1e17", "1e20", "1e300", "-1e18"))
    if d.flag():
        model, sign = _line(d)
        rows = d.choice((
            f"(<= (+ Y_0 {large} {2 + sign}) {large})",
            f"(>= {large} (+ Y_0 {large} {2 + sign}))",
            f"(<= (- (+ Y_0 {large} {2 + sign}) {large}) 0.0)",
            f"(>= (+ Y_0 {large}) (+ {large} 1.0))",
        ))  # fmt: skip
        return Instance(f"false sat {large}", model, _text(["(>= X_0 0.0)", "(<= X_0 0.5)"], [rows]), "holds")
    stem = spike(d)
    share = d.choice(("0.9", "0.5"))
    row = d.choice((
        f"(>= (+ Y_0 {large} -{share}) {large})",
        f"(<= (+ {large} {share}) (+ {large} Y_0))",
        f"(>= (- (+ Y_0 {large}) {large}) {share})",
    ))  # fmt: skip
    count = stem.graph.count
    spec = _text(_boxed(count), [row], count)
    return confirmed(Instance(f"false unsat {large}", stem.graph.model(stem.name), spec, "violated", stem.points[0]))


_PLACES = (0.1, 1.0, 3.7, 16777216.0, 1e-3, 1e-40, 12345.678, 1e30, 0.0)


def _place(d: Draws, dtype: Any) -> Any:
    return dtype(d.choice(_PLACES) * d.choice((1, -1)))


def no_float_inside(d: Draws) -> Instance:
    """A box between two neighbouring floats: no input exists, so `sat` is false whatever the outputs are."""
    dtype = d.choice((np.float32, np.float32, np.float64))
    at = _place(d, dtype)
    after = np.nextafter(at, dtype(np.inf))
    low, high = Fraction(float(at)), Fraction(float(after))
    model, sign = _line(d, dtype)
    kind = d.turn(("narrow", "open", "hair", "strict edge", "mixed"))
    third = (high - low) / 4
    if kind == "narrow":
        share = d.choice((1, 1, 2))
        bounds = [f"(>= X_0 {written(low + share * third)})", f"(<= X_0 {written(low + (share + 1) * third)})"]
    elif kind == "hair":  # a decimal that rounds to the float, on its wrong side
        bounds = [f"(>= X_0 {written(low + third / 10**12)})", f"(<= X_0 {written(low + third)})"]
    elif kind == "mixed":
        bounds = [f"(> X_0 {decimal(at)})", f"(<= X_0 {written(low + third)})"]
    elif kind == "strict edge":
        bounds = [f"(>= X_0 {written(low + third)})", f"(< X_0 {decimal(after)})"]
    else:
        bounds = [f"(> X_0 {decimal(at)})", f"(< X_0 {decimal(after)})"]
    row = d.choice(
        ("(>= Y_0 -1e38)", "(<= Y_0 1e38)", f"(<= Y_0 {decimal(max(sign * float(at), sign * float(after)))})")
    )
    return Instance(f"{kind} {dtype.__name__}", model, _text(bounds, [row]), "holds")


def one_float_inside(d: Draws) -> Instance:
    """A box with one float in it, which is unsafe: `unsat` is false, and so is any other point."""
    dtype = d.choice((np.float32, np.float32, np.float64))
    at = _place(d, dtype)
    before, after = (Fraction(float(np.nextafter(at, dtype(way)))) for way in (-np.inf, np.inf))
    here = Fraction(float(at))
    model, sign = _line(d, dtype)
    low, high = here - (here - before) / d.choice((2, 1000)), here + (after - here) / d.choice((2, 1000))
    kind = d.turn(("inside", "at the lower end", "at the upper end", "open ends"))
    bounds = [f"(>= X_0 {written(low)})", f"(<= X_0 {written(high)})"]
    if kind == "at the lower end":
        bounds[0] = f"(>= X_0 {decimal(at)})"
    elif kind == "at the upper end":
        bounds[1] = f"(<= X_0 {decimal(at)})"
    elif kind == "open ends":
        bounds = [f"(> X_0 {written(before)})", f"(< X_0 {written(after)})"]
    out = decimal(sign * float(at))
    rows = d.choice(([f"(>= Y_0 {out})"], [f"(<= Y_0 {out})"], [f"(>= Y_0 {out})", f"(<= Y_0 {out})"]))
    return confirmed(Instance(f"{kind} {dtype.__name__}", model, _text(bounds, rows), "violated", np.array([at])))


def strictness(d: Draws) -> Instance:
    """Thresholds at the very end of what is reached: "<" and "<=" make the difference."""
    dtype = d.choice((np.float32, np.float64))
    model, sign = _line(d, dtype)
    high = dtype(d.choice((1.0, 0.1, 3.3e7)))
    low = dtype(high - dtype(d.choice((0.5, 1.0, 2.0))) * max(dtype(1e-6), abs(high)))
    bounds = [f"(>= X_0 {decimal(low)})", f"(<= X_0 {decimal(high)})"]
    best, point = (high, high) if sign > 0 else (dtype(-low), low)
    kind = d.turn(("reached", "strict", "a hair beyond", "open end", "both sides"))
    if kind == "reached":
        return confirmed(
            Instance(kind, model, _text(bounds, [f"(>= Y_0 {decimal(best)})"]), "violated", np.array([point]))
        )
    if kind == "strict":
        return Instance(kind, model, _text(bounds, [f"(> Y_0 {decimal(best)})"]), "holds")
    if kind == "a hair beyond":
        bound = written(Fraction(float(best)) + Fraction(1, 10 ** d.choice((20, 30, 45))))
        return Instance(kind, model, _text(bounds, [f"(>= Y_0 {bound})"]), "holds")
    if kind == "open end":
        place, mark = (1, "<") if sign > 0 else (0, ">")
        bounds[place] = f"({mark} X_0 {decimal(point)})"
        return Instance(kind, model, _text(bounds, [f"(>= Y_0 {decimal(best)})"]), "holds")
    rows = [f"(>= Y_0 {decimal(best)})", f"(<= Y_0 {decimal(best)})"]
    return confirmed(Instance(kind, model, _text(bounds, rows), "violated", np.array([point])))


def many_boxes(d: Draws) -> Instance:
    """Many disjuncts, each with an input box of its own; the spike lies in one of them, often at its very edge."""
    stem = spike(d, inputs=d.choice((2, 4)))
    point, count = stem.points[0], stem.graph.count
    unsafe = f"(>= Y_0 {d.choice(('0.9', '1.0', '0.999'))})"
    parts = []
    for number in range(d.integer(2, 6)):
        terms = []
        for i in range(count):
            low, high = np.sort(d.uniform(-1, 1, 2).astype(np.float32))
            if number == 0:
                low, high = min(low, point[i]), max(high, point[i])
                if d.flag(0.3):
                    low = point[i]
                if d.flag(0.2):
                    high = point[i]
            terms.append(f"(>= X_{i} {decimal(low)}) (<= X_{i} {decimal(high)})")
        parts.append(f"(and {' '.join(terms)} {unsafe if number == 0 or d.flag() else '(>= Y_0 7.5)'})")
    if d.flag():
        parts = parts[1:] + parts[:1]
    spec = _text(_boxed(count), [f"(or {' '.join(parts)})"], count)
    return confirmed(Instance(f"{len(parts)} parts", stem.graph.model(stem.name), spec, "violated", point))


def odd_bounds(d: Draws) -> Instance:
    """Bounds beyond the type's range, inputs bounded on one side, bounds given twice or the wrong way round."""
    stem = spike(d, inputs=2)
    bounds = _boxed(2)
    kind = d.turn(("beyond", "far beyond", "one side", "twice", "mirrored", "sum"))
    if kind == "beyond":
        bounds[0] = "(>= X_0 -1e39)"
    elif kind == "far beyond":
        bounds[3] = "(<= X_1 1e400)"
    elif kind == "one side":
        bounds.pop(d.integer(0, 3))
    elif kind == "twice":
        bounds += ["(>= X_0 -5.0)", "(<= X_1 1e10)"]
    elif kind == "mirrored":
        bounds[0], bounds[1] = "(<= -1.0 X_0)", "(>= 1.0 X_0)"
    else:
        bounds[0] = "(>= (+ X_0 1e17) (- 1e17 1.0))"
    spec = _text(bounds, ["(>= Y_0 0.95)"], 2)
    return confirmed(Instance(kind, stem.graph.model(stem.name), spec, "violated", stem.points[0]))
