"""A picture of where a method's symbols go and what their loss costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zonoplug.report.plots import STYLES, new_figure

MOST_LABELS = 24


def draw_trace(result: dict[str, Any], path: Path | str) -> None:
    """Write a picture of `measure_trace`'s answer: symbols before and after each reduction, and the margin it cost.

    Args:
        path: of the file to write; its ending says which format.
    Raises:
        SettingError: matplotlib is not installed.
    """
    entries = result["reductions"]
    places = list(range(len(entries)))
    figure = new_figure(figsize=(max(5.5, min(14.0, 1.6 + 0.55 * len(entries))), 5.6), layout="constrained")
    counts, losses = figure.subplots(2, 1, sharex=True)
    before, after, loss = STYLES[0]["color"], STYLES[1]["color"], STYLES[2]["color"]
    counts.bar(places, [e["symbols_before"] for e in entries], color="#cccccc", width=0.7, label="before")
    counts.bar(places, [e["symbols_after"] for e in entries], color=after, width=0.42, label="after")
    counts.set_ylabel("noise symbols")
    counts.legend(frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0.0, 1.0), borderaxespad=0.0)
    values = [0.0 if e["loss"] is None else e["loss"] for e in entries]
    bars = losses.bar(places, values, color=loss, width=0.7)
    losses.set_ylabel("margin lost")
    if len(entries) <= MOST_LABELS:
        losses.bar_label(bars, labels=[f"{v:.2g}" for v in values], fontsize=8, padding=2)
        losses.margins(y=0.15)
    losses.set_xticks(places, [e["node"] for e in entries], rotation=45, ha="right", fontsize=8)
    losses.set_xlabel("reductions in the order of the network")
    for chart in (counts, losses):
        chart.spines[["top", "right"]].set_visible(False)
        chart.grid(axis="y", color="#dddddd", linewidth=0.6)
        chart.set_axisbelow(True)
    title = f"{result['method']}: margin {result['margin']:.4g}, lost {result['lost']:.4g}"
    figure.suptitle(title, color=before, fontsize=11)
    figure.savefig(path, dpi=130)
