"""How many subdomains a second a branch and bound can bound, and what one call costs however small it is.

    python benchmarks/throughput.py [--repeats 7] [--model M.onnx --specification S.vnnlib]

By default on an ACAS Xu network of ../shared/vnncomp, or the bundled digits network where there is none. Results go to
benchmarks/results/throughput.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from measuring import fully_connected, host, median_seconds, report, write

from zonoplug.domain.input_sets import Box
from zonoplug.examples import digits_holds, digits_model
from zonoplug.io.onnx_model import load_model
from zonoplug.io.vnnlib import read_specification
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import bound_set, build, forward_propagation

PACK = Path(__file__).resolve().parent.parent.parent / "shared" / "vnncomp" / "acasxu"
METHODS = ("zonotope", "zonotope+crown")
BATCHES = (1, 10, 100, 1000, 10_000)


def default_instance() -> tuple[Path, Path]:
    models = sorted((PACK / "onnx").glob("*1_1*.onnx*"))
    specifications = sorted((PACK / "vnnlib").glob("prop_1.vnnlib*"))
    return (models[0], specifications[0]) if models and specifications else (digits_model(), digits_holds())


def subdomains(lower: torch.Tensor, upper: torch.Tensor, count: int) -> Box:
    """`count` boxes of a quarter of the width in each coordinate, placed at random in one box (1, *shape)."""
    width = (upper - lower) / 4
    low = lower + torch.rand(count, *lower.shape[1:]) * (upper - lower - width)
    return Box(low, low + width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    model_path, specification_path = default_instance()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--model", type=Path, default=model_path)
    parser.add_argument("--specification", type=Path, default=specification_path)
    options = parser.parse_args()
    torch.manual_seed(0)
    model, specification = load_model(options.model), read_specification(options.specification)
    lower, upper = (
        torch.as_tensor(side[0], dtype=model.dtype).reshape(1, *model.input_shape)
        for side in (specification.lower, specification.upper)
    )
    rows: list[list[str]] = []
    with torch.no_grad():
        module = build(model.module, lower)
        for batch in BATCHES:
            boxes = subdomains(lower, upper, batch)
            points = (boxes.lower + boxes.upper) / 2
            sides = {m: lambda m=m, b=boxes: bound_set(module, b, BoundMethod.parse(m)) for m in METHODS}
            sides["bare forward"] = lambda x=points: model.module(x)
            repeats = options.repeats if batch < BATCHES[-1] else max(1, options.repeats // 3)
            seconds = median_seconds(sides, repeats)
            cells = (f"{1000 * seconds[m]:.2f} | {batch / seconds[m]:.0f}".split(" | ") for m in METHODS)
            rows.append([str(batch), *(cell for pair in cells for cell in pair)])
            rows[-1].append(f"{1000 * seconds['bare forward']:.2f}")
            print(" | ".join(rows[-1]), flush=True)
        small, point = fully_connected(5, 50, 6), torch.rand(1, 5)
        tiny, box = build(small, point), Box.ball(point, 0.01)
        overhead = median_seconds(
            {"walk": lambda: forward_propagation(tiny, [box], BoundMethod.parse("zonotope"))}, 50
        )["walk"]
    sections = {
        "Subdomains per second": (
            f"Boxes of a quarter of the input set's width, on {options.model.name}; {host()}.",
            ["batch", "zonotope ms", "zonotope /s", "zonotope+crown ms", "zonotope+crown /s", "bare forward ms"],
            rows,
        ),
        "One small call": (
            "A propagation over six layers of 50 neurons whose inputs hardly move: what is left is overhead.",
            ["ms"],
            [[f"{1000 * overhead:.2f}"]],
        ),
    }
    write("throughput", report("Throughput for branch and bound", "python benchmarks/throughput.py", sections))


if __name__ == "__main__":
    main()
