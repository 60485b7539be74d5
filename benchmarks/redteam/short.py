"""Instances that the verifier once answered falsely, and in which run: the short form, of seed 0."""

from __future__ import annotations

FIRST = ((0, "auto root"), (1, "auto blind"))  # of classes that are not listed
SHORT: dict[str, tuple[tuple[int, str], ...]] = {
    "certificate: moves": (
        (1, "certificate trivial"),
        (22, "certificate trivial"),
    ),
    "certificate: repeats": (
        (0, "certificate trivial"),
        (8, "certificate trivial"),
    ),
    "host: average pool": (
        (2, "auto blind"),
        (8, "root zonotope+crown"),
        (13, "auto"),
    ),
    "host: average pool, boxes": ((0, "auto root"),),
    "host: leaky": ((2, "root zonotope+full-crown"),),
    "host: leaky, boxes": ((3, "auto root"),),
    "loader: cast float16": (
        (3, "auto blind"),
        (15, "root zonotope[girard,8]"),
    ),
    "loader: cast integer": (
        (0, "auto blind"),
        (8, "auto blind"),
        (12, "auto blind"),
    ),
    "loader: clip": ((7, "auto blind"),),
    "loader: resize linear": (
        (1, "auto blind"),
        (9, "root zonotope"),
    ),
    "loader: resize nearest": (
        (4, "auto blind"),
        (12, "auto blind"),
    ),
    "rounding: cancel": (
        (0, "auto blind"),
        (2, "auto blind"),
        (3, "auto blind"),
    ),
    "rounding: cancel, float64": (
        (1, "auto blind"),
        (2, "auto blind"),
        (3, "auto blind"),
    ),
    "rounding: cancel, log-sum-exp": (
        (0, "root zonotope[girard,8]"),
        (1, "auto blind"),
        (4, "auto blind"),
    ),
    "rounding: cancel, reduced": (
        (0, "root alpha-zonotope"),
        (2, "auto blind"),
        (3, "auto blind"),
    ),
    "rounding: jump": (
        (3, "auto blind"),
        (11, "auto blind"),
    ),
    "rounding: jump, cast": (
        (5, "root zonotope[neurons,30%]"),
        (9, "auto blind"),
        (11, "auto blind"),
    ),
    "rounding: jump, comparison": (
        (5, "auto blind"),
        (11, "auto blind"),
    ),
    "rounding: jump, floor": (
        (1, "auto blind"),
        (4, "root zonotope[neurons,30%]"),
        (6, "auto blind"),
    ),
    "specification: coefficients": (
        (0, "auto blind"),
        (1, "auto blind"),
        (9, "root forward+crown"),
    ),
    "specification: constants": (
        (0, "auto blind"),
        (1, "root alpha-zonotope"),
    ),
    "specification: no float inside": (
        (0, "auto blind"),
        (1, "auto blind"),
        (2, "auto blind"),
    ),
    "specification: strictness": ((2, "auto blind"),),
}
