"""Tables and plots of `reduction.py`'s measurements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reduction import Measurement

BASELINES = ("ibp", "crown-ibp", "crown", "forward", "zonotope")
# Okabe and Ito's colours for the rules that matter most; all others are grey.
COLOURS = {
    "girard": "#0072B2",
    "combastel": "#E69F00",
    "lowrank": "#CC79A7",
    "l1": "#56B4E9",
    "gap": "#009E73",
    "sensitivity": "#D55E00",
    "lazy": "#000000",
}
LEAST_MEGABYTES = 50.0
SHARES = (75, 50, 25, 12)
MARKERS = "osD^v<>PX*hp"


def write_tables(found: Sequence[Measurement], folder: Path) -> None:
    """tables.md: proofs by rule and budget for each network and radius, and how the targets fare."""
    text = [
        "# Symbol reduction, measured",
        "",
        "Made by `benchmarks/reduction.py`. A cell says how many images were proved, and the mean margin; a budget is a"
        " share of the unreduced symbols. Rules are ordered by their margins at half and a quarter.",
        "",
    ]
    for name, epsilon in pairs(found):
        text += _one_table(name, epsilon, [one for one in found if (one.subject, one.epsilon) == (name, epsilon)])
    text += _targets(found)
    (folder / "tables.md").write_text("\n".join(text) + "\n")


def pairs(found: Sequence[Measurement]) -> list[tuple[str, float]]:
    """Every network with each radius, in the order of the measurements."""
    return list(dict.fromkeys((one.subject, one.epsilon) for one in found))


def _one_table(name: str, epsilon: float, found: Sequence[Measurement]) -> list[str]:
    exact = next((one for one in found if one.method == "zonotope"), None)
    lines = [f"## {name}, radius {epsilon:g}", ""]
    lines += ["| method | proved | margin | width | seconds | MB | remark |", "|---|---|---|---|---|---|---|"]
    for method in BASELINES:
        for one in found:
            if one.method == method:
                label = f"{method} ({one.symbols} symbols)" if one.symbols else method
                lines.append(f"| {label} | {_cells(one)} | {one.remark} |")
    shares = sorted({one.share for one in found if one.reduction}, reverse=True)
    if exact is None or not shares:
        return [*lines, ""]
    lines += ["", "| rule | " + " | ".join(f"{share} %: proved, margin, s" for share in shares) + " |"]
    lines.append("|---" * (len(shares) + 1) + "|")
    by_rule: dict[str, dict[int, Measurement]] = {}
    for one in found:
        if one.reduction:
            by_rule.setdefault(one.reduction, {})[one.share] = one
    for rule in sorted(by_rule, key=lambda rule: -_score(by_rule[rule])):
        cells = [_short(by_rule[rule].get(share)) for share in shares]
        lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _score(by_share: dict[int, Measurement]) -> float:
    margins = [by_share[share].margin for share in (50, 25) if share in by_share]
    return sum(margins) if margins and all(map(math.isfinite, margins)) else -math.inf


def _cells(one: Measurement) -> str:
    return f"{one.proved}/{one.images} | {one.margin:.4g} | {one.width:.4g} | {one.seconds:.3g} | {one.megabytes:.0f}"


def _short(one: Measurement | None) -> str:
    if one is None:
        return ""
    return f"{one.proved}/{one.images}, {one.margin:.3g}, {one.seconds:.2g}" if one.images else f"- ({one.remark[:40]})"


def _targets(found: Sequence[Measurement]) -> list[str]:
    """What was aimed at, and what was reached."""
    rules = sorted({one.reduction for one in found if one.reduction})
    lines = ["## How it compares", "", "| rule | " + " | ".join(f"proofs kept at {share} %" for share in SHARES) + " |"]
    lines.append("|---" * (len(SHARES) + 1) + "|")
    totals = {rule: [_total(found, rule, share) for share in SHARES] for rule in rules}
    ranked = sorted(rules, key=lambda rule: -totals[rule][1][0])
    lines += [f"| {rule} | " + " | ".join(f"{ours} of {all_}" for ours, all_ in totals[rule]) + " |" for rule in ranked]
    lines += ["", "Proofs over all networks and radii on which a rule was measured at that budget.", ""]
    if ranked:
        best, kept = ranked[0], _kept(found, ranked[0], 50)
        short = [pair for pair, share in kept.items() if share < 0.95]
        missed = ", ".join(f"{name} {epsilon:g} ({100 * kept[name, epsilon]:.0f} %)" for name, epsilon in short)
        lines.append(
            f"- At half of the symbols the rule that keeps most is **{best}**. It keeps 95 % of the unreduced proofs on"
            f" {len(kept) - len(short)} of {len(kept)} pairs of network and radius; not on {missed or 'none'}."
        )
        known = [text for pair in pairs(found) if (text := _against(found, pair, best, 25, "crown-ibp"))]
        lines.append(
            f"- At a quarter, {best} proves more than CROWN-IBP on {known.count('more')} of {len(known)} pairs,"
            f" as many on {known.count('as many')}, fewer on {known.count('fewer')}."
        )
    wins = [text for pair in pairs(found) if (text := _win(found, pair))]
    lines.append(
        f"- Pairs on which a reduced zonotope proves more than CROWN-IBP in less time than CROWN: {len(wins)}."
    )
    lines += [f"  - {text}" for text in wins]
    lighter = [text for pair in pairs(found) if (text := _lighter(found, pair))]
    lines.append(f"- Pairs on which one proves more than CROWN-IBP with less memory than CROWN: {len(lighter)}.")
    lines += [f"  - {text}" for text in lighter]
    return lines


def _total(found: Sequence[Measurement], rule: str, share: int) -> tuple[int, int]:
    """Proofs of a rule, and of the unreduced zonotope on the same pairs."""
    ours = [one for one in found if one.reduction == rule and one.share == share]
    exact = [_at(found, (one.subject, one.epsilon), "zonotope") for one in ours]
    return sum(one.proved for one in ours), sum(one.proved for one in exact if one is not None)


def _at(found: Sequence[Measurement], pair: tuple[str, float], method: str) -> Measurement | None:
    return next((one for one in found if (one.subject, one.epsilon) == pair and one.method == method), None)


def _reduced(
    found: Sequence[Measurement], pair: tuple[str, float], rule: str | None, share: int | None
) -> list[Measurement]:
    return [
        one
        for one in found
        if (one.subject, one.epsilon) == pair
        and one.reduction
        and rule in (None, one.reduction)
        and share in (None, one.share)
        and one.images
    ]


def _kept(found: Sequence[Measurement], rule: str, share: int) -> dict[tuple[str, float], float]:
    """The share of the unreduced proofs that a rule keeps, on every pair with any; 0 where it failed."""
    kept = {}
    for pair in pairs(found):
        exact = _at(found, pair, "zonotope")
        if exact is not None and exact.proved:
            ours = _reduced(found, pair, rule, share)
            kept[pair] = ours[0].proved / exact.proved if ours else 0.0
    return kept


def _against(found: Sequence[Measurement], pair: tuple[str, float], rule: str, share: int, method: str) -> str:
    ours, theirs = _reduced(found, pair, rule, share), _at(found, pair, method)
    if not ours or theirs is None:
        return ""
    return "more" if ours[0].proved > theirs.proved else "as many" if ours[0].proved == theirs.proved else "fewer"


def _win(found: Sequence[Measurement], pair: tuple[str, float]) -> str:
    """The reduced zonotope that proves most, more than CROWN-IBP and in less time than CROWN; "" if there is none."""
    crown, ibp = _at(found, pair, "crown"), _at(found, pair, "crown-ibp")
    if crown is None or ibp is None:
        return ""
    reduced = _reduced(found, pair, None, None)
    ours = [one for one in reduced if one.proved > ibp.proved and one.seconds < crown.seconds]
    if not ours:
        return ""
    best = max(ours, key=lambda one: (one.proved, -one.seconds))
    return (
        f"{pair[0]}, {pair[1]:g}: {best.reduction} at {best.share} % proves {best.proved} of {best.images} in"
        f" {best.seconds:.3g} s each, CROWN {crown.proved} in {crown.seconds:.3g} s, CROWN-IBP {ibp.proved}"
    )


def _lighter(found: Sequence[Measurement], pair: tuple[str, float]) -> str:
    crown, ibp = _at(found, pair, "crown"), _at(found, pair, "crown-ibp")
    if crown is None or ibp is None:
        return ""
    ours = [
        one
        for one in _reduced(found, pair, None, None)
        if one.proved > ibp.proved and one.megabytes < crown.megabytes - 1
    ]
    if not ours:
        return ""
    best = max(ours, key=lambda one: (one.proved, -one.megabytes))
    return (
        f"{pair[0]}, {pair[1]:g}: {best.reduction} at {best.share} % proves {best.proved} with {best.megabytes:.0f} MB,"
        f" CROWN {crown.proved} with {crown.megabytes:.0f} MB, CROWN-IBP {ibp.proved}"
    )


def draw_all(found: Sequence[Measurement], folder: Path) -> None:
    """proofs.png, memory.png and front.png, with one panel for each network and radius."""
    import matplotlib.pyplot as plt
    from PIL import Image

    plt.switch_backend("Agg")
    measured = [pair for pair in pairs(found) if _reduced(found, pair, None, None)]
    for file, draw, labels in (
        ("proofs.png", _proofs, ("symbols kept, % of the unreduced", "images proved, %")),
        ("memory.png", _memory, ("memory beyond the loaded process, MB", "mean width of the margins")),
        ("front.png", _front, ("seconds for an image", "images proved, %")),
    ):
        shown = [pair for pair in measured if draw is not _memory or _needs_memory(found, pair)]
        columns = min(4, max(1, len(shown)))
        rows = max(1, math.ceil(len(shown) / columns))
        size = (3.6 * columns, 3.0 * rows)
        figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
        for axis, pair in zip(axes.flat, shown, strict=False):
            draw(axis, [one for one in found if (one.subject, one.epsilon) == pair])
            axis.set_title(f"{pair[0]}, radius {pair[1]:g}", fontsize=9)
            axis.grid(alpha=0.3)
        for axis in list(axes.flat)[len(shown) :]:
            axis.axis("off")
        figure.supxlabel(labels[0], fontsize=10)
        figure.supylabel(labels[1], fontsize=10)
        entries = {
            label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=8, fontsize=8)
        figure.savefig(folder / file, dpi=110)
        plt.close(figure)
        with Image.open(folder / file) as picture:  # 256 colours are enough, and a third of the bytes
            picture.convert("RGB").quantize(256).save(folder / file, optimize=True)


def _style(rule: str, number: int) -> dict[str, Any]:
    colour = COLOURS.get(rule, "#BBBBBB")
    return {"color": colour, "marker": MARKERS[number % len(MARKERS)], "markersize": 4, "zorder": 2 + (rule in COLOURS)}


def _rules(found: Sequence[Measurement]) -> list[str]:
    return sorted({one.reduction for one in found if one.reduction and one.images})


def _proofs(axis: Any, found: Sequence[Measurement]) -> None:
    exact = next((one for one in found if one.method == "zonotope"), None)
    for number, rule in enumerate(_rules(found)):
        ours = sorted(
            (one.share, 100 * one.proved / one.images) for one in found if one.reduction == rule and one.images
        )
        if exact is not None and exact.images:
            ours.append((100, 100 * exact.proved / exact.images))
        axis.plot(*zip(*ours, strict=True), label=rule, linewidth=1, **_style(rule, number))
    for method, dash in (("ibp", ":"), ("crown-ibp", "--"), ("crown", "-.")):
        for one in found:
            if one.method == method and one.images:
                axis.axhline(100 * one.proved / one.images, color="#444444", linestyle=dash, linewidth=1, label=method)
    axis.set_ylim(-4, 104)


def _scatter(axis: Any, found: Sequence[Measurement], x: str, y: Any) -> None:
    for number, rule in enumerate(_rules(found)):
        ours = [(getattr(one, x), y(one)) for one in found if one.reduction == rule and one.images]
        axis.plot(*zip(*ours, strict=True), label=rule, linestyle="", **_style(rule, number))
    for number, method in enumerate(BASELINES):
        for one in found:
            if one.method == method and one.images:
                style = {
                    "color": "#444444",
                    "marker": "+x1|2"[number],
                    "markersize": 10,
                    "markeredgewidth": 2,
                    "zorder": 5,
                }
                axis.plot([getattr(one, x)], [y(one)], label=method, linestyle="", **style)


def _needs_memory(found: Sequence[Measurement], pair: tuple[str, float]) -> bool:
    """Whether a reduced zonotope needed so much that the resident size tells."""
    return any(one.megabytes > LEAST_MEGABYTES for one in _reduced(found, pair, None, None))


def _memory(axis: Any, found: Sequence[Measurement]) -> None:
    _scatter(axis, found, "megabytes", lambda one: one.width)
    axis.set_yscale("log")
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(left=-0.3)


def _front(axis: Any, found: Sequence[Measurement]) -> None:
    from matplotlib.ticker import NullFormatter

    _scatter(axis, found, "seconds", lambda one: 100 * one.proved / one.images)
    steps: list[tuple[float, float]] = []
    for one in sorted((one for one in found if one.images), key=lambda one: (one.seconds, -one.proved)):
        share = 100 * one.proved / one.images
        if not steps or share > steps[-1][1]:
            steps.append((one.seconds, share))
    axis.step(*zip(*steps, strict=True), where="post", color="#444444", linewidth=1, zorder=1, label="Pareto front")
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_ylim(-4, 104)
