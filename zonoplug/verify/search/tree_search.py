"""The plain search on the phases of ReLUs: splits of ReLUs alone, pre-activation bounds as they are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.verify.observer import Observer
from zonoplug.verify.search.base import SearchResult
from zonoplug.verify.search.relu_tree import ReluTree
from zonoplug.verify.subdomains.batch import take
from zonoplug.verify.subdomains.relu_phases import Properties, ReluSubdomains, split_relus

SEARCH_STEPS = 6
STATE_BYTES = 64 * 2**20


class TreeSearch:
    """Goes on with trees.

    Args:
        observer: told of every step.
        attacked: tries points (n, *input_shape) as counterexamples, and puts the one it finds into the result.
        leaves: told which subdomains are proved, each for its property, once the whole tree is.
    """

    def __init__(
        self,
        observer: Observer,
        attacked: Callable[[Tensor, SearchResult], bool],
        leaves: Callable[[ReluSubdomains, Properties], None],
    ) -> None:
        self.observer, self._attacked, self._leaves = observer, attacked, leaves

    def close(
        self, trees: list[ReluTree], deadline: Deadline, result: SearchResult, deepest: float = torch.inf
    ) -> None:
        """Go on with trees, one after another, and take away those that are proved, until one resists."""
        while trees and self.search(trees[0], deadline, result, deepest=deepest):
            for part, properties in trees.pop(0).leaves:
                self._leaves(part, properties)

    def search(self, tree: ReluTree, deadline: Deadline, result: SearchResult, deepest: float = torch.inf) -> bool:
        """Split ReLUs alone, pre-activation bounds as they are.

        Args:
            deepest: stop where the tree looks deeper than this.
        Returns:
            whether every piece was excluded. A counterexample, if one is found, is in `result`.
        """
        self.observer.proved(tree.proved)
        while tree.queue or tree.stuck:
            if deadline.passed or tree.stuck or tree.looks_deeper_than(deepest):
                self.observer.proved(-tree.proved)
                return False
            batch = max(1, min(tree.bounds.batch, STATE_BYTES // tree.queue[-1].bytes_each))
            part = take(tree.queue, batch)
            part.bound, scores = _bounded(tree, part)
            result.subdomains += len(part)
            open_ = ~(part.bound > 0)
            tree.note(part, open_)
            self.observer.phases(part, open_, part.bound, sum(map(len, tree.queue)))
            if self.observer.record is not None:
                tree.closed.append(part.pick(~open_))
            if not bool(open_.any()):
                continue
            if self._attacked(tree.bounds.minimisers, result):
                tree.stuck += int(open_.sum())
                return False
            pieces, stuck = split_relus(part.pick(open_), scores[open_], batch - sum(map(len, tree.queue)))
            self.observer.split("activation", len(pieces) - int(open_.sum()) + stuck)
            tree.stuck += stuck
            result.stuck += stuck
            if len(pieces):
                tree.queue.append(pieces)
        return True


def _bounded(tree: ReluTree, part: ReluSubdomains) -> tuple[Tensor, Tensor]:
    """Margins and scores, as `Bounds.bound`; with more steps where nothing is left to split."""
    bounds, target = tree.bounds, tree.target
    bound, scores = bounds.bound(part, target, SEARCH_STEPS)
    whole = (~(bound > 0) & ~part.unstable_neurons.any(dim=1)).nonzero().flatten()
    if whole.shape[0]:
        pieces, minimisers = part.pick(whole), bounds.minimisers
        bound[whole] = bounds.last(pieces, target)
        part.alpha, part.beta = (
            part.alpha.index_copy(0, whole, pieces.alpha),
            part.beta.index_copy(0, whole, pieces.beta),
        )
        bounds.minimisers = torch.cat([minimisers, bounds.minimisers])
    return bound, scores
