"""What covering rounding errors costs: propagations with rounding="outward" and "inference" against "nearest".

    python benchmarks/rounding_cost.py [--repeats 9]

Results go to benchmarks/results/rounding_cost.md.
"""

from __future__ import annotations

import argparse

import torch
from measuring import convolutional, fully_connected, median_seconds, perturbed_corner, report, write

from zonoplug.domain.rounding import ROUNDINGS
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import build, forward_propagation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    method = BoundMethod.parse("zonotope")
    networks = [
        ("fc 784-256x4", fully_connected(784, 256, 4), (784,), 784, 0.02),
        ("fc 784-1024x3", fully_connected(784, 1024, 3), (784,), 784, 0.01),
        ("conv 16ch x3, 16x16", convolutional(16, 16, 3), (3, 16, 16), 768, 0.01),
        ("conv 32ch x3, 16x16", convolutional(32, 16, 3), (3, 16, 16), 768, 0.005),
    ]
    rows = []
    with torch.no_grad():
        for name, network, shape, count, radius in networks:
            point = torch.rand(1, *shape)
            module, box = build(network, point), perturbed_corner(point, count, radius)
            sides = {
                mode: lambda mode=mode, m=module, b=box: forward_propagation(m, [b], method, rounding=mode)
                for mode in ROUNDINGS
            }
            results = {mode: side() for mode, side in sides.items()}
            widths = [float((r.bounds.upper - r.bounds.lower).mean()) for r in results.values()]
            seconds = median_seconds(sides, options.repeats)
            rows.append(
                [
                    name,
                    str(results["nearest"].output.num_symbols),
                    *(f"{1000 * value:.1f}" for value in seconds.values()),
                    *(f"{seconds[mode] / seconds['nearest']:.2f}" for mode in ROUNDINGS[1:]),
                    *(f"{width / widths[0] - 1:.1e}" for width in widths[1:]),
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    times = [f"{mode} ms" for mode in ROUNDINGS]
    ratios = [f"{mode} / nearest" for mode in ROUNDINGS[1:]]
    wider = [f"{mode} is wider by" for mode in ROUNDINGS[1:]]
    sections = {
        "Walks": (
            "The same box and network under each setting; width is the mean of the outputs', relative to nearest.",
            ["network", "symbols", *times, *ratios, *wider],
            rows,
        )
    }
    write("rounding_cost", report("Cost of covering rounding", "python benchmarks/rounding_cost.py", sections))


if __name__ == "__main__":
    main()
