"""Sections of the page that need optional packages: groups, and other attribution methods."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from zonoplug.explain.comparison import ATTRIBUTIONS, Question
from zonoplug.explain.evaluation import evaluate
from zonoplug.explain.groups import interactions, neighbours, superpixels, together
from zonoplug.explain.influence import Influence, SymbolInfluence
from zonoplug.explain.merging import merge_tree
from zonoplug.explain.region import Region
from zonoplug.report.explain.case import Case
from zonoplug.report.explain.pictures import MapPanel, draw_bars, draw_maps, draw_tree
from zonoplug.report.html import Page

SUPERPIXELS = 30


def groups_section(page: Page, case: Case, explainer: SymbolInfluence, influence: Influence, row: int) -> None:
    """Superpixels: what they do together, and their tree; for tables the tree of columns."""
    if case.layout is None or case.image is None:
        if case.region.num_features > 2:
            _tree(page, case, influence, None, None)
        return
    labels = superpixels(case.image, SUPERPIXELS)
    region = Region(case.region.point, case.region.box, case.layout.features(labels))
    joint, extra = interactions(explainer, region, case.decision)
    names = [f"group {group}" for group in range(joint.shape[0])]
    own = joint[:, row]
    page.picture(
        partial(
            draw_bars,
            names,
            own.tolist(),
            unit="margin",
            members=(own - extra[:, row]).tolist(),
            title=f"joint influence, against {case.rivals[row]}",
        ),
        "How far each group can push the margin down when only it moves (certified). The mark is the sum of its"
        " pixels one by one; what sticks out beyond it the pixels do only together.",
    )
    _tree(page, case, together(explainer, region, case.decision), labels, neighbours(labels))


def comparison_section(page: Page, case: Case, explainer: SymbolInfluence) -> None:
    """All attribution methods side by side, and what is measured of them."""
    question = Question(case.model.module, case.region, case.decision, case.baseline, case.layout, explainer=explainer)
    found = evaluate(question)
    if case.layout is not None and case.image is not None:
        panels = [MapPanel(item.name, case.layout.to_image(item.values[0]).sum(dim=0)) for item in found]
        page.picture(
            partial(draw_maps, case.image, panels),
            "The same decision explained by all methods, each on its own scale.",
        )
    rows = [
        (
            item.name,
            f"{item.deletion:.3f}",
            f"{item.insertion:.3f}",
            f"{item.infidelity:.3f}",
            f"{item.sensitivity:.3f}",
            f"{item.steadiness:.2f}",
            f"{item.sparsity:.2f}",
            f"{item.agreement:.2f}",
            f"{item.seconds:.3f}",
        )
        for item in found
    ]
    header = (
        "method",
        "deletion ↓",
        "insertion ↑",
        "infidelity ↓",
        "max-sensitivity ↓",
        "steadiness ↑",
        "sparsity",
        "rank agreement with symbols",
        "seconds",
    )
    page.table(header, rows)
    sources = "; ".join(f"{name}: {ATTRIBUTIONS.get(name).source}" for name in ATTRIBUTIONS.names())
    page.text(f"Sources. {sources}.")


def _tree(page: Page, case: Case, merged: Influence, labels: Tensor | None, touching: Tensor | None) -> None:
    merges = merge_tree(merged.symbols[0].T, touching)
    names = None if labels is not None else [case.names[int(i)] for i in merged.index[0]]
    if len(merges) > 80:
        return
    total = float(merged.symbols[0].abs().mean(dim=0).sum())
    page.picture(
        partial(draw_tree, merges, image=case.image, labels=labels, names=names),
        f"Groups that share one noise symbol, merged where least mass loses its name, of {total:.3g} in all."
        + (
            " Here all move the rivals in the same proportions, so that merging costs nothing."
            if merges and merges[-1].height < 1e-6 * total
            else ""
        ),
    )
