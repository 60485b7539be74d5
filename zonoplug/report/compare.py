"""Bound methods side by side on one model and specification."""

from __future__ import annotations

import math
import time
from typing import Any

from zonoplug.report.memory import peak_resident_bytes
from zonoplug.report.tables import text_table

HEADER = ("method", "margin bound", "excluded", "proved", "seconds", "peak MB", "remark")


def measure_method(request: dict[str, Any]) -> dict[str, Any]:
    """Bound a specification's rows on the whole input boxes by one method, in this process.

    Args:
        request: "model", "specification", "method", "settings" (a dictionary for `Settings`).
    Returns:
        "margin": the least, over disjuncts, of the largest lower bound of a row's margin (above 0: proved);
        "excluded" of "disjuncts"; "proved"; "untrusted": why the method is not believed on this network, or "", and
        then it proves nothing; "seconds" for the bound alone, after a first call that warms up;
        "peak_bytes": what it used beyond what the loaded process had; "notes": that a sampled point lies outside, or
        warnings. Margins are less what rounding may do, as in the verifier, and the time that takes counts.
    """
    import torch

    from zonoplug.domain.input_sets import Box
    from zonoplug.lirpa.methods import BoundMethod
    from zonoplug.verify.attack.attack import Attack
    from zonoplug.verify.bounds.bounder import Bounder, BrokenMethodError, check_bounds
    from zonoplug.verify.settings import Settings, load_problem

    settings = Settings(**request["settings"])
    method = request["method"]
    BoundMethod.parse(method)
    problem = load_problem(request["model"], request["specification"], settings)
    attack = Attack(problem, settings.seed)
    attack.random_points(256)
    bounder = Bounder(problem, believed_only=False)
    objective = problem.objective
    margin, excluded, broken, seconds = math.inf, 0, "", 0.0
    before = peak = peak_resident_bytes(reset=True)
    for number, group in enumerate(torch.arange(objective.num_boxes).split(64)):
        box = Box(problem.box.lower[group], problem.box.upper[group])
        if number == 0 and not request.get("cold", False):
            bounder.bound(method, box, group, objective)
        peak_resident_bytes(reset=True)
        start = time.perf_counter()
        bounds = bounder.bound(method, box, group, objective)
        seconds += time.perf_counter() - start
        peak = max(peak, peak_resident_bytes())
        margins = objective.margins(bounds.lower, group)
        margin = min(margin, float(objective.best(objective.as_written(margins, group), group).min()))
        excluded += int((objective.excluded(margins, group) & objective.exists[group]).sum())
        seen = attack.referee
        first = seen.groups == group[0]
        values = objective.exact_values(seen.outputs[first], seen.groups[first])
        one = type(bounds)(bounds.lower[:1].expand(values.shape[0], -1), None)
        try:
            check_bounds(method, one, values, seen.groups[first], objective)
        except BrokenMethodError as error:
            broken = str(error)
    disjuncts = int(objective.exists.sum())
    distrusted = bounder.distrust(method)
    return {
        "method": method,
        "margin": margin,
        "excluded": excluded,
        "disjuncts": disjuncts,
        "proved": excluded == disjuncts and not broken and not distrusted,
        "untrusted": distrusted,
        "seconds": seconds,
        "peak_bytes": peak - before,
        "notes": [broken] if broken else bounder.notes,
    }


def comparison_table(results: list[dict[str, Any]]) -> str:
    """A table of `measure_method`'s answers, in the order given; a method that is not believed has a star.

    Below it, a line for each star says why: whatever its margin, such a method proves nothing on this network.
    """
    rows, why = [], []
    for result in results:
        notes = "; ".join(result.get("notes", []))
        if "margin" not in result:
            rows.append((result["method"], "-", "-", "-", "-", "-", f"{result.get('verdict', '')}: {notes}"))
            continue
        if result.get("untrusted"):
            why.append(f"* {result['untrusted']}")
        rows.append(
            (
                result["method"] + (" *" if result.get("untrusted") else ""),
                f"{result['margin']:.6g}",
                f"{result['excluded']}/{result['disjuncts']}",
                "yes" if result["proved"] else "no",
                f"{result['seconds']:.3f}",
                f"{result['peak_bytes'] / 1e6:.1f}",
                notes,
            )
        )
    return "\n".join([text_table(HEADER, rows), *why])
