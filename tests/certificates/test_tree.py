"""The tree that is made of a search's leaves."""

from __future__ import annotations

import numpy as np
import pytest

from zonoplug.certificates.certificate import Leaf, Proof
from zonoplug.certificates.check import regions_of
from zonoplug.certificates.network import RELU, Network
from zonoplug.certificates.tree import LeafTable, find_tree


@pytest.mark.parametrize("seed", range(10))
def test_a_tree_is_found_for_leaves_in_any_order(seed):
    """Random splits of inputs and signs, shuffled: the tree has the same leaves, and no others."""
    random = np.random.default_rng(seed)
    todo, leaves = [(np.zeros(3), np.ones(3), ())], []
    while todo:
        low, high, phases = todo.pop()
        if len(leaves) + len(todo) > 60 or random.random() < 0.1:
            leaves.append((low, high, phases))
        elif random.random() < 0.7:
            axis = random.integers(3)
            at = random.uniform(low[axis], high[axis])
            left, right = high.copy(), low.copy()
            left[axis] = right[axis] = at
            todo += [(low, left, phases), (right, high, phases)]
        else:
            code = int(random.integers(1, 7))
            if code not in map(abs, phases):
                todo += [(low, high, (*phases, code)), (low, high, (*phases, -code))]
            else:
                leaves.append((low, high, phases))
    random.shuffle(leaves)
    for dropped in range(min(2, len(leaves))):
        kept = leaves[dropped:]
        table = LeafTable(
            np.stack([low for low, _, _ in kept]),
            np.stack([high for _, high, _ in kept]),
            [np.array(phases, np.int64) for _, _, phases in kept],
            np.array([0, 4]),
            [Leaf(str(place)) for place in range(len(kept))],
        )
        nodes = find_tree(table, np.zeros(3), np.ones(3))
        network = Network(3)
        for size in (4, 2):
            network.apply(np.arange(size) % 3, RELU)
        regions = list(regions_of(Proof(0, (0,), nodes), np.zeros(3), np.ones(3), network))
        named = [region for region in regions if region.leaf.method]
        for region in named:
            low, high, phases = kept[int(region.leaf.method)]
            assert (low <= region.lower).all() and (region.upper <= high).all()
            codes = {(layer, neuron): sign for (layer, neuron), sign in region.phases.items()}
            for code in phases:
                where = (0, abs(code) - 1) if abs(code) <= 4 else (1, abs(code) - 5)
                assert codes[where] == np.sign(code)
        assert {region.leaf.method for region in named} == {str(place) for place in range(len(kept))}
        if not dropped:
            assert len(regions) == len(kept) == len(named)
        else:
            assert len(regions) > len(named)
