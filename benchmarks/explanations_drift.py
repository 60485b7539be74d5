"""What explanations.py says about symbol reduction: sentences and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from explanations_tables import Rows, column, mean, values_of, where

from zonoplug.report.explain.pictures import Line, draw_lines

DRAWN = ("girard", "l1", "lazy", "lowrank")  # more lines than these a person cannot tell apart


def drift_summary(rows: Rows, nets: dict[str, int]) -> list[str]:
    """At three quarters of the inputs' number: which reductions keep the map; and what protection costs."""
    lines = []
    for net, inputs in nets.items():
        small = str(int(0.75 * inputs))
        cells = []
        for name in values_of(rows, "reduction"):
            if name == "exact":
                continue
            own = where(rows, net=net, reduction=name, max_symbols=small, protected="False")
            if own:
                cells.append((mean([0.0 if math.isnan(v) else v for v in column(own, "spearman")]), name))
        cells.sort(reverse=True)
        lines.append(
            f"- {net}, {small} symbols for {inputs} inputs: rank agreement with the unreduced map "
            + ", ".join(f"{name} {value:.2f}" for value, name in cells)
            + "."
        )
        budget = str(int(1.1 * inputs))
        pays = []
        for name in values_of(rows, "reduction"):
            free = where(rows, net=net, reduction=name, max_symbols=budget, protected="False")
            kept = where(rows, net=net, reduction=name, max_symbols=budget, protected="True")
            if free and kept:
                ratio = mean(column(kept, "unattributed")) / mean(column(free, "unattributed"))
                pays.append(f"{name} {ratio:.2f}")
        if pays:
            lines.append(
                f"  With {budget} symbols, protecting the inputs multiplies the unattributed mass by {', '.join(pays)}."
            )
    return lines


def draw_drift(rows: Rows, nets: dict[str, int], folder: Path) -> dict[str, str]:
    """A plot for each network, of the rules in DRAWN. Returns file name by network."""
    files = {}
    for net, inputs in nets.items():
        own = where(rows, net=net)

        def lines(measure: str, empty: float, own: Rows = own, inputs: int = inputs) -> list[Line]:
            found = []
            for name in DRAWN:
                for protected, suffix in (("False", ""), ("True", ", inputs protected")):
                    some = where(own, reduction=name, protected=protected)
                    budgets = sorted({int(row["max_symbols"]) for row in some})
                    if not budgets:
                        continue
                    y = [
                        mean([empty if math.isnan(v) else v for v in column(where(some, max_symbols=str(b)), measure)])
                        for b in budgets
                    ]
                    found.append(Line(name + suffix, [b / inputs for b in budgets], y, bool(suffix)))
            return found

        charts: dict[str, tuple[str, Sequence[Line], bool]] = {
            "the map": ("rank agreement with the unreduced map", lines("spearman", 0.0), False),
            "the unattributed mass": ("multiple of the unreduced one", lines("unattributed", float("nan")), True),
        }
        files[net] = f"drift_{net}.png".replace(" ", "_")
        draw_lines(charts, folder / files[net], "symbols kept, as a multiple of the number of inputs")
    return files
