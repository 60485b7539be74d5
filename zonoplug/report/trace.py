"""What each reduction of a method costs on one specification, as a table."""

from __future__ import annotations

import math
from typing import Any

from zonoplug.errors import SettingError
from zonoplug.report.tables import text_table

HEADER = ("layer", "node", "symbols", "left", "margin lost", "of any row", "MB", "MB left", "ms")


def measure_trace(request: dict[str, Any]) -> dict[str, Any]:
    """Bound a specification by a reducing method, and measure every reduction.

    Of several input boxes the first is traced. Losses are in units of the margin: by how much a reduction alone lowers
    the bound of a row with all relaxations behind it fixed and nothing reduced later. Together with the bound they add
    up exactly to what the same relaxations would give without reductions; that reductions also loosen relaxations is
    not in these numbers.

    Args:
        request: "model", "specification", "method", "settings" (a dictionary for `Settings`).
    Returns:
        "margin", the least over disjuncts of the largest lower bound; "reductions", one dictionary each: "layer",
        "node", "symbols_before", "symbols_after", "loss" in the row that decides, "largest_loss" over all rows (None
        where the influence on the rows is not known), "bytes_before", "bytes_after", "seconds", "error_bound";
        "unreduced_margin": the margin without the losses in that row; "exact_symbols", "notes".
    Raises:
        SettingError: the method reduces nothing, since it names no reduction.
    """
    import torch

    from zonoplug.domain.input_sets import Box
    from zonoplug.lirpa.methods import BoundMethod
    from zonoplug.lirpa.module import bound_set
    from zonoplug.verify.bounds.bounder import Bounder
    from zonoplug.verify.settings import Settings, load_problem

    method = BoundMethod.parse(request["method"])
    if method.reduction is None:
        raise SettingError(f"Method {str(method)!r} reduces no symbols. Type: --method 'zonotope[girard,200]'")
    problem = load_problem(request["model"], request["specification"], Settings(**request["settings"]))
    bounder, objective = Bounder(problem), problem.objective
    first = torch.arange(1)
    box = Box(problem.box.lower[:1], problem.box.upper[:1])
    with torch.no_grad():
        bounds, propagation = bound_set(
            bounder.module, box, method, objective.rows(first), goal=objective.goal(first), measure=True
        )
    assert propagation is not None
    margins = objective.margins(bounds.lower, first)
    hardest = objective.best(margins, first)[0].argmin()
    candidates = (objective.disjunct[0] == hardest) & ~objective.padding[0]
    row = int(margins[0].masked_fill(~candidates, -torch.inf).argmax())
    unit = float(objective.as_written(torch.ones_like(margins), first)[0, row])  # of margins as written, a power of two
    own = unit * objective.margins(propagation.bounds.lower, first)[0, row]
    reductions, lost = [], 0.0
    for report in propagation.reductions:
        loss = None if report.loss is None else unit * float(report.loss[0, row])
        lost += math.nan if loss is None else loss
        reductions.append(
            {
                "layer": report.layer,
                "node": report.node,
                "symbols_before": report.symbols_before,
                "symbols_after": report.symbols_after,
                "loss": loss,
                "largest_loss": None
                if report.loss is None
                else float(objective.as_written(report.loss[:1], first).max()),
                "bytes_before": report.bytes_before,
                "bytes_after": report.bytes_after,
                "seconds": report.seconds,
                "error_bound": None if report.error_bound is None else float(report.error_bound[0]),
            }
        )
    notes = [f"{objective.num_boxes} input boxes, traced is the first"] if objective.num_boxes > 1 else []
    return {
        "method": str(method),
        "margin": unit * float(margins[0, row]),
        "propagation_margin": float(own),
        "unreduced_margin": float(own) + lost,
        "lost": lost,
        "reductions": reductions,
        "reduced_by": propagation.reduced_by,
        "notes": notes + bounder.notes,
    }


def trace_table(result: dict[str, Any]) -> str:
    """The answer of `measure_trace` as a table, and a sentence on what it comes to."""
    rows = [
        (
            str(entry["layer"]),
            entry["node"],
            str(entry["symbols_before"]),
            str(entry["symbols_after"]),
            _number(entry["loss"]),
            _number(entry["largest_loss"]),
            f"{entry['bytes_before'] / 1e6:.2f}",
            f"{entry['bytes_after'] / 1e6:.2f}",
            f"{1e3 * entry['seconds']:.1f}",
        )
        for entry in result["reductions"]
    ]
    lines = [text_table(HEADER, rows)] if rows else ["Nothing was reduced: there were never more symbols than allowed."]
    lines.append(f"margin of the hardest disjunct by {result['method']}: {result['margin']:.6g}")
    if rows and not math.isnan(result["lost"]):
        lines.append(
            f"its reductions cost {result['lost']:.6g}; the same relaxations without them give"
            f" {result['unreduced_margin']:.6g}"
        )
    return "\n".join([*lines, *result["notes"]])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
