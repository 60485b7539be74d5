"""Neuron merging: neurons kept against proofs, margins and seconds.

    python benchmarks/neuron_merging.py [PACK] [--markdown FILE] [--only TEXT]

Networks: a sigmoid, a tanh and a wide ReLU network trained here on scikit-learn's digits (which come with it), and,
where PACK (or ZONOPLUG_VNNCOMP, or ../shared/vnncomp) has it, mnist_fc with 2, 4 and 6 hidden layers. All runs are on
one thread.
"""

from __future__ import annotations

import argparse
import csv
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zonoplug.domain.input_sets import Box
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import bound_box, build
from zonoplug.lirpa.network_reduction import chain_of, propagate_merged
from zonoplug.reduction.network_reduction import InputCompression, reduce_network
from zonoplug.reduction.neuron_merging import NeuronMerging
from zonoplug.reduction.reduced_network import ReducedNetwork
from zonoplug.verify.settings import Settings, load_problem

ROOT = Path(__file__).resolve().parent.parent
RATES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
LOOP = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
IMAGES = 20
MNIST_FC = [(layers, radius, shrink) for layers in (2, 4, 6) for radius, shrink in ((0.05, 1), (0.03, 1), (0.03, 3))]
COLUMNS = ("what is bounded", "neurons kept", "proofs", "mean margin", "symbols", "ms")
HEADER = """# Neuron merging

Made by `benchmarks/neuron_merging.py --markdown FILE`, on one thread; times are means of one instance and hold side by
side, in one table. *rate r, static* or *dynamic*: a zonotope through the network reduced to at most a share r of each
layer's neurons, written out as smaller matrices, which is timed with it. *tolerance t*: neurons within t. *box*: what
merged neurons leave behind stays in the box, without symbols. *propagation*: the same merging inside the propagation
over the graph. *CROWN* is the host's; *CROWN, reduced* runs it on the reduced network with its interval biases as
further inputs (the graph is built for each instance, which the ms leave out and "build" gives). *from small to whole*
tries the rates 0.1, 0.2, ... 1 until one proves. "neurons kept" are means, layer by layer. Margins that are not
finite are left out.
"""


@dataclass(frozen=True)
class Instance:
    """An input box, and the least margin of the specification given lower bounds of its rows."""

    box: Box
    rows: Tensor
    margin: Callable[[Tensor], float]


@dataclass(frozen=True)
class Case:
    """A network and what is asked of it."""

    name: str
    module: Any
    chain: ReducedNetwork
    instances: list[Instance]


def digits_case(activation: nn.Module, name: str, width: int, radius: float, epochs: int) -> Case:
    """A network of three hidden layers on digits, and test images that it classifies correctly."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from train_digits import accuracy, train

    torch.manual_seed(0)
    data = load_digits()
    images = torch.tensor(data.data / 16, dtype=torch.float32)
    parts = train_test_split(images, torch.tensor(data.target), test_size=0.2, random_state=0)
    x, test_x, y, test_y = parts
    sizes = (64, width, width, width)
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation)]
    network = nn.Sequential(*hidden, nn.Linear(width, 10))
    train(network, x, y, noise=0.05, epochs=epochs)
    score = accuracy(network, test_x, test_y)
    module = build(network, torch.zeros(1, 64))
    right = (
        (network(test_x).argmax(1) == test_y).nonzero().squeeze(1)[: IMAGES if width < 500 else IMAGES // 2].tolist()
    )
    instances = []
    for i in right:
        rows = (torch.eye(10)[int(test_y[i])] - torch.eye(10))[torch.arange(10) != int(test_y[i])][None]
        box = Box((test_x[i : i + 1] - radius).clamp(0, 1), (test_x[i : i + 1] + radius).clamp(0, 1))
        instances.append(Instance(box, rows, lambda lower: float(lower.min())))
    title = f"digits {name} 3 x {width} (accuracy {score:.2f}), radius {radius}, {len(instances)} images"
    return Case(title, module, chain_of(module, torch.zeros(1, 64)), instances)


def mnist_case(pack: Path, layers: int, radius: float, shrink: int) -> Case | None:
    """The pack's instances of one network and radius; with their boxes shrunk around the middle."""
    folder, file = pack / "mnist_fc", f"mnist-net_256x{layers}.onnx.gz"
    rows = csv.reader((folder / "instances.csv").open())
    wanted = [row for row in rows if row[0].endswith(file) and row[1].endswith(f"_{radius}.vnnlib.gz")]
    instances, module, chain = [], None, None
    for row in wanted:
        problem = load_problem(folder / row[0], folder / row[1], Settings(device="cpu"))
        if module is None:
            module = build(problem.model.module, problem.box.lower[:1])
            chain = chain_of(module, problem.box.lower[:1])
        middle, half = (problem.box.lower + problem.box.upper) / 2, (problem.box.upper - problem.box.lower) / 2
        box = problem.box if shrink == 1 else Box.ball(middle, half / shrink)
        instances.append(Instance(box, problem.objective.coefficients, margin_of(problem.objective)))
    if chain is None:
        return None
    size = f"{radius}" if shrink == 1 else f"{radius} / {shrink}"
    return Case(f"mnist_fc 256x{layers}, radius {size}, {len(instances)} instances", module, chain, instances)


def margin_of(objective: Any) -> Callable[[Tensor], float]:
    """The least margin: above 0 every disjunct is out of reach."""
    group = torch.zeros(1, dtype=torch.int64)
    return lambda lower: float(objective.best(objective.margins(lower, group), group).min())


Run = Callable[[Case, Instance], tuple[float, tuple[int, ...] | None, int | None, float]]


def written_out(merging: NeuronMerging, compression: InputCompression | None = None) -> Run:
    def run(case: Case, instance: Instance) -> tuple[float, tuple[int, ...], int, float]:
        started = time.perf_counter()
        network, output = reduce_network(case.chain.followed_by(instance.rows[0]), instance.box, merging, compression)
        lower = output.interval_hull().lower
        seconds = time.perf_counter() - started
        kept = tuple(kept for kept, _ in network.neurons)
        kept = kept if compression is None else (network.inputs_read, *kept)
        return instance.margin(lower), kept, output.num_symbols, seconds

    return run


def in_propagation(merging: NeuronMerging) -> Run:
    def run(case: Case, instance: Instance) -> tuple[float, tuple[int, ...], int, float]:
        started = time.perf_counter()
        propagation = propagate_merged(case.module, instance.box, merging, instance.rows)
        seconds = time.perf_counter() - started
        kept = tuple(int(each[0]) for each in propagation.kept.values())
        return instance.margin(propagation.bounds.lower), kept, propagation.output.num_symbols, seconds

    return run


def method(name: str) -> Run:
    def run(case: Case, instance: Instance) -> tuple[float, None, int | None, float]:
        started = time.perf_counter()
        bounds, propagation = bound_box(case.module, instance.box, BoundMethod.parse(name), instance.rows)
        seconds = time.perf_counter() - started
        return (
            instance.margin(bounds.lower),
            None,
            None if propagation is None else propagation.output.num_symbols,
            seconds,
        )

    return run


BUILD_SECONDS: list[float] = []


def crown_reduced(merging: NeuronMerging) -> Run:
    """CROWN over a reduced network; the reduction counts, building the host's graph does not."""

    def run(case: Case, instance: Instance) -> tuple[float, tuple[int, ...], None, float]:
        started = time.perf_counter()
        network, _ = reduce_network(case.chain.followed_by(instance.rows[0]), instance.box, merging)
        noise = torch.ones(1, network.num_noise)
        lower = torch.cat([instance.box.lower.flatten(1), -noise], dim=1)
        box = Box(lower, torch.cat([instance.box.upper.flatten(1), noise], dim=1))
        seconds, started = time.perf_counter() - started, time.perf_counter()
        graph = build(network.with_noise_as_inputs(), lower)
        BUILD_SECONDS.append(time.perf_counter() - started)
        started = time.perf_counter()
        bounds, _ = bound_box(graph, box, BoundMethod.parse("crown"))
        seconds += time.perf_counter() - started
        return instance.margin(bounds.lower), tuple(kept for kept, _ in network.neurons), None, seconds

    return run


def small_to_whole(buckets: Any) -> Run:
    def run(case: Case, instance: Instance) -> tuple[float, tuple[int, ...] | None, int | None, float]:
        total = 0.0
        for rate in LOOP:
            margin, kept, symbols, seconds = written_out(NeuronMerging(rate=rate, buckets=buckets))(case, instance)
            total += seconds
            if margin > 0:
                break
        return margin, kept, symbols, total

    return run


def runs() -> Iterator[tuple[str, Run]]:
    """What each table has, in this order."""
    yield "IBP", method("ibp")
    yield "CROWN-IBP", method("crown-ibp")
    yield "CROWN", method("crown")
    yield "zonotope, unreduced", method("zonotope")
    for buckets in ("static", "dynamic"):
        for rate in RATES:
            yield f"rate {rate:g}, {buckets}", written_out(NeuronMerging(rate=rate, buckets=buckets))
    for tolerance in (0, 1e-2):
        for buckets in ("static", "dynamic"):
            merging = NeuronMerging(tolerance=tolerance, buckets=buckets)
            yield f"tolerance {tolerance:g}, {buckets}", written_out(merging)
    for rate in (0.2, 0.5):
        yield f"rate {rate:g}, dynamic, box", written_out(NeuronMerging(rate=rate, tracked=False))
        yield f"rate {rate:g}, dynamic, propagation", in_propagation(NeuronMerging(rate=rate))
    for buckets in ("static", "dynamic"):
        yield f"from small to whole, {buckets}", small_to_whole(buckets)
    for rate in (0.9, 0.5):
        compression = InputCompression(NeuronMerging(rate=rate), None)
        yield f"inputs at rate {rate:g}", written_out(NeuronMerging(rate=1.0), compression)
    compression = InputCompression(NeuronMerging(tolerance=1e-3), None)
    yield "inputs, tolerance 0.001", written_out(NeuronMerging(rate=1.0), compression)
    yield "CROWN, reduced at rate 0.3, dynamic", crown_reduced(NeuronMerging(rate=0.3))
    yield "CROWN, reduced at tolerance 0, static", crown_reduced(NeuronMerging(tolerance=0, buckets="static"))


def table(case: Case) -> str:
    lines = [f"## {case.name}", "", "| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    for name, run in runs():
        BUILD_SECONDS.clear()
        with torch.no_grad():
            run(case, case.instances[0])  # warm
            BUILD_SECONDS.clear()
            found = [run(case, instance) for instance in case.instances]
        margins = torch.tensor([margin for margin, *_ in found])
        finite = margins[margins.isfinite()]
        kept = [k for _, k, _, _ in found if k is not None]
        symbols = [float(s) for _, _, s, _ in found if s is not None]
        layers = " ".join(f"{float(m):.0f}" for m in torch.tensor(kept).double().mean(0)) if kept else ""
        milliseconds = f"{1000 * sum(s for *_, s in found) / len(found):.1f}"
        if BUILD_SECONDS:
            milliseconds += f" (build {1000 * sum(BUILD_SECONDS) / len(BUILD_SECONDS):.0f})"
        row = (
            name,
            layers,
            str(int((margins > 0).sum())),
            f"{float(finite.mean()):.4g}" if finite.numel() else "",
            f"{sum(symbols) / len(symbols):.0f}" if symbols else "",
            milliseconds,
        )
        lines.append("| " + " | ".join(row) + " |")
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def cases(pack: Path, only: str) -> Iterator[Case]:
    for name, activation, width, radius, epochs in (
        ("sigmoid", nn.Sigmoid(), 100, 0.02, 40),
        ("sigmoid", nn.Sigmoid(), 100, 0.05, 40),
        ("tanh", nn.Tanh(), 100, 0.01, 40),
        ("relu", nn.ReLU(), 1000, 0.03, 10),
    ):
        if only in f"digits {name}":
            yield digits_case(activation, name, width, radius, epochs)
    if not (pack / "mnist_fc" / "instances.csv").is_file():
        print(f"mnist_fc is left out: no {pack / 'mnist_fc'}. Give the folder with benchmarks as PACK.")
        return
    for layers, radius, shrink in MNIST_FC:
        if only in f"mnist_fc {layers}":
            case = mnist_case(pack, layers, radius, shrink)
            if case is not None:
                yield case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("ZONOPLUG_VNNCOMP") or ROOT.parent / "shared" / "vnncomp")
    parser.add_argument("pack", nargs="?", type=Path, default=default)
    parser.add_argument("--only", default="", help="only networks whose name contains this text")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    # Tables in the file that this run does not make stay.
    before = arguments.markdown.read_text() if arguments.markdown and arguments.markdown.is_file() else ""
    texts = {text.splitlines()[0]: "## " + text.strip() + "\n" for text in before.split("\n## ")[1:]}
    for case in cases(arguments.pack, arguments.only):
        print(f"\n## {case.name}", flush=True)
        texts[case.name] = table(case)
        if arguments.markdown:
            arguments.markdown.write_text(HEADER + "\n" + "\n".join(texts.values()))


if __name__ == "__main__":
    main()
