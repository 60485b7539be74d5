"""Instances that the verifier once answered falsely, and in which run: the short form, of seed 0."""

from __future__ import annotations

FIRST = ((0, "auto root"), (1, "auto blind"))  # of classes that are not listed
SHORT: dict[str, tuple[tuple[int, str], ...]] = {
    "certificate: moves": ((1, "certificate trivial"),),
    "certificate: repeats": (
        (0, "certificate trivial"),
        (8, "certificate trivial"),
    ),
    "host: average pool": (
        (2, "auto"),
        (13, "auto"),
    ),
    "host: average pool, boxes": ((0, "auto"),),
    "host: leaky": ((2, "root zonotope+full-crown"),),
    "host: leaky, boxes": ((3, "auto"),),
    "loader: cast float16": ((3, "auto"),),
    "loader: cast integer": (
        (0, "auto"),
        (8, "auto"),
        (12, "auto blind"),
    ),
    "loader: resize linear": ((1, "auto"),),
    "loader: resize nearest": ((4, "auto"),),
    "rounding: cancel": (
        (0, "auto"),
        (2, "auto"),
        (3, "auto"),
    ),
    "rounding: cancel, float64": (
        (1, "auto"),
        (2, "auto"),
        (3, "auto"),
    ),
    "rounding: cancel, log-sum-exp": (
        (1, "auto"),
        (4, "auto"),
        (7, "auto"),
    ),
    "rounding: cancel, reduced": (
        (2, "auto"),
        (3, "auto"),
        (4, "auto"),
    ),
    "rounding: jump": (
        (3, "auto"),
        (11, "auto"),
    ),
    "rounding: jump, cast": (
        (9, "auto"),
        (11, "auto"),
    ),
    "rounding: jump, comparison": (
        (5, "auto"),
        (11, "auto"),
    ),
    "rounding: jump, floor": (
        (1, "auto"),
        (6, "auto"),
    ),
    "specification: coefficients": (
        (0, "auto"),
        (1, "auto"),
    ),
    "specification: constants": ((0, "auto"),),
    "specification: no float inside": (
        (0, "auto"),
        (1, "auto"),
        (2, "auto"),
    ),
}
