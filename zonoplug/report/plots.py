"""Pictures: what a perturbation does to an image, and how much is certified at which strength. They need matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zonoplug.errors import SettingError

if TYPE_CHECKING:
    from torch import Tensor

    from zonoplug.domain.image_perturbations import ImagePerturbation

# Okabe and Ito's colours, which differ for colour-blind readers too, each with a marker and a dash of its own.
STYLES = (
    {"color": "#000000", "marker": "x", "linestyle": ":", "markersize": 5},
    {"color": "#0072B2", "marker": "o", "linestyle": "-", "markersize": 5},
    {"color": "#D55E00", "marker": "s", "linestyle": "-", "markersize": 5},
    {"color": "#009E73", "marker": "^", "linestyle": "-", "markersize": 6},
    {"color": "#CC79A7", "marker": "D", "linestyle": "-", "markersize": 5},
    {"color": "#E69F00", "marker": "v", "linestyle": "-", "markersize": 6},
)
REFERENCE_STYLE = {"color": "#444444", "marker": "_", "linestyle": "--", "markersize": 12, "zorder": 3}


@dataclass(frozen=True, slots=True)
class Panel:
    """Shares against strength, for one kind of perturbation.

    Attributes:
        title: the perturbation.
        unit: what the strength means.
        strengths: increasing.
        shares: label -> a share in [0, 1] for each strength.
        reference: label of the line that bounds the others from above; drawn dashed.
    """

    title: str
    unit: str
    strengths: Sequence[float]
    shares: Mapping[str, Sequence[float]]
    reference: str | None = None


def draw_extremes(
    image: Tensor, perturbations: Mapping[str, ImagePerturbation], path: Path | str, columns: int = 2
) -> None:
    """Write a picture with one row for each perturbation: the image, and its settings at 0, in the middle and at 1.

    Args:
        image: (channels, height, width) in [0, 1], with one or three channels.
        perturbations: title -> perturbation.
        path: of the file to write; its ending says which format.
        columns: how many perturbations stand side by side.
    Raises:
        SettingError: matplotlib is not installed.
    """
    rows = ceil(len(perturbations) / columns)
    side, label, gap, top = 0.95, 2.2, 0.07, 0.35  # inches
    block = label + 4 * (side + gap) + 3 * gap
    width, height = columns * block, top + rows * (side + 2 * gap)
    figure = new_figure(figsize=(width, height))
    for number, (title, perturbation) in enumerate(perturbations.items()):
        column, row = divmod(number, rows)
        pictures = (image[None], *perturbation.extremes(image[None]))
        y = height - top - row * (side + 2 * gap) - side
        x = column * block + label
        figure.text((x - 2 * gap) / width, (y + side / 2) / height, title, ha="right", va="center", fontsize=10)
        for picture, caption in zip(pictures, ("original", "low", "middle", "high"), strict=True):
            place = figure.add_axes((x / width, y / height, side / width, side / height))
            place.axis("off")
            values = picture[0].clamp(0, 1).permute(1, 2, 0).squeeze(2).cpu().numpy()
            place.imshow(values, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            place.add_patch(_frame(values))
            if row == 0:
                place.set_title(caption, fontsize=10)
            x += side + gap
    figure.savefig(path, dpi=120)


def draw_accuracy(panels: Sequence[Panel], path: Path | str, what: str, columns: int = 3) -> None:
    """Write small charts, one for each panel, with common legend and vertical axis.

    Args:
        path: of the file to write; its ending says which format.
        what: the vertical axis, such as "certified share of 60 images".
        columns: charts side by side.
    Raises:
        SettingError: matplotlib is not installed.
    """
    rows = ceil(len(panels) / columns)
    figure = new_figure(figsize=(3.5 * columns, 2.75 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    labels = list(dict.fromkeys(label for panel in panels for label in panel.shares if label != panel.reference))
    styles = {label: STYLES[number % len(STYLES)] for number, label in enumerate(labels)}
    handles: dict[str, Any] = {}
    for chart, panel in zip(axes, panels, strict=False):
        for label, shares in panel.shares.items():
            style = REFERENCE_STYLE if label == panel.reference else styles[label]
            percent = [100 * share for share in shares]
            (handles[label],) = chart.plot(panel.strengths, percent, linewidth=1.6, clip_on=False, **style)
        chart.set_title(panel.title, fontsize=11)
        chart.set_xlabel(panel.unit, fontsize=9)
        chart.set_ylim(-3, 103)
        chart.set_xlim(left=0)
        chart.tick_params(labelsize=9)
        chart.grid(color="#dddddd", linewidth=0.6)
    for chart in axes[len(panels) :]:
        chart.axis("off")
    figure.supylabel(f"{what} (%)", fontsize=11)
    order = [label for label in (*labels, *handles) if label in handles]
    shown = {label: handles[label] for label in order}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3, fontsize=10, frameon=False)
    figure.savefig(path, dpi=150)


def new_figure(**options: Any) -> Any:
    """A figure that no window belongs to."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise SettingError('Pictures need matplotlib. Type: pip install "zonoplug[plots]"') from error
    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure


def _frame(values: Any) -> Any:
    """A thin border around a picture, so that a white or black one has an edge."""
    from matplotlib.patches import Rectangle

    height, width = values.shape[:2]
    return Rectangle((-0.5, -0.5), width, height, fill=False, edgecolor="#777777", linewidth=0.8, clip_on=False)
