"""The page of explanations.py: README.md and the drift plots, made from its tables.

.venv/bin/python benchmarks/explanations_page.py [FOLDER]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from explanations_drift import DRAWN, draw_drift, drift_summary
from explanations_tables import Rows, column, mean, number, read, values_of, where

from zonoplug.explain.metrics import standard_error
from zonoplug.report.tables import markdown_table

OURS = ("symbols", "symbols-to-baseline")
MEASURES = {  # name of the column -> (for people, 1 if higher is better)
    "deletion": ("deletion AUC", -1),
    "insertion": ("insertion AUC", 1),
    "infidelity": ("infidelity", -1),
    "sensitivity": ("max-sensitivity", -1),
    "steadiness": ("steadiness under noise", 1),
    "sparsity": ("sparsity (Gini)", 1),
    "seconds": ("seconds", -1),
}
CLEAR = 2.0  # standard errors of the paired difference


def maps_table(rows: Rows) -> str:
    header = (
        "method",
        *(f"{text} {'↑' if sign > 0 else '↓'}" for text, sign in MEASURES.values()),
        "rank agreement",
        "top tenth shared",
    )
    lines = []
    for method in values_of(rows, "method"):
        own = where(rows, method=method)
        cells = [number(mean(column(own, name))) for name in (*MEASURES, "agreement", "top")]
        lines.append((f"**{method}**" if method in OURS else method, *cells))
    return markdown_table(header, lines)


def verdict(rows: Rows, ours: str, measure: str) -> str:
    """Where one of our methods stands on a measure, over all images, by paired differences."""
    text, sign = MEASURES[measure]
    methods = [method for method in values_of(rows, "method") if method not in OURS]
    own = column(where(rows, method=ours), measure)
    better, equal, worse = [], [], []
    for method in methods:
        other = column(where(rows, method=method), measure)
        gaps = [sign * (a - b) for a, b in zip(own, other, strict=True) if math.isfinite(a) and math.isfinite(b)]
        gap, error = mean(gaps), standard_error(gaps)
        (better if gap > CLEAR * error else worse if gap < -CLEAR * error else equal).append(method)
    parts = [
        f"{word} {_listed(group)}"
        for word, group in (("better than", better), ("no clear difference to", equal), ("worse than", worse))
        if group
    ]
    return f"- {text}: " + "; ".join(parts) + "."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def sets_table(rows: Rows) -> str:
    lines = []
    for net in values_of(rows, "net"):
        for way in values_of(where(rows, net=net), "way"):
            own = where(rows, net=net, way=way)
            checked = sum(row["independent_check"] == "unsat" for row in own)
            lines.append(
                (
                    net,
                    way,
                    f"{mean(column(own, 'size')):.1f} of {own[0]['of']}",
                    f"{mean(column(own, 'passes')):.0f}",
                    f"{mean(column(own, 'calls')):.0f}",
                    number(mean(column(own, "seconds"))),
                    f"{mean(column(own, 'share_needed')):.0%}" if "verifier" in way else "-",
                    f"{checked} of {len(own)}",
                )
            )
    header = ("network", "way", "size ↓", "passes", "judge calls", "seconds ↓", "proved needed", "verifier: unsat")
    return markdown_table(header, lines)


def sets_summary(rows: Rows) -> list[str]:
    """Ours against deletion by gradient, in words."""
    ways = values_of(rows, "way")
    ours = next(way for way in ways if "refusals" in way)
    lines = []
    for net in values_of(rows, "net"):
        own, other = where(rows, net=net, way=ours), where(rows, net=net, way="deletion by gradient")
        sizes = mean(column(own, "size")), mean(column(other, "size"))
        seconds = sum(column(own, "seconds")), sum(column(other, "seconds"))
        lines.append(
            f"- {net}: {sizes[0]:.1f} features kept on average, {sizes[1]:.1f} by deletion in gradient order, in"
            f" {seconds[0] / seconds[1]:.0%} of its time."
        )
    return lines


def times_table(rows: Rows) -> str:
    lines = []
    for net in values_of(rows, "net"):
        own = where(rows, net=net)
        ours, theirs = mean(column(own, "pass_seconds")), mean(column(own, "forward_backward_seconds"))
        lines.append((net, number(ours), number(theirs), f"{ours / theirs:.2f}"))
    header = ("network", "one pass of symbols (s)", "500 evaluations with gradient (s)", "ratio")
    return markdown_table(header, lines)


def groups_table(rows: Rows) -> str:
    names = {
        "kept_share": "share of the image kept ↓",
        "named_by_shared_symbols": "named by shared symbols ↑",
        "interaction_share": "interaction",
        "deletion": "deletion AUC ↓",
        "insertion": "insertion AUC ↑",
    }
    lines = []
    for net in values_of(rows, "net"):
        for grouping in values_of(where(rows, net=net), "grouping"):
            own = where(rows, net=net, grouping=grouping)
            lines.append(
                (net, grouping, f"{mean(column(own, 'groups')):.0f}", *(number(mean(column(own, n))) for n in names))
            )
    return markdown_table(("network", "grouping", "groups", *names.values()), lines)


def groups_summary(rows: Rows) -> list[str]:
    """Which grouping is best on each measure, on how many images."""
    lines = []
    for measure, text, best_of in (
        ("kept_share", "smallest certified set", min),
        ("deletion", "lowest deletion AUC", min),
        ("named_by_shared_symbols", "most influence still named by one symbol a group", max),
    ):
        wins: dict[str, int] = {}
        for net in values_of(rows, "net"):
            for image in values_of(where(rows, net=net), "image"):
                own = where(rows, net=net, image=image)
                known = [row for row in own if math.isfinite(float(row[measure]))]
                best = best_of((float(row[measure]) for row in known), default=float("nan"))
                winners = [row["grouping"] for row in known if float(row[measure]) == best]
                if len(winners) == 1:
                    wins[winners[0]] = wins.get(winners[0], 0) + 1
        order = sorted(wins.items(), key=lambda item: -item[1])
        lines.append(
            f"- {text}: " + (", ".join(f"{name} on {count}" for name, count in order) or "always a draw") + "."
        )
    return lines


def write_page(folder: Path) -> None:
    """Write README.md and the drift plots from the tables in `folder`."""
    maps, sets, groups, drifts, times = (read(folder, name) for name in ("maps", "sets", "groups", "drift", "times"))
    inputs: Callable[[str], int] = lambda net: 64 if "digits" in net else 3072 if "cifar" in net else 784  # noqa: E731
    nets = {net: inputs(net) for net in values_of(drifts, "net")}
    files = draw_drift(drifts, nets, folder)
    cases = [(row["net"], row["image"]) for row in times]
    radii = ", ".join(f"{net} {where(times, net=net)[0]['eps']}" for net in values_of(times, "net"))
    checked = sum(row["independent_check"] == "unsat" for row in sets)
    parts = [
        "# Explanations by noise symbols, measured",
        f"Made by `benchmarks/explanations.py` from {len(cases)} images on {len(nets)} networks. Radii of the boxes, in"
        f" pixel values of 0 to 1: {radii}. All tables are means over images; every number is in the .csv files.",
        "Symbol influence (*symbols*) is the coefficient of each input's noise symbol after one zonotope pass over the"
        " box; *symbols-to-baseline* is the same over a box a tenth of the way to a black image, times the way. All"
        " methods explain the same number, the margin of the class over its nearest rival. LIME and KernelSHAP see a"
        " grid of 7 x 7 patches and 500 samples.",
        "## Maps: where symbol influence wins, ties and loses",
        "*Better*, *worse*: the paired difference over all images is more than two standard errors. With few images"
        " much stays unclear, and is said so.",
        "### symbols",
        "\n".join(verdict(maps, "symbols", measure) for measure in MEASURES),
        "### symbols-to-baseline",
        "\n".join(verdict(maps, "symbols-to-baseline", measure) for measure in MEASURES),
        "How to read it. *Symbols* says what small changes inside the box can do, and so does the gradient: the two"
        f" mostly rank pixels alike (rank agreement {mean(column(where(maps, method='gradient'), 'agreement')):.2f}),"
        " and where a plain heat map of local sensitivity is all that is wanted, the gradient gives it for less."
        " What symbols add is the certificate: the map bounds the margin on the whole box, and says beside it how much"
        " it does not explain. Deletion and insertion ask another question, what happens when pixels turn black; they"
        " favour methods that compare with a black image (integrated gradients, symbols-to-baseline, the sampling"
        " methods). Sparsity is no merit on its own.",
        maps_table(maps),
        *(f"### {net}\n\n{maps_table(where(maps, net=net))}\n\n![maps]({_file('maps', net)})" for net in nets),
        "## Sufficient sets",
        f"All {len(sets)} sets were checked by the whole verifier with every feature outside the set free: {checked}"
        f" times unsat, {len(sets) - checked} times undecided in its time, never a counterexample. The judge is the"
        " bound zonotope+crown, except where the way names the verifier. *Deletion by gradient* asks it about every"
        " feature, least gradient first.",
        "\n".join(sets_summary(sets)),
        "A bound says yes or does not know, so these sets are minimal for the judge at best, not for the network: where"
        " a network is robust in the whole box, a stronger judge keeps nothing. *Proved needed*, the share of kept"
        " features for which a counterexample was found when they are freed too, is asked only of the verifier's sets.",
        sets_table(sets),
        *(f"![sets]({_file('sets', net)})" for net in nets),
        "## Time",
        times_table(times),
        "In the tables of maps, the seconds of *symbols* on a network's first image include building the host's graph.",
        "## Groups",
        "Groupings of about 25 groups. *Share kept*: of the image, by certificates over groups. *Named by shared"
        " symbols*: influence when each group moves as one, in multiples of what its pixels have one by one; it can"
        " exceed 1, since the narrower set has relaxations of its own. *Interaction*: what groups do beyond their"
        " members alone, as a share. The number of images on which a grouping is the only best one:",
        "\n".join(groups_summary(groups)),
        groups_table(groups),
        *(f"![groups]({_file('tree', net)})" for net in nets),
        "## What reduction does to explanations",
        "\n".join(drift_summary(drifts, nets)),
        f"The plots show {', '.join(DRAWN)}; all rules are in drift.csv.",
        *(f"![drift]({files[net]})" for net in nets),
    ]
    (folder / "README.md").write_text("\n\n".join(parts) + "\n")


def _file(kind: str, net: str) -> str:
    return f"{kind} {net}.png".replace(" ", "_")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "results" / "explanations")
