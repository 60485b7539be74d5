"""Networks written in their open ReLUs: how fast subdomains are bounded, and what branch and bound on neurons gains.

First table: subdomains that fix signs, bounded with the same number of gradient steps over the host's graph and over
the network written in its open ReLUs, in turn. Second table: sweeps; for each, how many signs are open, how wide their
hulls are altogether, and the least margin on the whole box. Both over competition instances.
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
from zonoplug.lirpa.backward.refinement import refine_hulls
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.bounds.graph_bounds import SignBounds
from zonoplug.verify.bounds.unstable_bounds import OpenBounds, OpenMargins
from zonoplug.verify.branching.activations import activation_rule
from zonoplug.verify.search.neuron_search import NeuronSearch
from zonoplug.verify.search.relu_tree import Bounds
from zonoplug.verify.search.tree_search import SEARCH_STEPS
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.subdomains.neuron_layout import NeuronLayout
from zonoplug.verify.subdomains.relu_phases import Aims, SignSubdomains, split_signs

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
SWEEPS = (0, 1, 16, 64, 256)
TITLE = "Networks written in their open ReLUs"
SPEED_TEXT = (
    f"Batches of {COUNT} subdomains that fix signs, {SEARCH_STEPS} gradient steps each; one thread. Over plain backward"
    " hulls of the root; `build` is the time that writing the network takes."
)
SPEED_HEAD = ("instance", "ReLU neurons", "open", "build (s)", "host's graph (1/s)", "open network (1/s)", "ratio")
SWEEP_TEXT = (
    "Each sweep lets the branch and bound of every end of every open neuron's hull grow to so many leaves, as far as"
    " the time for the instance goes. Above 0 the least margin proves the property without a split of the margin's own."
)
SWEEP_HEAD = ("instance", "leaves", "seconds", "open neurons", "width of their hulls", "least margin")


class World:
    """One instance, its root hulls, and both kinds of bounds."""

    def __init__(self, instance: Instance) -> None:
        self.problem = load_problem(instance.model, instance.specification, Settings(device="cpu"))
        bounder, box = Bounder(self.problem), self.problem.box
        self.module, self.backward = bounder.module, Backward(bounder.module)
        self.aims, self.rule = Aims.of(self.problem.objective, 0), activation_rule("auto")
        self.hulls = refine_hulls(self.module, box, bounder.hulls(box), 0, Deadline(60), self.aims.all_rows)
        self.search = NeuronSearch(self.module, box, self.rule, NeuronLayout(self.backward, self.hulls).places)

    def sweep(self, leaves: int, seconds: float, aims: Aims) -> OpenMargins:
        """Narrow the hulls; what bounds margins over them."""
        self.hulls, self.network, _ = self.search.sweep(self.hulls, leaves, Deadline(seconds))
        forms = self.network.forms_of(self.backward, self.hulls, aims.rows.flatten(0, 1))
        return OpenMargins(OpenBounds(self.network, self.rule), forms, aims)


def speed(world: World) -> list[str]:
    """A row of the first table. The goal is out of reach, so that no bound ends before its last step."""
    aims = replace(world.aims, goal=world.aims.goal + 1e6)
    start = time.process_time()
    open_ = world.sweep(0, 60, aims)
    built = time.process_time() - start
    host = SignBounds(world.module, world.backward, world.problem.box, world.hulls, world.rule)
    aim, sides = aims.pick(slice(0, 1)), {}
    kinds: dict[str, tuple[Bounds, SignSubdomains]] = {
        "host": (host, host.layout.root(world.hulls)),
        "open": (open_, open_.root(1)),
    }
    for name, (bounds, root) in kinds.items():
        root.bound, scores = bounds.bound(root, aim, SEARCH_STEPS)
        pieces, _ = split_signs(root, scores, COUNT)
        sides[name] = partial(_bound, bounds, pieces, aim)
    seconds = median_seconds(sides, 5)
    rates = [COUNT / seconds[name] for name in ("host", "open")]
    neurons = [f"{host.layout.relu_neurons:,}", f"{len(world.network):,}", f"{built:.2f}"]
    return [*neurons, *(f"{rate:,.0f}" for rate in rates), f"{rates[1] / rates[0]:.1f}"]


def _bound(bounds: Bounds, pieces: SignSubdomains, aim: Aims) -> None:
    bounds.bound(pieces.copy(), aim, SEARCH_STEPS)


def sweeps(world: World, seconds: float) -> list[list[str]]:
    """Rows of the second table: after each sweep, within a time limit for all."""
    rows, spent = [], 0.0
    for leaves in SWEEPS:
        start = time.process_time()
        margins = world.sweep(leaves, seconds - spent, world.aims)
        spent += time.process_time() - start
        bound, _ = margins.bound(margins.root(len(world.aims)), world.aims, ROOT_STEPS)
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
    parser.add_argument("--seconds", type=float, default=40.0, help="for the sweeps on one instance")
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
            "open_networks",
            report(
                TITLE,
                "python benchmarks/affine_forms.py",
                {
                    "Subdomains a second": (SPEED_TEXT, SPEED_HEAD, speeds),
                    "Sweeps over single neurons": (SWEEP_TEXT, SWEEP_HEAD, swept),
                },
            ),
        )


if __name__ == "__main__":
    main()
