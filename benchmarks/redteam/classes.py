"""All classes of instances, by name; each gets the same number of instances, so that easy ones cannot fill a count."""

from __future__ import annotations

from collections.abc import Callable

from redteam import certifying, composing, functions, loading, moving, optimum, rounding, statements
from redteam.draws import Draws
from redteam.graph import SkipError
from redteam.planting import Built, Instance, plant

Maker = Callable[[Draws], Built | Instance]

CLASSES: dict[str, Maker] = {
    "loader: resize linear": loading.resize_linear,
    "loader: resize nearest": loading.resize_nearest,
    "loader: resize cubic": loading.resize_cubic,
    "loader: max pool": loading.maxpool,
    "loader: lp pool": loading.lppool,
    "loader: cast float16": loading.cast_float16,
    "loader: cast integer": loading.cast_integer,
    "loader: cast double": loading.cast_double,
    "loader: max and min": loading.max_min,
    "loader: clip": loading.clip,
    "loader: no-ops": loading.dropout,
    "loader: interface": composing.interface,
    "loader: moves": moving.moves,
    "loader: gemm": moving.gemm,
    "loader: conv": moving.conv,
    "loader: norm": moving.norm,
    "loader: reduce": functions.reduce,
    "bounds: function": functions.unary,
    "bounds: two operands": functions.binary,
    "bounds: softmax": functions.softmax,
    "bounds: choosing": functions.choosing,
    "bounds: residual": functions.residual,
    "bounds: chain": composing.chain,
    "bounds: relu optimum": optimum.relu_optimum,
    "host: average pool": loading.avgpool,
    "host: average pool, boxes": loading.avgpool_boxes,
    "host: leaky": functions.leaky,
    "host: leaky, boxes": functions.leaky_boxes,
    "host: convolutions, residual": functions.convolutions_residual,
    "rounding: cancel": rounding.cancel,
    "rounding: cancel, log-sum-exp": rounding.cancel_lse,
    "rounding: cancel, reduced": rounding.cancel_reduced,
    "rounding: cancel, float64": rounding.cancel_float64,
    "rounding: jump": rounding.jump,
    "rounding: jump, cast": rounding.jump_cast,
    "rounding: jump, floor": rounding.jump_floor,
    "rounding: jump, comparison": rounding.jump_compare,
    "rounding: sums": rounding.sums,
    "rounding: scales": rounding.scales,
    "rounding: fused": rounding.fused,
    "specification: coefficients": statements.coefficients,
    "specification: constants": statements.constants,
    "specification: no float inside": statements.no_float_inside,
    "specification: one float inside": statements.one_float_inside,
    "specification: strictness": statements.strictness,
    "specification: many boxes": statements.many_boxes,
    "specification: odd bounds": statements.odd_bounds,
    "certificate: moves": certifying.moves,
    "certificate: repeats": certifying.repeats,
    "certificate: affine": certifying.affine,
    "certificate: functions": certifying.functions,
}
ATTEMPTS = 12


def make(name: str, d: Draws) -> Instance:
    """An instance of a class. Raises SkipError where these draws give none."""
    made = CLASSES[name](d)
    return plant(d, made) if isinstance(made, Built) else made


def instance(name: str, seed: int, number: int) -> tuple[Instance, Draws] | None:
    """The instance of a class with this number, and the draws that made it; None if no attempt gives one."""
    for attempt in range(ATTEMPTS):
        d = Draws(seed, name, number, attempt)
        try:
            return make(name, d), d
        except SkipError:
            continue
    return None
