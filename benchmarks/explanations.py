"""Explanations by noise symbols beside those that people use, on real networks and images.

    .venv/bin/python benchmarks/explanations.py [--images 3] [--nets NAME ...] [--shared ../shared] [--folder FOLDER]

For each network and its first rightly classified images: maps by all attribution methods and what is measured of them;
certified sufficient sets, checked by the whole verifier, beside the deletion order by gradient with the same judge;
groups of pixels; what symbol reduction does to the maps; and the time of one pass beside KernelSHAP's evaluations.
Writes tables (.csv), pictures and README.md. Networks whose files are absent are left out: the bundled digits network
is always there. Takes about five minutes of processor time for three images.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import torch
from explanations_nets import Case, cases, nets
from explanations_page import write_page

from zonoplug.explain.comparison import ATTRIBUTIONS
from zonoplug.explain.decision import network_outputs
from zonoplug.explain.drift import drift
from zonoplug.explain.evaluation import Evaluation, evaluate
from zonoplug.explain.groups import clusters, grid, interactions, neighbours, superpixels, together
from zonoplug.explain.influence import SymbolInfluence
from zonoplug.explain.merging import cut, merge_tree
from zonoplug.explain.metrics import deletion_auc, insertion_auc
from zonoplug.explain.oracles import BoundOracle, CascadeOracle, VerifierOracle
from zonoplug.explain.region import Region
from zonoplug.explain.sufficient import SufficientSet, sufficient_set
from zonoplug.explain.traversals import Answer
from zonoplug.report.explain.pictures import MapPanel, draw_kept, draw_maps, draw_tree

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "results" / "explanations"
SHARED = HERE.parent.parent / "shared"
GROUPS = 25
ORACLE = "zonotope+crown"
CHECK_SECONDS = 60.0
MERGED = (10, 30, 60)  # per cent of the neurons that stay, from small networks to larger ones
PATIENCE = 24
MEASURES = [field.name for field in fields(Evaluation) if field.name not in ("name", "values")]


def map_rows(case: Case, folder: Path, draw: bool) -> list[dict[str, object]]:
    """What is measured of each method's map; and the grid of all maps."""
    found = evaluate(case.question)
    if draw:
        influence = case.explainer.influence(case.region.point, case.decision, case.region.box)
        margins = case.decision.margins(network_outputs(case.model.module, case.region.point))
        row = int(margins[0].argmin())
        mass, share = float(influence.unattributed[0, row]), float(influence.shares()[1][0, row])
        panels = [
            MapPanel(
                item.name,
                case.layout.to_image(item.values[0]).sum(dim=0),
                f"unattributed {mass:.3g} ({share:.0%})" if item.name == "symbols" else "",
            )
            for item in found
        ]
        draw_maps(case.image, panels, folder / f"maps {case.net.name}.png".replace(" ", "_"))
    return [_key(case) | {"method": item.name} | {name: getattr(item, name) for name in MEASURES} for item in found]


def set_rows(case: Case, folder: Path, draw: bool) -> list[dict[str, object]]:
    """Sufficient sets: ours, and by the deletion order with the same judge; all checked by the whole verifier."""
    labels = None if case.net.one_by_one else superpixels(case.image, 60)
    region = case.region if labels is None else case.grouped(labels)
    network, module = case.model.module, case.explainer.module(case.region.point)
    oracle = BoundOracle(module, region, case.decision, ORACLE)
    merged = CascadeOracle(tuple(BoundOracle(module, region, case.decision, f"zonotope[neurons,{n}%]") for n in MERGED))
    certain = SymbolInfluence(module, rounding="inference")
    slope = ATTRIBUTIONS.get("gradient")(case.question)
    gradient = region.per_feature(slope.abs())[0].double()
    influence = certain.influence(case.region.point, case.decision, region.box)
    row = int(influence.nearest()[0])
    symbols = region.per_feature(influence.magnitude()[:, row])[0].double()
    ways: dict[str, Callable[[], SufficientSet]] = {
        "certificates only": lambda: sufficient_set(certain, region, case.decision),
        "certificates, then bounds": lambda: sufficient_set(certain, region, case.decision, oracle),
        f"certificates, then bounds until {PATIENCE} refusals": lambda: sufficient_set(
            certain, region, case.decision, oracle, patience=PATIENCE
        ),
        "certificates, then QuickXplain": lambda: sufficient_set(certain, region, case.decision, oracle, "quickxplain"),
        "certificates, then merged networks": lambda: sufficient_set(certain, region, case.decision, merged),
        "deletion by gradient": lambda: sufficient_set(None, region, case.decision, oracle, "deletion", gradient),
        "deletion by symbols": lambda: sufficient_set(None, region, case.decision, oracle, "deletion", symbols),
    }
    rows, masks = [], {}
    for way, search in ways.items():
        found = search()
        answer = VerifierOracle(case.model, region, case.decision, CHECK_SECONDS)(found.free)
        if answer is Answer.REFUTED:
            raise AssertionError(f"{case.net.name}, image {case.number}: a set proved by {way!r} does not suffice")
        rows.append(_set_row(case, way, found, region.num_features, answer))
        mask = ~region.mask(found.free)
        masks[f"{way}: {found.size}"] = case.layout.to_image(mask)[0]
    if draw:
        shown = {title: mask for title, mask in masks.items() if "Quick" not in title and "bounds:" not in title}
        draw_kept(case.image, shown, folder / f"sets {case.net.name}.png".replace(" ", "_"))
    if case.region.num_features <= 64:  # small enough to ask the whole verifier every time
        wide = Region.ball(case.region.point, 0.1, 0, 1, case.region.features)
        whole = VerifierOracle(case.model, wide, case.decision, 5.0)
        wider = SymbolInfluence(module, rounding="inference")
        found = sufficient_set(wider, wide, case.decision, whole, "quickxplain", network=network)
        answer = VerifierOracle(case.model, wide, case.decision, CHECK_SECONDS)(found.free)
        rows.append(_set_row(case, "certificates, then the verifier (radius 0.1)", found, wide.num_features, answer))
    return rows


def _set_row(case: Case, way: str, found: SufficientSet, features: int, answer: Answer) -> dict[str, object]:
    return _key(case) | {
        "way": way,
        "size": found.size,
        "of": features,
        "passes": found.passes,
        "calls": found.calls,
        "seconds": found.seconds,
        "share_needed": found.share_needed,
        "independent_check": "unsat" if answer is Answer.PROVED else "undecided",
    }


def group_rows(case: Case, folder: Path, draw: bool) -> list[dict[str, object]]:
    """Groupings of about the same number of groups: how well they carry an explanation."""
    layout, region, decision = case.layout, case.region, case.decision
    height, width = layout.height, layout.width
    side = round(GROUPS**0.5)
    influence = case.explainer.influence(region.point, decision, region.box)
    signed = torch.stack([layout.to_image(values).sum(dim=0) for values in influence.signed()[0]])
    fine = superpixels(case.image, 60) if height > 8 else grid(height, width, height, width)
    merged = together(case.explainer, case.grouped(fine), decision)
    groupings = {
        "grid": grid(height, width, side, side),
        "SLIC": superpixels(case.image, GROUPS),
        "clusters of generators": clusters(signed, GROUPS),
        "merged SLIC": cut(merge_tree(merged.symbols[0].T, neighbours(fine)), GROUPS)[fine],
    }
    if draw:
        tree = merge_tree(merged.symbols[0].T, neighbours(fine))
        draw_tree(tree, folder / f"tree {case.net.name}.png".replace(" ", "_"), case.image, fine)
    row = int(influence.nearest()[0])
    named = float(influence.magnitude()[0, row].sum())
    rows = []
    for name, labels in groupings.items():
        grouped = case.grouped(labels)
        joint, extra = interactions(case.explainer, grouped, decision)
        start = time.perf_counter()
        found = sufficient_set(
            SymbolInfluence(case.explainer.module(region.point), rounding="inference"), grouped, decision
        )
        seconds = time.perf_counter() - start
        values = joint[:, row][grouped.features]
        kept = float(grouped.mask(~found.free).double().mean())
        shared = together(case.explainer, grouped, decision)
        question = case.question
        rows.append(
            _key(case)
            | {
                "grouping": name,
                "groups": grouped.num_features,
                "kept_share": kept,
                "named_by_shared_symbols": float(shared.symbols[0, row].abs().sum()) / named if named else float("nan"),
                "interaction_share": float(extra[:, row].abs().sum() / joint[:, row].abs().sum()),
                "deletion": deletion_auc(question.probability, region.point, values, case.baseline),
                "insertion": insertion_auc(question.probability, region.point, values, case.baseline),
                "seconds": seconds,
            }
        )
    return rows


def drift_rows(case: Case) -> list[dict[str, object]]:
    """Every reduction at budgets below, at and above the number of inputs."""
    inputs = case.region.point.numel()
    budgets = [int(share * inputs) for share in (0.25, 0.5, 0.75, 1.0, 1.1, 1.2, 1.4)]
    module = case.explainer.module(case.region.point)
    found = drift(module, case.region.box, case.decision, budgets)
    return [_key(case) | {f.name: getattr(item, f.name) for f in fields(item)} for item in found]


def time_rows(case: Case, repeats: int = 5) -> list[dict[str, object]]:
    """One pass of symbol influence, and one evaluation of KernelSHAP's 500 samples with its gradient, least of some."""
    points = case.region.point.repeat(500, *[1] * (case.region.point.dim() - 1)).requires_grad_(True)
    passes, evaluations = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        case.explainer.influence(case.region.point, case.decision, case.region.box)
        middle = time.perf_counter()
        torch.autograd.grad(case.question.score(points).sum(), points)
        passes.append(middle - start)
        evaluations.append(time.perf_counter() - middle)
    return [_key(case) | {"pass_seconds": min(passes), "forward_backward_seconds": min(evaluations)}]


def _key(case: Case) -> dict[str, object]:
    return {"net": case.net.name, "eps": case.net.eps, "image": case.number}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--nets", nargs="*", help="names, or parts of them")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    tables: dict[str, list[dict[str, object]]] = {name: [] for name in ("maps", "sets", "groups", "drift", "times")}
    for net in nets(options.shared):
        if options.nets and not any(part in net.name for part in options.nets):
            continue
        for place, case in enumerate(cases(net, options.images)):
            start, draw = time.perf_counter(), place == 0
            tables["maps"] += map_rows(case, options.folder, draw)
            tables["sets"] += set_rows(case, options.folder, draw)
            tables["groups"] += group_rows(case, options.folder, draw)
            tables["drift"] += drift_rows(case)
            tables["times"] += time_rows(case)
            print(f"{net.name}, image {case.number}: {time.perf_counter() - start:.0f} s", flush=True)
    for name, rows in tables.items():
        with (options.folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows([{key: _short(value) for key, value in row.items()} for row in rows])
    write_page(options.folder)


def _short(value: object) -> object:
    return f"{value:.5g}" if isinstance(value, float) else value


if __name__ == "__main__":
    main()
