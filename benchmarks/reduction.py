"""Every reduction at several budgets, on every network at hand, against the other bound methods: proofs, margins, cost.

    python benchmarks/reduction.py [--only TEXT] [--budgets 50,25,75,12] [--out FOLDER] [--minutes 10]
    python benchmarks/reduction.py --large        # a network whose exact zonotope needs more than 24 GB
    python benchmarks/reduction.py --draw FOLDER  # tables and plots again, from the results in a folder

For each network and radius the exact zonotope tells how many symbols there are without reduction; a budget is a share
of that number, kept after every operator that introduces symbols. All methods bound the same images one by one, in one
process with one thread; a first call warms up. Results go to FOLDER/measurements.csv as they come.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from image_networks import Example, Subject, subjects
from model_support import ROOT
from reduction_figures import draw_all, write_tables

BASELINES = ("ibp", "crown-ibp", "crown", "forward", "zonotope")
FIRST = (  # measured before the others, in case the minutes do not last
    "girard l1 combastel random sensitivity gap margin lazy promote lowrank cluster collinear budget box".split()
)
OUT = ROOT / "benchmarks" / "results" / "reduction"
LONGEST_CALL = 60.0


@dataclass(frozen=True, slots=True)
class Measurement:
    """One method on all images of a network at one radius.

    Attributes:
        subject, epsilon, method, reduction: what was measured; reduction is "" for the other methods.
        share: the budget in per cent of the unreduced symbols, 0 where there is none.
        symbols: the most symbols of the output, over the images; 0 for methods of the host.
        images, proved: how many were bounded, and how many of them have every margin above 0.
        margin: mean over images of the smallest margin's lower bound.
        width: mean width of the margins' bounds, where both are known; else NaN.
        seconds: median for an image.
        megabytes: the most that a call needed beyond the loaded process.
        remark: why something is missing.
    """

    subject: str
    epsilon: float
    method: str
    reduction: str
    share: int
    symbols: int
    images: int
    proved: int
    margin: float
    width: float
    seconds: float
    megabytes: float
    remark: str = ""


class Bench:
    """One network at one radius: bounds its images by any method."""

    def __init__(self, subject: Subject, example: Example, module: object, epsilon: float) -> None:
        self.subject, self.example, self.module, self.epsilon = subject, example, module, epsilon
        self.count = min(subject.count, len(example.images))
        self.symbols: list[int] = []  # of the exact zonotope, by image

    def measure(self, method: str, reduction: str = "", share: int = 0) -> Measurement:
        """Bound every image by `method`, in which "#" stands for the budget; stops at the first failure."""
        from zonoplug.report.memory import peak_resident_bytes

        margins, widths, seconds, symbols, peak, remark = [], [], [], [0], 0, ""
        self._bound(method, 0, share)
        for image in range(self.count):
            before = peak_resident_bytes(reset=True)
            started = time.perf_counter()
            try:
                lower, upper, named = self._bound(method, image, share)
            except (Exception, MemoryError) as error:
                remark = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
                break
            seconds.append(time.perf_counter() - started)
            peak = max(peak, peak_resident_bytes() - before)
            margins.append(float(lower.min().nan_to_num(nan=-math.inf)))
            widths.append(float((upper - lower).mean()))
            symbols.append(named)
            if method == "zonotope":
                self.symbols.append(named)
            if seconds[-1] > LONGEST_CALL:
                remark = f"stopped after an image that took {seconds[-1]:.0f} s"
                break
        finite = [width for width in widths if math.isfinite(width)]
        return Measurement(
            self.subject.name,
            self.epsilon,
            method,
            reduction,
            share,
            max(symbols),
            len(margins),
            sum(margin > 0 for margin in margins),
            statistics.fmean(margins) if margins else math.nan,
            statistics.fmean(finite) if finite else math.nan,
            statistics.median(seconds) if seconds else math.nan,
            peak / 1e6,
            remark,
        )

    def _bound(self, method: str, image: int, share: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        from zonoplug.domain.input_sets import Box
        from zonoplug.lirpa.methods import BoundMethod
        from zonoplug.lirpa.module import bound_set

        budget = max(1, self.symbols[image] * share // 100) if share else 0
        parsed = BoundMethod.parse(method.replace("#", str(budget)))
        rows = self.example.rows(image)
        both = rows if parsed.zonotope else torch.cat([rows, -rows], dim=1)
        bounds, propagation = bound_set(self.module, Box(*self.example.box(image, self.epsilon)), parsed, both)  # type: ignore[arg-type]
        if propagation is None:
            lower, opposite = bounds.lower.split(rows.shape[1], dim=1)
            return lower, -opposite, 0
        return bounds.lower, bounds.upper, propagation.output.num_symbols


def measurements(subject: Subject, budgets: list[int], minutes: float) -> Iterator[Measurement]:
    """All methods at all radii of one network, as they come; each radius has its part of the minutes for reductions."""
    from zonoplug.lirpa.module import build
    from zonoplug.reduction import REDUCTIONS

    example = subject.load()
    module = build(example.module, example.images[:1])
    large = example.images[0].numel() > 1024  # there methods with n x n frames take minutes a call
    names = [*FIRST, *([] if large else sorted(set(REDUCTIONS.names()) - {"exact", *FIRST}))]
    for epsilon in subject.epsilons:
        bench = Bench(subject, example, module, epsilon)
        for method in BASELINES[::-1]:
            yield _guarded(bench, method)
        bench.count = min(bench.count, len(bench.symbols))
        stop = time.monotonic() + 60 * minutes / len(subject.epsilons)
        for share in budgets:
            for name in names:
                if time.monotonic() < stop:
                    yield _guarded(bench, f"zonotope[{name},#]", name, share)


def _guarded(bench: Bench, method: str, reduction: str = "", share: int = 0) -> Measurement:
    try:
        return bench.measure(method, reduction, share)
    except (Exception, MemoryError) as error:  # the warming call failed: the row says why
        text = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        nothing = (math.nan,) * 4
        return Measurement(bench.subject.name, bench.epsilon, method, reduction, share, 0, 0, 0, *nothing, text)


def large(limit: str = "2GB") -> None:
    """Bound a network whose exact zonotope needs more than 24 GB within a limit of bytes."""
    from zonoplug.domain.input_sets import Box
    from zonoplug.lirpa.methods import BoundMethod
    from zonoplug.lirpa.module import bound_set, build
    from zonoplug.report.memory import peak_resident_bytes

    torch.manual_seed(0)
    layers: list[torch.nn.Module] = [torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU()]
    for _ in range(3):
        layers += [torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.ReLU()]
    module = torch.nn.Sequential(*layers, torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(1024, 10)).eval()
    x = torch.rand(1, 3, 64, 64)
    graph = build(module, x)
    box = Box((x - 0.05).clamp(0, 1), (x + 0.05).clamp(0, 1))
    preactivations = bound_set(graph, box, BoundMethod.parse("ibp"))[0]
    method = BoundMethod.parse(f"zonotope[girard,{limit}]")
    before, started = peak_resident_bytes(reset=True), time.perf_counter()
    bounds, propagation = bound_set(graph, box, method)
    seconds, used = time.perf_counter() - started, peak_resident_bytes() - before
    assert propagation is not None
    introduced = sum(origin.count for origin in propagation.symbols.origins)
    exact = introduced * 65_536 * 4
    print(
        f"{introduced} symbols were introduced; on one layer of 65,536 neurons they would take {exact / 2**30:.0f} GB."
    )
    print(f"{method}: {seconds:.1f} s, {used / 2**30:.2f} GB beyond the loaded process,")
    widths = [float((side.upper - side.lower).mean()) for side in (bounds, preactivations)]
    print(f"mean width {widths[0]:.4g} (intervals: {widths[1]:.4g}).")
    outputs = module(box.lower + (box.upper - box.lower) * torch.rand(200, 3, 64, 64))
    inside = bool(((outputs >= bounds.lower) & (outputs <= bounds.upper)).all())
    print(f"200 sampled points inside: {inside}")
    raise SystemExit(0 if inside and exact > 24 * 2**30 else 1)


def _line(one: Measurement) -> str:
    cost = f"{one.seconds:8.3f} s {one.megabytes:7.0f} MB"
    what = f"{one.subject:18} {one.epsilon:<6g} {one.method:26} {one.share:3}%"
    return f"{what} {one.proved}/{one.images} margin {one.margin:9.4g} {cost} {one.remark}"


def read(path: Path) -> list[Measurement]:
    """What `main` wrote."""
    kinds = {field.name: field.type for field in fields(Measurement)}
    convert = {"str": str, "int": int, "float": float}
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    return [Measurement(**{name: convert[str(kinds[name])](text) for name, text in row.items()}) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="networks whose name contains this text")
    parser.add_argument("--budgets", default="50,25,75,12", help="per cent of the unreduced symbols")
    parser.add_argument("--minutes", type=float, default=10, help="for each network; then budgets are left out")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the results")
    parser.add_argument("--large", action="store_true", help="bound a network too large for an exact zonotope")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="tables and plots of earlier results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.large:
        large()
    folder = arguments.draw or arguments.out
    table = folder / "measurements.csv"
    if arguments.draw is None:
        folder.mkdir(parents=True, exist_ok=True)
        chosen = [subject for subject in subjects() if arguments.only in subject.name]
        if not chosen:
            raise SystemExit(f"No network is called {arguments.only!r}. At hand: {[s.name for s in subjects()]}")
        done = [m for m in read(table) if all(m.subject != s.name for s in chosen)] if table.is_file() else []
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, [field.name for field in fields(Measurement)])
            writer.writeheader()
            writer.writerows(asdict(one) for one in done)
            for subject in chosen:
                for one in measurements(
                    subject, [int(text) for text in arguments.budgets.split(",")], arguments.minutes
                ):
                    writer.writerow(asdict(one))
                    file.flush()
                    print(_line(one), file=sys.stderr)
    write_tables(read(table), folder)
    draw_all(read(table), folder)


if __name__ == "__main__":
    main()
