"""The page that `zonoplug explain` makes for one input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.errors import SettingError, ZonoplugError
from zonoplug.explain.counterfactual import attack_boxes, counterfactual_set
from zonoplug.explain.decision import network_outputs
from zonoplug.explain.influence import SymbolInfluence
from zonoplug.explain.oracles import BoundOracle
from zonoplug.explain.sufficient import SufficientSet, sufficient_set
from zonoplug.explain.traversals import Answer
from zonoplug.report.explain.case import Case, ExplainSettings, load_case
from zonoplug.report.explain.pictures import MapPanel, draw_bars, draw_kept, draw_maps
from zonoplug.report.explain.sections import comparison_section, groups_section
from zonoplug.report.html import Page

SET_SHARE = 0.5  # of the time limit, for the sufficient set


def explain_file(request: dict[str, Any]) -> dict[str, Any]:
    """The worker's job: explain one input of one network, and write the page.

    Args:
        request: "model", "input", "out", "settings" (a dictionary for `ExplainSettings`).
    Returns:
        "size" and "features" of the sufficient set, "unattributed" share, "robust", "notes".
    """
    torch.set_num_threads(1)
    settings = ExplainSettings(**request["settings"])
    deadline = Deadline(settings.timeout_seconds)
    out = Path(request["out"])
    if not out.parent.is_dir():
        raise SettingError(f"Cannot write {out}: there is no folder {out.parent}.")
    case = load_case(request["model"], request["input"], settings)
    page = Page(f"Why {case.words}? {Path(request['model']).name}, {Path(request['input']).name}")
    report = _Report(page, case, settings, deadline)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary = report.write()
    try:
        out.write_text(page.html(), encoding="utf-8")
    except OSError as error:
        raise SettingError(f"Cannot write {out}: {error.strerror}.") from error
    return {"verdict": "explained", "out": str(out), **summary}


class _Report:
    """Writes the sections of the page, one after the other, while there is time."""

    def __init__(self, page: Page, case: Case, settings: ExplainSettings, deadline: Deadline) -> None:
        self.page, self.case, self.settings, self.deadline = page, case, settings, deadline
        network = case.model.module
        self.explainer = SymbolInfluence(network, settings.method)
        self.module = self.explainer.module(case.region.point)
        self.influence = self.explainer.influence(case.region.point, case.decision, case.region.box)
        self.row = int(self.influence.nearest()[0])
        self.notes: list[str] = []

    def write(self) -> dict[str, Any]:
        summary = self._overview()
        self._map()
        self._origins()
        summary |= self._sufficient()
        groups = partial(groups_section, self.page, self.case, self.explainer, self.influence, self.row)
        self._if_possible("Groups", groups)
        if self.settings.compare:
            others = partial(comparison_section, self.page, self.case, self.explainer)
            self._if_possible("Beside other methods", others)
        return summary | {"notes": self.notes}

    def _if_possible(self, title: str, section: Callable[[], None]) -> None:
        """A section that needs time and packages that may be missing; if it cannot be made, the page says why."""
        self.page.heading(title)
        try:
            if self.deadline.passed:
                raise SettingError("The time was up. Give more with --timeout.")
            section()
        except ZonoplugError as error:
            self.notes.append(f"{title}: {error}")
            self.page.text(f"Left out: {error}")

    def _overview(self) -> dict[str, Any]:
        case, eps = self.case, self.settings.eps
        margins = case.decision.margins(network_outputs(case.model.module, case.region.point))[0]
        oracle = BoundOracle(self.module, case.region, case.decision)
        everything = torch.ones(case.region.num_features, dtype=torch.bool)
        proved = oracle(everything) is Answer.PROVED
        self.page.text(
            f"The network says {case.words}. Every input may move by {eps:g}. It is "
            + (
                "proved that the decision stands whatever they do together."
                if proved
                else "not proved by one bound that the decision stands whatever they do together;"
                " the sections below say which inputs settle it."
            )
        )
        rows = []
        parts = zip(
            case.rivals,
            margins.tolist(),
            self.influence.lower[0].tolist(),
            self.influence.explained[0].tolist(),
            self.influence.unattributed[0].tolist(),
            strict=True,
        )
        for name, margin, lower, explained, rest in sorted(parts, key=lambda part: part[2])[:10]:
            rows.append((name, f"{margin:.4g}", f"{lower:.4g}", f"{explained:.4g}", f"{rest:.4g}"))
        header = ("rival", "margin here", "lower bound", "explained by inputs", "unattributed")
        self.page.table(header, rows)
        self.page.text(
            "The margin is how far the decision is ahead of a rival. In one pass it becomes a sum: a part for every"
            " input, and what no input explains (unattributed: the approximation of the network's bends)."
            " The larger the unattributed part, the less the map below says."
        )
        share = float(self.influence.shares()[1][0, self.row])
        return {"robust": proved, "unattributed": share}

    def _map(self) -> None:
        found, row = self.influence, self.row
        mass, share = float(found.unattributed[0, row]), float(found.shares()[1][0, row])
        note = f"unattributed {mass:.3g} ({share:.0%})"
        signed = found.signed()[0, row]
        self.page.heading(f"Symbol influence, against {self.case.rivals[row]}")
        if self.case.layout is None or self.case.image is None:
            draw = partial(draw_bars, self.case.names, signed.flatten().tolist(), unit="margin", title=note)
            self.page.picture(
                draw,
                f"How far each input moves the margin; blue: raising it helps the decision, red: it harms. {note}.",
            )
            return
        values = self.case.layout.to_image(signed)
        panels = [MapPanel("all channels" if len(values) > 1 else "influence", values.sum(dim=0), note)]
        if len(values) > 1:
            panels += [
                MapPanel(f"channel {name}", channel)
                for name, channel in zip(("red", "green", "blue"), values, strict=False)
            ]
        self.page.picture(
            partial(draw_maps, self.case.image, panels),
            f"How far each pixel moves the margin; blue: brighter helps the decision, red: it harms. {note}.",
        )

    def _origins(self) -> None:
        """Where the unattributed mass entered."""
        nodes = sorted(self.influence.nodes, key=lambda node: -float(node.total[0, self.row]))
        rows = []
        whole = float(self.influence.unattributed[0, self.row])
        for node in nodes[:8]:
            mass = float(node.total[0, self.row])
            worst = ", ".join(f"{neuron} ({value:.2g})" for neuron, value in node.neurons(0, self.row, 3))
            rows.append(
                (f"{node.node} ({node.kind.removeprefix('Bound')})", f"{mass:.4g}", f"{_share(mass, whole)}", worst)
            )
        box = float(self.influence.box[0, self.row])
        if box > 0:
            rows.append(("no named symbol (rounding, reduction, intervals)", f"{box:.4g}", _share(box, whole), ""))
        if rows:
            self.page.heading("Where the unattributed part entered")
            self.page.table(("layer", "mass", "share", "neurons with most"), rows)

    def _sufficient(self) -> dict[str, Any]:
        case = self.case
        oracle = BoundOracle(self.module, case.region, case.decision)
        certain = SymbolInfluence(self.module, self.settings.method, rounding="inference")
        limit = self.deadline.part(SET_SHARE)
        found = sufficient_set(certain, case.region, case.decision, oracle, network=case.model.module, deadline=limit)
        noun = "pixels" if case.layout is not None else "inputs"
        total = case.region.num_features
        self.page.heading(f"{found.size} of {total} {noun} settle the decision")
        if not found.size:
            self.page.text(f"No input has to keep its value: the decision stands in the whole box. {_effort(found)}")
            return {"size": 0, "features": [], "needed": 0, "of": total}
        self.page.text(
            f"Proved: as long as these {found.size} {noun} keep their values, the others may move by"
            f" {self.settings.eps:g} as they like, all together, and it stays {case.words}. {_effort(found)} For"
            f" {int(found.needed.sum())} of those kept an attack shows that freeing that one too breaks the decision."
        )
        order = found.kept
        if found.kept and case.layout is not None and case.image is not None:
            shape = (case.layout.height, case.layout.width)
            masks = {f"{found.size} {noun} suffice": (~found.free).reshape(shape)}
            flipped = self._counterfactual(found.importance)
            if flipped is not None:
                masks[f"{int(flipped.sum())} {noun} can flip it"] = flipped.reshape(shape)
            self.page.picture(
                partial(draw_kept, case.image, masks),
                "What is left of the image when everything else may change"
                + (
                    "; and few pixels whose change alone flips the decision, found by attack."
                    if len(masks) > 1
                    else "."
                ),
            )
        elif found.kept:
            rows = [(case.names[f], "yes" if bool(found.needed[f]) else "not shown") for f in order[:50]]
            self.page.table(("kept, most influential first", "proved to be needed"), rows)
            flipped = self._counterfactual(found.importance)
            if flipped is not None:
                changed = ", ".join(case.names[int(f)] for f in flipped.nonzero().flatten())
                self.page.text(f"An attack flips the decision by changing only: {changed}.")
        return {"size": found.size, "features": order, "needed": int(found.needed.sum()), "of": total}

    def _counterfactual(self, importance: Tensor) -> Tensor | None:
        case = self.case
        network = case.model.module
        found = attack_boxes(network, case.region.box, case.decision, steps=40, restarts=4)
        if not bool(found.violated[0]):
            return None
        features, _ = counterfactual_set(network, case.region, case.decision, found.points, importance)
        return features


def _effort(found: SufficientSet) -> str:
    return (
        f"{found.by_certificate} were freed by certificates in {found.passes} propagations,"
        f" {int(found.free.sum()) - found.by_certificate} more by {found.calls} bounds, in {found.seconds:.1f} s."
    )


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole > 0 else "-"
