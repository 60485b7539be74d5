"""Collects the leaves of a search, and makes a certificate of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zonoplug.certificates.certificate import Certificate, Leaf, Proof, sha256_of
from zonoplug.certificates.tree import LeafTable, find_tree
from zonoplug.domain.input_sets import Box
from zonoplug.verify.problem.problem import Problem
from zonoplug.verify.subdomains.relu_phases import ReluSubdomains

MAX_LEAVES = 300_000
SLOPE_BYTES = 256 * 2**20

Floats = NDArray[np.float64]


@dataclass(slots=True)
class _Leaves:
    """Leaves of one tree: boxes, split constraints as codes (see LeafTable), and what is written of each."""

    lower: list[Floats] = field(default_factory=list)
    upper: list[Floats] = field(default_factory=list)
    phases: list[NDArray[np.int64]] = field(default_factory=list)
    leaves: list[Leaf] = field(default_factory=list)


class LeafRecord:
    """What a search proved, leaf by leaf, in memory.

    Leaves beyond a limit are dropped, and `is_complete` says so; slopes beyond a limit are left out.

    Args:
        problem: what is verified.

    Attributes:
        layer_sizes: the number of neurons of each ReLU, in the order in which a search puts them side by side.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.layer_sizes: list[int] = []
        self._whole: dict[tuple[int, int], str] = {}
        self._trees: dict[tuple[int, int | None], _Leaves] = {}
        self._count = self._slope_bytes = 0

    @property
    def is_complete(self) -> bool:
        """Whether every leaf was kept."""
        return self._count <= MAX_LEAVES

    def whole(self, excluded: Tensor, method: str) -> None:
        """Disjuncts (boxes, disjuncts) were excluded on their whole input boxes."""
        for box, disjunct in excluded.nonzero().tolist():
            self._whole.setdefault((box, disjunct), method)

    def forget(self) -> None:
        """Drop the leaves of a search that did not end with a proof."""
        self._trees.clear()
        self._count = self._slope_bytes = 0

    def boxes(self, box: Box, group: Tensor, closed: Tensor, method: str) -> None:
        """Subdomains (n, *input_shape) of the boxes `group` (n,) that are proved where `closed` (n,) says so."""
        lower, upper = (side[closed].flatten(1).double().cpu().numpy() for side in (box.lower, box.upper))
        nothing = np.zeros(0, np.int64)
        for place, number in enumerate(group[closed].tolist()):
            self._add((number, None), lower[place], upper[place], nothing, Leaf(method))

    def phases(self, box: int, disjunct: int, part: ReluSubdomains, closed: Tensor, method: str) -> None:
        """Subdomains with split constraints, of one disjunct of an input box."""
        lower, upper = (
            side[box].flatten().double().cpu().numpy() for side in (self._problem.box.lower, self._problem.box.upper)
        )
        layers = np.concatenate([[0], np.cumsum(self.layer_sizes)])
        kept = part.pick(closed)
        sign, alpha, beta = (value.detach().cpu().numpy() for value in (kept.sign, kept.alpha, kept.beta))
        for place in range(len(kept)):
            fixed = np.flatnonzero(sign[place])
            codes = np.where(sign[place, fixed] > 0, fixed + 1, -(fixed + 1)).astype(np.int64)
            layer = np.searchsorted(layers, fixed, side="right") - 1
            pulls = tuple(
                (int(at), int(neuron - layers[at]), float(beta[place, neuron]))
                for at, neuron in zip(layer, fixed, strict=True)
                if beta[place, neuron] > 0
            )
            slopes = None
            if self._slope_bytes < SLOPE_BYTES:
                slopes = alpha[place].astype(np.float16)
                self._slope_bytes += slopes.nbytes
            self._add((box, disjunct), lower, upper, codes, Leaf(method, slopes, pulls))

    def certificate(self, model: str | Path, specification: str | Path, made_by: str) -> Certificate:
        """All proofs. Only for a problem whose every disjunct was excluded."""
        objective = self._problem.objective
        index = objective.index.cpu()
        together: dict[tuple[int, str], list[int]] = {}
        for (box, disjunct), method in sorted(self._whole.items()):
            together.setdefault((box, method), []).append(int(index[box, disjunct]))
        proofs = [Proof(box, tuple(numbers), [Leaf(method)]) for (box, method), numbers in together.items()]
        for (box, part), kept in sorted(self._trees.items(), key=lambda item: (item[0][0], item[0][1] or 0)):
            table = LeafTable(
                np.stack(kept.lower),
                np.stack(kept.upper),
                kept.phases,
                np.concatenate([[0], np.cumsum(self.layer_sizes)])[:-1].astype(np.int64),
                kept.leaves,
            )
            ends = (
                side[box].flatten().double().cpu().numpy()
                for side in (self._problem.box.lower, self._problem.box.upper)
            )
            if part is None:
                known = [number for at, number in self._whole if at == box]
                exists = objective.exists[box].nonzero().flatten().tolist()
                wanted = [int(index[box, number]) for number in exists if number not in known]
            else:
                wanted = [int(index[box, part])]
            if wanted:
                proofs.append(Proof(box, tuple(wanted), find_tree(table, *ends)))
        return Certificate(sha256_of(model), sha256_of(specification), proofs, made_by)

    def _add(
        self, key: tuple[int, int | None], lower: Floats, upper: Floats, phases: NDArray[np.int64], leaf: Leaf
    ) -> None:
        self._count += 1
        if self._count > MAX_LEAVES:
            return
        tree = self._trees.setdefault(key, _Leaves())
        tree.lower.append(lower)
        tree.upper.append(upper)
        tree.phases.append(phases)
        tree.leaves.append(leaf)
