"""Pictures of explanations: heat maps, kept pixels, trees of groups, bars, drift. They need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import ceil
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np

from zonoplug.report.plots import STYLES, new_figure

if TYPE_CHECKING:
    from torch import Tensor

    from zonoplug.explain.merging import Merge

Target = Path | str | BytesIO

# Red and blue of equal lightness, which differ for colour-blind readers too; white is no influence.
SIGNED = "RdBu"
FOR, AGAINST = "#2166AC", "#B2182B"
GREY = "#8A8A8A"
SHOWN_BARS = 24
INCH = 2.3
TITLE_LETTERS = 26


@dataclass(frozen=True, slots=True)
class MapPanel:
    """A map of one image.

    Attributes:
        title: what made it.
        values: (height, width), signed; blue raises the margin, red lowers it.
        note: below it, such as the unattributed mass. The end of the scale is printed there too.
    """

    title: str
    values: Tensor
    note: str = ""


def draw_maps(image: Tensor | None, panels: Sequence[MapPanel], path: Target, columns: int = 5) -> None:
    """Write the image and maps of it side by side, each on its own scale around 0.

    Args:
        image: (channels, height, width) in [0, 1], or None.
        path: of the file to write, or a buffer, which gets a PNG.
    """
    count = len(panels) + (image is not None)
    columns = min(columns, count)
    rows = ceil(count / columns)
    figure = new_figure(figsize=(INCH * columns + 0.2, (INCH + 0.5) * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for place in axes:
        place.set_xticks([])
        place.set_yticks([])
    if image is not None:
        first = axes.pop(0)
        _show_image(first, image)
        first.set_title("input", fontsize=10)
    for place, panel in zip(axes, panels, strict=False):
        values = panel.values.detach().double().cpu().numpy()
        limit = float(np.nanmax(np.abs(values))) if np.isfinite(values).any() else 0.0
        limit = limit if limit > 0 else 1.0
        shown = place.imshow(values, cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
        place.set_title(panel.title, fontsize=10)
        place.set_xlabel(f"scale ±{limit:.2g}" + (f"\n{panel.note}" if panel.note else ""), fontsize=9)
        bar = figure.colorbar(shown, ax=place, fraction=0.046, pad=0.03)
        bar.set_ticks([-limit, 0, limit], labels=["−", "0", "+"])
        bar.ax.tick_params(labelsize=8)
    for place in axes[len(panels) :]:
        place.axis("off")
    _save(figure, path)


def draw_kept(
    image: Tensor, masks: Mapping[str, Tensor], path: Target, colors: Mapping[str, str] | None = None
) -> None:
    """Write the image and, for each mask, what is left of it: other pixels are hatched out in a pale colour.

    Args:
        image: (channels, height, width) in [0, 1].
        masks: title -> (height, width) bool, True where the pixel is kept.
        colors: title -> colour of the outline.
    """
    figure = new_figure(figsize=(INCH * (len(masks) + 1) + 0.2, INCH + 0.8), layout="constrained")
    axes = figure.subplots(1, len(masks) + 1, squeeze=False).flatten()
    for place in axes:
        place.set_xticks([])
        place.set_yticks([])
    _show_image(axes[0], image)
    axes[0].set_title("input", fontsize=10)
    for place, (title, mask) in zip(axes[1:], masks.items(), strict=True):
        _show_image(place, image)
        kept = mask.cpu().numpy()
        veil = np.zeros((*kept.shape, 4))
        veil[...] = (0.99, 0.91, 0.72, 1.0)
        veil[..., 3] = np.where(kept, 0.0, 0.88)
        place.imshow(veil, interpolation="nearest")
        _outline(place, kept, (colors or {}).get(title, FOR))
        place.set_title(fill(title, TITLE_LETTERS), fontsize=10)
    _save(figure, path)


def draw_tree(
    merges: Sequence[Merge],
    path: Target,
    image: Tensor | None = None,
    labels: Tensor | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Write the tree of merged groups, and where the groups lie in the image.

    Args:
        merges: as `merge_tree` returns them; the height of a join is what all merges up to it cost.
        image: (channels, height, width) in [0, 1].
        labels: (height, width) the group of each pixel.
        names: of the groups; their numbers by default.
    """
    leaves = len(merges) + 1
    width = max(5.0, 0.22 * leaves) + (0 if image is None or labels is None else 4.2)
    figure = new_figure(figsize=(width, 4.2), layout="constrained")
    if image is not None and labels is not None:
        picture, tree = figure.subplots(1, 2, width_ratios=(4.2, width - 4.2))
        _show_groups(picture, image, labels)
    else:
        tree = figure.subplots()
    order = _leaf_order(merges)
    place = {leaf: float(x) for x, leaf in enumerate(order)}
    height = dict.fromkeys(range(leaves), 0.0)
    for step, merge in enumerate(merges):
        left, right, top = place[merge.left], place[merge.right], merge.height
        tree.plot(
            [left, left, right, right], [height[merge.left], top, top, height[merge.right]], color=FOR, linewidth=1.3
        )
        place[leaves + step] = (left + right) / 2
        height[leaves + step] = top
    shown = [str(leaf) for leaf in order] if names is None else [names[leaf] for leaf in order]
    tree.set_xticks(range(leaves), shown, rotation=90 if names is not None or leaves > 12 else 0, fontsize=8)
    tree.set_ylabel("mass that loses its name, per margin", fontsize=9)
    tree.set_xlabel("group", fontsize=9)
    tree.set_title("groups merged where least is lost", fontsize=10)
    tree.spines[["top", "right"]].set_visible(False)
    tree.set_ylim(bottom=0)
    _save(figure, path)


def draw_bars(
    names: Sequence[str],
    values: Sequence[float],
    path: Target,
    unit: str,
    members: Sequence[float] | None = None,
    title: str = "",
) -> None:
    """Write named bars, longest first.

    Args:
        values: signed; blue raises the margin, red lowers it.
        members: a second value for each name, drawn as a mark: a group's members one by one.
    """
    order = sorted(range(len(values)), key=lambda i: -abs(values[i]))[:SHOWN_BARS]
    rows = [(names[i], values[i], FOR if values[i] >= 0 else AGAINST) for i in order]
    left = len(values) - len(order)
    if left:
        rows.append((f"{left} more, together", sum(abs(v) for v in values) - sum(abs(v) for _, v, _ in rows), GREY))
    figure = new_figure(figsize=(7.0, 1.1 + 0.27 * len(rows)), layout="constrained")
    chart = figure.subplots()
    for y, (_, value, color) in enumerate(rows):
        chart.barh(y, value, color=color, hatch="//" if color == GREY else None, edgecolor="white", linewidth=0)
    if members is not None:
        chart.plot(
            [members[i] for i in order],
            range(len(order)),
            "D",
            color="black",
            markersize=4,
            linestyle="none",
            label="sum of its members alone",
        )
        chart.legend(fontsize=9, frameon=False, loc="lower right")
    chart.set_yticks(range(len(rows)), [name for name, _, _ in rows], fontsize=9)
    chart.invert_yaxis()
    chart.axvline(0, color="black", linewidth=0.8)
    chart.set_xlabel(unit, fontsize=9)
    chart.set_title(title, fontsize=10)
    chart.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart: x increasing, y, and whether it is drawn dashed."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


def draw_lines(charts: Mapping[str, tuple[str, Sequence[Line], bool]], path: Target, x_label: str) -> None:
    """Write charts side by side with a common legend. Labels that agree up to a comma share their colour.

    Args:
        charts: title -> (name of the vertical axis, lines, whether that axis is logarithmic).
    """
    figure = new_figure(figsize=(4.3 * len(charts), 4.0), layout="constrained")
    axes = figure.subplots(1, len(charts), squeeze=False).flatten()
    labels = list(dict.fromkeys(line.label for _, lines, _ in charts.values() for line in lines))
    families = list(dict.fromkeys(label.partition(",")[0] for label in labels))
    handles: dict[str, Any] = {}
    for chart, (title, (y_label, lines, logarithmic)) in zip(axes, charts.items(), strict=True):
        for line in lines:
            place = families.index(line.label.partition(",")[0])
            style = dict(STYLES[place % len(STYLES)])
            style["marker"] = STYLES[(place + place // len(STYLES)) % len(STYLES)]["marker"]
            style["linestyle"] = "--" if line.dashed else "-"
            (handles[line.label],) = chart.plot(line.x, line.y, linewidth=1.6, **style)
        if logarithmic:
            chart.set_yscale("log")
        chart.set_title(title, fontsize=11)
        chart.set_xlabel(x_label, fontsize=9)
        chart.set_ylabel(y_label, fontsize=9)
        chart.grid(color="#dddddd", linewidth=0.6)
        chart.tick_params(labelsize=9)
    shown = [label for label in labels if label in handles]
    figure.legend(
        [handles[label] for label in shown], shown, loc="outside lower center", ncols=4, fontsize=9, frameon=False
    )
    _save(figure, path)


def _leaf_order(merges: Sequence[Merge]) -> list[int]:
    """Leaves in an order in which no lines cross."""
    return list(merges[-1].members) if merges else [0]


def _show_image(place: Any, image: Tensor) -> None:
    values = image.detach().clamp(0, 1).permute(1, 2, 0).squeeze(2).cpu().numpy()
    place.imshow(values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")


def _show_groups(place: Any, image: Tensor, labels: Tensor) -> None:
    """The image with the outlines and numbers of its groups."""
    _show_image(place, image)
    place.set_xticks([])
    place.set_yticks([])
    place.set_title("groups", fontsize=10)
    for group in range(int(labels.max()) + 1):
        mask = (labels == group).cpu().numpy()
        _outline(place, mask, "#E69F00", 0.9)
        ys, xs = np.nonzero(mask)
        middle = int(np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2))
        place.text(
            xs[middle],
            ys[middle],
            str(group),
            fontsize=7,
            ha="center",
            va="center",
            bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )


def _outline(place: Any, mask: Any, color: str, width: float = 1.2) -> None:
    """Lines along the edges of a mask's pixels."""
    height, length = mask.shape
    padded = np.pad(mask, 1)
    down = [((x - 0.5, x + 0.5), (y - 0.5, y - 0.5)) for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1])]
    across = [((x - 0.5, x - 0.5), (y - 0.5, y + 0.5)) for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1])]
    for xs, ys in (*down, *across):
        place.plot(xs, ys, color=color, linewidth=width, solid_capstyle="butt", clip_on=False)
    place.set_xlim(-0.5, length - 0.5)
    place.set_ylim(height - 0.5, -0.5)


def _save(figure: Any, path: Target) -> None:
    figure.savefig(path, dpi=110, **({"format": "png"} if isinstance(path, BytesIO) else {}))
