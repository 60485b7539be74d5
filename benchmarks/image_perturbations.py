"""Certified accuracy against the strength of realistic image perturbations, on the bundled digits network.

    .venv/bin/python benchmarks/image_perturbations.py [--images 60] [--pieces 8] [--folder FOLDER]

For each perturbation, strength and method: the share of test images whose class is proved for every perturbed version.
In pieces, the range of the first setting is cut, and each piece is proved. The dashed line is no proof but its limit:
the share without a wrong answer among 200 truly perturbed versions. Writes accuracy.png, extremes.png, accuracy.csv and
summary.md. Takes about a minute on one core.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from zonoplug.domain.image_blur import GaussianBlur, MotionBlur
from zonoplug.domain.image_perturbations import (
    DeadLines,
    DeadPixels,
    ImagePerturbation,
    OneSetting,
    SensorNoise,
    Sum,
)
from zonoplug.domain.image_tone import Brightness, Contrast
from zonoplug.examples import digits_conv_model
from zonoplug.io.onnx_model import load_model
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, bound_set, build
from zonoplug.report.plots import Panel, draw_accuracy, draw_extremes
from zonoplug.report.tables import markdown_table

FOLDER = Path(__file__).resolve().parent / "results" / "image_perturbations"
METHODS = ("ibp", "zonotope", "zonotope+crown")
SAMPLES = 200
SAMPLED = f"no failure in {SAMPLES} samples"
THRESHOLD = 0.8
TRAINING_SEED = 7  # of train_digits.py, whose test images these are
PIXELS = [(int(place) // 8, int(place) % 8) for place in torch.randperm(64, generator=torch.Generator().manual_seed(1))]
LINES = (1, 6, 3, 4)


@dataclass(frozen=True)
class Family:
    """A perturbation at growing strength.

    Attributes:
        unit: what the strength means.
        strengths: beside 0.
        shown, caption: the strength of the picture, and how it is written there.
    """

    title: str
    unit: str
    make: Callable[[float], ImagePerturbation]
    strengths: tuple[float, ...]
    shown: float
    caption: str


def dead_pixels(count: float) -> DeadPixels:
    return DeadPixels(tuple(PIXELS[: int(count)]))


def dead_lines(columns: bool) -> Callable[[float], DeadLines]:
    return lambda count: DeadLines(LINES[: int(count)], columns)


def blur_and_noise(strength: float) -> Sum:
    return Sum((GaussianBlur(strength), SensorNoise(0.02)))


FAMILIES = [
    Family(
        "brightness",
        "largest shift (range of values: 1)",
        Brightness,
        (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35),
        0.2,
        "shift up to {:g}",
    ),
    Family(
        "contrast",
        "largest relative change",
        Contrast,
        (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        0.4,
        "change up to {:.0%}",
    ),
    Family(
        "sensor noise",
        "largest change of a pixel (range of values: 1)",
        SensorNoise,
        (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08),
        0.05,
        "up to {:g} per pixel",
    ),
    Family(
        "gaussian blur",
        "largest σ (pixels)",
        GaussianBlur,
        (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2),
        0.8,
        "σ up to {:g} pixels",
    ),
    Family(
        "motion blur at 30°",
        "greatest length (pixels)",
        lambda strength: MotionBlur(strength, 30.0),
        (0.5, 1, 2, 2.5, 3, 3.5, 4, 5),
        3.0,
        "up to {:g} pixels",
    ),
    Family(
        "gaussian blur + noise of 0.02",
        "largest σ (pixels)",
        blur_and_noise,
        (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0),
        0.6,
        "σ up to {:g} pixels",
    ),
    Family("dead pixels", "number of pixels", dead_pixels, (1, 2, 3, 4, 5, 6, 8), 4, "{} pixels"),
    Family("dead rows", "number of rows", dead_lines(False), (1, 2, 3, 4), 2, "{} rows"),
    Family("dead columns", "number of columns", dead_lines(True), (1, 2, 3, 4), 2, "{} columns"),
]


def pieces_of(perturbation: ImagePerturbation, count: int) -> list[ImagePerturbation] | None:
    """Perturbations that cover this one, cut along the setting of its first part; None if it has none."""
    if isinstance(perturbation, OneSetting):
        return list(perturbation.split(count))
    if isinstance(perturbation, Sum) and isinstance(perturbation.parts[0], OneSetting):
        first, *rest = perturbation.parts
        return [replace(perturbation, parts=(piece, *rest)) for piece in first.split(count)]
    return None


def certified(
    host: ZonotopeModule, perturbation: ImagePerturbation, images: Tensor, rows: Tensor, method: str
) -> Tensor:
    """Whether all margins are proved above 0, for each image."""
    bounds, _ = bound_set(host, perturbation.input_set(images), BoundMethod.parse(method), rows)
    return (bounds.lower > 0).all(dim=1)


def test_images(count: int) -> tuple[Tensor, Tensor]:
    """The first of the images that the network was not trained on, (count, 1, 8, 8), and their classes."""
    images, labels = load_digits(return_X_y=True)
    _, kept, _, classes = train_test_split(images, labels, test_size=0.25, random_state=TRAINING_SEED, stratify=labels)
    return torch.tensor(kept[:count] / 16).float().reshape(-1, 1, 8, 8), torch.tensor(classes[:count])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--pieces", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = test_images(options.images)
    module = load_model(digits_conv_model()).module
    host = build(module, images[:1])
    identity = torch.eye(10)
    rivals = torch.stack([identity[torch.arange(10) != label] for label in labels])
    rows = identity[labels].unsqueeze(1) - rivals
    in_pieces = f"zonotope+crown, {options.pieces} pieces"
    table: list[dict[str, str | float]] = []
    panels = []
    for family in FAMILIES:
        shares: dict[str, list[float]] = {}
        strengths = (0.0, *family.strengths)
        for strength in strengths:
            perturbation = family.make(strength)
            jobs = {method: [perturbation] for method in METHODS}
            pieces = pieces_of(perturbation, options.pieces)
            if pieces is not None:
                jobs[in_pieces] = pieces
            for label, parts in jobs.items():
                method = label.split(",")[0]
                start = time.perf_counter()
                proved = torch.stack([certified(host, part, images, rows, method) for part in parts]).all(dim=0)
                seconds = time.perf_counter() - start
                shares.setdefault(label, []).append(float(proved.float().mean()))
                table.append(_row(family, strength, label, shares[label][-1], seconds))
            with torch.no_grad():
                start = time.perf_counter()
                samples = perturbation.sample(images, SAMPLES, torch.Generator().manual_seed(0))
                right = module(samples.flatten(0, 1)).argmax(dim=1).reshape(SAMPLES, -1) == labels
            shares.setdefault(SAMPLED, []).append(float(right.all(dim=0).float().mean()))
            table.append(_row(family, strength, SAMPLED, shares[SAMPLED][-1], time.perf_counter() - start))
        panels.append(Panel(family.title, family.unit, strengths, shares, SAMPLED))
        print(family.title, {label: [f"{share:.2f}" for share in values] for label, values in shares.items()})
    options.folder.mkdir(parents=True, exist_ok=True)
    with (options.folder / "accuracy.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    (options.folder / "summary.md").write_text(_summary(panels, in_pieces, len(images)))
    draw_accuracy(panels, options.folder / "accuracy.png", f"certified share of {len(images)} test images")
    shown = {
        f"{family.title}:\n{family.caption.format(family.shown)}": family.make(family.shown) for family in FAMILIES
    }
    draw_extremes(images[int((labels == 3).nonzero()[0])], shown, options.folder / "extremes.png")


def _row(family: Family, strength: float, label: str, share: float, seconds: float) -> dict[str, str | float]:
    return {
        "perturbation": family.title,
        "unit": family.unit,
        "strength": strength,
        "method": label,
        "share": round(share, 4),
        "seconds": round(seconds, 3),
    }


def _summary(panels: list[Panel], in_pieces: str, count: int) -> str:
    """The largest strength at which enough is certified, up to the first where it is not."""
    labels = [*METHODS, in_pieces, SAMPLED]
    lines = []
    for panel in panels:
        cells = []
        for label in labels:
            if label not in panel.shares:
                cells.append("-")
                continue
            reached = 0.0
            for strength, share in zip(panel.strengths, panel.shares[label], strict=True):
                if share < THRESHOLD:
                    break
                reached = strength
            end = "≥ " if reached == panel.strengths[-1] else ""
            cells.append(f"{end}{reached:g}" if reached else f"< {panel.strengths[1]:g}")
        lines.append((panel.title, panel.unit, *cells))
    title = (
        f"Largest tried strength at which at least {THRESHOLD:.0%} of {count} digits are certified, and where samples"
    )
    table = markdown_table(("perturbation", "strength is", *labels), lines)
    return f"{title} find the limit:\n\n{table}\n"


if __name__ == "__main__":
    main()
