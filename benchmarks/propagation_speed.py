"""What propagating a zonotope costs: against bare forward passes, the host's forward methods, and a memory limit.

    python benchmarks/propagation_speed.py [--repeats 7] [--quick]

Run it with ZONOPLUG_LIRPA at a folder with auto_LiRPA 0.7.1 to have its `dynamic-forward` in the tables. Results go to
benchmarks/results/propagation_speed-HOST.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from measuring import (
    convolutional,
    fully_connected,
    host,
    median_seconds,
    peak_bytes,
    perturbed_corner,
    report,
    write,
)  # fmt: skip
from torch import Tensor, nn

from zonoplug.domain.input_sets import Box
from zonoplug.lirpa.compat import HOST_VERSION
from zonoplug.lirpa.forward.propagation import Propagation
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule, build, forward_propagation
from zonoplug.lirpa.perturbations import bounded_input

ZONOTOPE = BoundMethod.parse("zonotope")
FEW = 30  # perturbed coordinates of the smallest boxes, which end in about 50 symbols
Case = tuple[str, nn.Module, Tensor, Box]


def cases(quick: bool) -> list[Case]:
    """Networks and boxes, from about 50 to 3,000 symbols."""
    plans = [
        ("fc 784-256x4", fully_connected(784, 256, 4), (784,), [(FEW, 0.02), (784, 0.002), (784, 0.02)]),
        ("fc 784-1024x3", fully_connected(784, 1024, 3), (784,), [(FEW, 0.02), (784, 0.01)]),
        ("conv 8ch x2, 12x12", convolutional(8, 12, 2), (3, 12, 12), [(FEW, 0.02), (432, 0.02)]),
        ("conv 16ch x3, 16x16", convolutional(16, 16, 3), (3, 16, 16), [(FEW, 0.02), (768, 0.002), (768, 0.01)]),
        ("conv 32ch x3, 16x16", convolutional(32, 16, 3), (3, 16, 16), [(FEW, 0.01), (768, 0.005)]),
    ]
    found = []
    for name, network, shape, boxes in plans[: 1 if quick else None]:
        point = torch.rand(1, *shape)
        found += [(name, network, point, perturbed_corner(point, count, radius)) for count, radius in boxes]
    return found


def perturbed(case: Case) -> int:
    """How many coordinates of a case's box have room."""
    return int((case[3].upper > case[3].lower).sum())


def walker(module: ZonotopeModule, box: Box, limit_bytes: int | None = None) -> Callable[[], Propagation]:
    return lambda: forward_propagation(module, [box], ZONOTOPE, limit_bytes=limit_bytes)


def against_bare(found: list[Case], repeats: int, batch: int = 1) -> list[list[str]]:
    """A batch of equal boxes, against batch times k + 1 inputs."""
    rows = []
    for name, network, point, single in found:
        module = build(network, point)
        box = Box(*(side.expand(batch, *side.shape[1:]) for side in (single.lower, single.upper)))
        count = forward_propagation(module, [box], ZONOTOPE).output.num_symbols
        points = torch.rand(batch * (count + 1), *point.shape[1:])
        sides = {"walk": walker(module, box), "bare": lambda net=network, x=points: net(x)}
        seconds = median_seconds(sides, repeats)
        memory = [peak_bytes(side) / 2**20 for side in sides.values()]
        cells = [f"{1000 * value:.2f}" for value in seconds.values()]
        ratio = f"{seconds['propagation'] / seconds['bare']:.2f}"
        rows.append([name, str(batch), str(count), *cells, ratio, *(f"{value:.1f}" for value in memory)])
        print(" | ".join(rows[-1]), flush=True)
    return rows


def against_host(found: list[Case], repeats: int, method: str) -> list[list[str]]:
    rows = []
    for name, network, point, box in found:
        module, other = build(network, point), build(network, point)
        value = bounded_input(box)

        def run(other: ZonotopeModule = other, value: Tensor = value) -> tuple[Tensor, Tensor]:
            bounds: tuple[Tensor, Tensor] = other.compute_bounds((value,), method=method)
            return bounds

        ours, theirs = forward_propagation(module, [box], ZONOTOPE), run()
        sides = {"ours": walker(module, box), "theirs": run}
        seconds = median_seconds(sides, repeats)
        memory = [peak_bytes(side) / 2**20 for side in sides.values()]
        widths = [float((high - low).mean()) for low, high in (ours.bounds, theirs)]
        rows.append(
            [
                name,
                str(ours.output.num_symbols),
                *(f"{1000 * s:.1f}" for s in seconds.values()),
                f"{seconds['ours'] / seconds['theirs']:.2f}",
                *(f"{value:.1f}" for value in memory),
                *(f"{width:.4g}" for width in widths),
                f"{difference(ours, theirs, other):.1e}",
            ]
        )
        print(" | ".join(rows[-1]), flush=True)
    return rows


def difference(ours: Propagation, theirs: tuple[Tensor, Tensor], module: ZonotopeModule) -> float:
    """The largest difference of the two sides' bounds, over all ReLUs' inputs and the outputs, relative to the layer's
    largest bound."""
    pairs = [(ours.bounds, theirs)]
    pairs += [(hull, (module[name].lower, module[name].upper)) for name, hull in ours.preactivations.items()]
    worst = 0.0
    for mine, other in pairs:
        if other[0] is not None:
            scale = max(float(side.abs().max()) for side in mine)
            worst = max(worst, *(float((a - b).abs().max()) / scale for a, b in zip(mine, other, strict=True)))
    return worst


def streaming(quick: bool, repeats: int) -> list[list[str]]:
    size, channels, inputs = (12, 8, 432) if quick else (24, 16, 1728)
    networks = [("conv", convolutional(channels, size, 3), (3, size, size), inputs, 0.01)]
    networks.append(("fc 784-1024x4", fully_connected(784, 256 if quick else 1024, 4), (784,), 784, 0.02))
    rows = []
    for name, network, shape, count, radius in networks:
        point = torch.rand(1, *shape)
        module, box = build(network, point), perturbed_corner(point, count, radius)
        plain = forward_propagation(module, [box], ZONOTOPE)
        needed = peak_bytes(walker(module, box))
        limits = [None, needed // 2, needed // 4, needed // 16]
        sides = {str(limit): walker(module, box, limit) for limit in limits}
        seconds = median_seconds(sides, repeats)
        for limit in limits:
            result = forward_propagation(module, [box], ZONOTOPE, limit_bytes=limit)
            changes = [
                float((a - b).abs().max() / b.abs().max())
                for mine, other in [
                    (result.bounds, plain.bounds),
                    *zip(result.preactivations.values(), plain.preactivations.values(), strict=True),
                ]
                for a, b in zip(mine, other, strict=True)
            ]
            rows.append(
                [
                    name,
                    str(plain.output.num_symbols),
                    "none" if limit is None else f"{limit / 2**20:.1f}",
                    f"{peak_bytes(sides[str(limit)]) / 2**20:.1f}",
                    f"{1000 * seconds[str(limit)]:.0f}",
                    f"{seconds[str(limit)] / seconds['None']:.2f}",
                    f"{max(changes):.1e}",
                ]
            )
            print(" | ".join(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="one small network, to see that it runs")
    options = parser.parse_args()
    torch.manual_seed(0)
    with torch.no_grad():
        found = cases(options.quick)
        head = ["network", "symbols"]
        sections = {
            "Bare forward": (
                "Propagating k symbols for each box of a batch, against the same network's plain forward pass on"
                " batch times k + 1 inputs. A single box with few symbols shows the fixed cost of a call.",
                [head[0], "batch", head[1], "propagation ms", "bare ms", "ratio", "propagation MiB", "bare MiB"],
                against_bare(found, options.repeats)
                + against_bare([case for case in found if perturbed(case) == FEW], options.repeats, batch=32),
            )
        }
        sides = ["ours ms", "host ms", "ratio", "ours MiB", "host MiB", "our width", "host width"]
        methods = ["forward"] if HOST_VERSION == "0.3" else ["dynamic-forward", "forward"]
        for method in methods:
            sections[f"`{method}` of {host()}"] = (
                "Bounds of the same box; width is the mean of the outputs'. The last column is the largest relative"
                " difference of pre-activation bounds and bounds.",
                [*head, *sides, "difference"],
                against_host(found, options.repeats, method),
            )
        sections["Limited memory"] = (
            "The same propagation under `limit_bytes`. Peak counts all tensors alive, beyond the network's.",
            [*head, "limit MiB", "peak MiB", "ms", "ratio", "difference"],
            streaming(options.quick, max(1, options.repeats // 2)),
        )
    text = report(f"Cost of propagation, beside {host()}", "python benchmarks/propagation_speed.py", sections)
    write("propagation_speed-quick" if options.quick else f"propagation_speed-{HOST_VERSION}", text)


if __name__ == "__main__":
    main()
