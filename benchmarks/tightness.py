"""How many properties of mnist_fc each bound method proves without splitting, by how much, and in what time.

    python benchmarks/tightness.py [PACK] [--models 256x2 256x4] [--methods NAME ...] [--markdown FILE]

PACK (or ZONOPLUG_VNNCOMP, or ../shared/vnncomp) holds mnist_fc/onnx and mnist_fc/vnnlib. There are 15 images; where
the file with radius 0.03 is missing, its box is made from that with radius 0.05. The margin of a property is the least
lower bound of  y_label - y_j  over the other labels j: above 0 the property is proved. All properties are bounded in
one batch; alpha methods take 40 steps.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RADIUS, OTHER_RADIUS, IMAGES = 0.03, 0.05, 15
METHODS = (
    "ibp",
    "zonotope",
    "alpha-zonotope",
    "crown",
    "alpha-crown",
    "zonotope+crown",
    "zonotope+alpha-crown",
    "zonotope+full-crown",
    "zonotope+full-alpha-crown",
    "alpha-zonotope+crown",
    "alpha-zonotope+full-crown",
)
HEADER = """# Tightness without splitting

Made by `benchmarks/tightness.py --markdown FILE` on {machine}, auto_LiRPA {version}, one thread.
mnist_fc, radius {radius}, {count} properties in one batch. *Proved*: properties whose margin, the least lower bound of
y_label - y_j, is above 0. Other work on the machine makes seconds upper limits.

"""
COLUMNS = ("network", "method", "proved", "mean margin", "seconds")


class Row(NamedTuple):
    """One method on one network: margins (properties,) and the time that all of them took."""

    network: str
    method: str
    margins: Any
    seconds: float

    def cells(self) -> tuple[str, ...]:
        proved = int((self.margins > 0).sum())
        return (self.network, self.method, str(proved), f"{float(self.margins.mean()):.3f}", f"{self.seconds:.1f}")


def default_pack() -> Path:
    return Path(os.environ.get("ZONOPLUG_VNNCOMP") or ROOT.parent / "shared" / "vnncomp")


def properties(pack: Path, model: Any) -> tuple[Any, Any]:
    """The boxes (15, *shape) and the rows y_label - y_j, (15, 9, 10)."""
    import torch

    from zonoplug.domain.input_sets import Box
    from zonoplug.io.vnnlib import read_specification
    from zonoplug.verify.problem.problem import Problem

    lower, upper, rows = [], [], []
    for image in range(IMAGES):
        name = f"prop_{image}_{{}}.vnnlib.gz"
        exact = pack / "mnist_fc" / "vnnlib" / name.format(RADIUS)
        path = exact if exact.is_file() else exact.with_name(name.format(OTHER_RADIUS))
        problem = Problem(read_specification(path), model, torch.device("cpu"))
        low, high = problem.box.lower, problem.box.upper
        if path != exact:  # one end of each interval is not clipped to [0, 1]
            pixel = torch.where(high < 1, high - OTHER_RADIUS, low + OTHER_RADIUS)
            low, high = (pixel - RADIUS).clamp(0, 1), (pixel + RADIUS).clamp(0, 1)
        lower.append(low)
        upper.append(high)
        rows.append(problem.objective.coefficients)
    return Box(torch.cat(lower), torch.cat(upper)), torch.cat(rows)


def measure(pack: Path, network: str, methods: list[str]) -> list[Row]:
    """One row for each method."""
    import torch

    from zonoplug.io.onnx_model import load_model
    from zonoplug.lirpa.methods import BoundMethod
    from zonoplug.lirpa.module import bound_set, build

    model = load_model(pack / "mnist_fc" / "onnx" / f"mnist-net_{network}.onnx.gz")
    box, coefficients = properties(pack, model)
    host = build(model.module, box.lower[:1])
    result = []
    for name in methods:
        method = BoundMethod.parse(name)
        start = time.perf_counter()
        with torch.set_grad_enabled("alpha" in name):
            bounds, _ = bound_set(host, box, method, coefficients, goal=torch.zeros(1, coefficients.shape[1]))
        seconds = time.perf_counter() - start
        result.append(Row(network, name, bounds.lower.detach().amin(dim=1), seconds))
        print("  ".join(result[-1].cells()), flush=True)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pack", nargs="?", type=Path, default=default_pack())
    parser.add_argument("--models", nargs="+", default=["256x2", "256x4"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--markdown", type=Path)
    arguments = parser.parse_args()
    if not (arguments.pack / "mnist_fc").is_dir():
        print(f"Skipped: {arguments.pack} holds no folder mnist_fc.")
        return 0
    import torch

    from zonoplug.lirpa.compat import HOST_VERSION
    from zonoplug.report.tables import markdown_table

    torch.set_num_threads(1)
    rows = [row for network in arguments.models for row in measure(arguments.pack, network, arguments.methods)]
    if arguments.markdown:
        header = HEADER.format(
            machine=platform.processor() or platform.machine(), version=HOST_VERSION, radius=RADIUS, count=IMAGES
        )
        arguments.markdown.write_text(header + markdown_table(COLUMNS, [row.cells() for row in rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
