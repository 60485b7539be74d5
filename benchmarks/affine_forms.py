"""Networks written in their unstable neurons: how fast subdomains are bounded, and what branch and bound on neurons
gains.

First table: subdomains with split constraints, bounded with the same number of gradient steps over the host's graph and
    over
the affine form over unstable neurons, in turn. Second table: bound-tightening passes; for each, how many signs are
open, how wide their pre-activation bounds are altogether, and the least margin on the whole box. Both over competition
instances.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from instances import PACK, Instance, instances
from measuring import median_seconds, report, write

from zonoplug.clock import Deadline
from zonoplug.lirpa.backward.passes import Backward
from zonoplug.lirpa.backward.refinement import refine_bounds
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.bounds.graph_bounds import GraphBounds
from zonoplug.verify.bounds.unstable_bounds import UnstableBounds, UnstableMargins
from zonoplug.verify.branching.activations import activation_rule
from zonoplug.verify.search.neuron_search import NeuronSearch
from zonoplug.verify.search.relu_tree import Bounds
from zonoplug.verify.search.tree_search import SEARCH_STEPS
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.subdomains.neuron_layout import NeuronLayout
from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains, split_relus

CASES = (
    ("mnist_fc", "256x2", "prop_6_0.03"),
    ("mnist_fc", "256x4", "prop_7_0.05"),
    ("mnist_fc", "256x6", "prop_1_0.03"),
    ("oval21", "base_kw", "img876"),
    ("oval21", "deep_kw", "img4168"),
    ("oval21", "wide_kw", "img7564"),
    ("sri_resnet_b", "ssadv", "idx_4836"),
    ("cifar_biasfield", "bias_field_22", "prop_22"),
)
COUNT = 64
ROOT_STEPS = 20
TIGHTENING_PASSES = (0, 1, 16, 64, 256)
TITLE = "Affine forms over unstable neurons"
SPEED_TEXT = (
    f"Batches of {COUNT} subdomains with split constraints, {SEARCH_STEPS} gradient steps each; one thread. Over plain"
    " backward pre-activation bounds of the root; `build` is the time that writing the network takes."
)
SPEED_HEAD = ("instance", "ReLU neurons", "unstable", "build (s)", "host's graph (1/s)", "affine form (1/s)", "ratio")
TIGHTENING_TEXT = (
    "In each bound-tightening pass, branch and bound on either bound of every unstable neuron grows to so many"
    " leaves, as far as the time for the instance goes. Above 0 the"
    " least margin proves the property without a split of the margin's own."
)
TIGHTENING_HEAD = (
    "instance",
    "leaves",
    "seconds",
    "unstable neurons",
    "width of their pre-activation bounds",
    "least margin",
)


class World:
    """One instance, its root pre-activation bounds, and both kinds of bounds."""

    def __init__(self, instance: Instance) -> None:
        self.problem = load_problem(instance.model, instance.specification, Settings(device="cpu"))
        bounder, box = Bounder(self.problem), self.problem.box
        self.module, self.backward = bounder.module, Backward(bounder.module)
        self.properties, self.rule = Properties.of(self.problem.objective, 0), activation_rule("auto")
        self.preactivations = refine_bounds(
            self.module, box, bounder.preactivations(box), 0, Deadline(60), self.properties.all_rows
        )
        self.search = NeuronSearch(self.module, box, self.rule, NeuronLayout(self.backward, self.preactivations).places)

    def tighten(self, leaves: int, seconds: float, properties: Properties) -> UnstableMargins:
        """Narrow the pre-activation bounds; what bounds margins over them."""
        self.preactivations, self.network, _ = self.search.tighten(self.preactivations, leaves, Deadline(seconds))
        forms = self.network.forms_of(self.backward, self.preactivations, properties.rows.flatten(0, 1))
        return UnstableMargins(UnstableBounds(self.network, self.rule), forms, properties)


def speed(world: World) -> list[str]:
    """A row of the first table. The goal is out of reach, so that no bound ends before its last step."""
    properties = replace(world.properties, goal=world.properties.goal + 1e6)
    start = time.process_time()
    open_ = world.tighten(0, 60, properties)
    built = time.process_time() - start
    host = GraphBounds(world.module, world.backward, world.problem.box, world.preactivations, world.rule)
    target, sides = properties.pick(slice(0, 1)), {}
    kinds: dict[str, tuple[Bounds, ReluSubdomains]] = {
        "host": (host, host.layout.root(world.preactivations)),
        "open": (open_, open_.root(1)),
    }
    for name, (bounds, root) in kinds.items():
        root.bound, scores = bounds.bound(root, target, SEARCH_STEPS)
        pieces, _ = split_relus(root, scores, COUNT)
        sides[name] = partial(_bound, bounds, pieces, target)
    seconds = median_seconds(sides, 5)
    rates = [COUNT / seconds[name] for name in ("host", "open")]
    neurons = [f"{host.layout.relu_neurons:,}", f"{len(world.network):,}", f"{built:.2f}"]
    return [*neurons, *(f"{rate:,.0f}" for rate in rates), f"{rates[1] / rates[0]:.1f}"]


def _bound(bounds: Bounds, pieces: ReluSubdomains, target: Properties) -> None:
    bounds.bound(pieces.copy(), target, SEARCH_STEPS)


def sweeps(world: World, seconds: float) -> list[list[str]]:
    """Rows of the second table: after each bound-tightening pass, within a time limit for all."""
    rows, spent = [], 0.0
    for leaves in TIGHTENING_PASSES:
        start = time.process_time()
        margins = world.tighten(leaves, seconds - spent, world.properties)
        spent += time.process_time() - start
        bound, _ = margins.bound(margins.root(len(world.properties)), world.properties, ROOT_STEPS)
        widths = world.network.upper - world.network.lower
        least = float(bound.min())
        rows.append(
            [str(leaves), f"{spent:.1f}", f"{len(world.network):,}", f"{float(widths.sum()):,.0f}", f"{least:.3g}"]
        )
        if spent >= seconds or least > 0:
            break
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, default=PACK, help="folder of competition instances")
    parser.add_argument("--seconds", type=float, default=40.0, help="for the bound-tightening passes on one instance")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    speeds, swept = [], []
    for benchmark, model, specification in CASES:
        found = [
            one
            for one in instances(arguments.pack, benchmark)
            if model in one.model.name and specification in one.specification.name
        ]
        if not found:
            print(f"{benchmark} {model} {specification}: not in {arguments.pack}")
            continue
        name = f"{benchmark} {model} {specification}"
        world = World(found[0])
        speeds.append([name, *speed(world)])
        print(*speeds[-1], sep=" | ", flush=True)
        for row in sweeps(world, arguments.seconds):
            swept.append([name, *row])
            print(*swept[-1], sep=" | ", flush=True)
    if speeds:
        write(
            "affine_forms",
            report(
                TITLE,
                "python benchmarks/affine_forms.py",
                {
                    "Subdomains a second": (SPEED_TEXT, SPEED_HEAD, speeds),
                    "Sweeps over single neurons": (TIGHTENING_TEXT, TIGHTENING_HEAD, swept),
                },
            ),
        )


if __name__ == "__main__":
    main()
