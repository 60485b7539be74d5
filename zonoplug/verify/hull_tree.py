"""The upper part of a search on ReLU signs: few subdomains, whose hulls are computed again after each split.

A sign that is fixed in one layer narrows all layers behind it, which often closes more than the split itself. Hulls are
refreshed by one backward pass for each open neuron, with the slopes that were optimised at the root. What is nearly
closed goes to the plain search on signs, for a limited number of subdomains.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.verify.search import SearchResult
from zonoplug.verify.sign_bounds import SignBounds
from zonoplug.verify.sign_subdomains import Aims, SignSubdomains
from zonoplug.verify.sign_tree import Proofs, SignTree, Witness
from zonoplug.verify.subdomain_hulls import Slopes, SubdomainHulls

NODE_STEPS = 10
TRIAL_STEPS = 3
PLAIN_LIMIT = 64
CANDIDATES = 2
PER_LAYER = 2
FIRST_TRY = 0.03  # a plain search is tried from this share of the root's worst margin on
SLOW = 0.12  # a split that takes off less of the loss does worse than many cheap ones
SLOW_LIMIT = 1024
PLAIN_SHARE = 0.6
CLIP_PLAIN_SHARE = 0.15
ONE_SIDED = 0.05  # lets a split count that takes something off one side alone
WIDTH_SHARE = 0.5  # of narrower hulls among what a split gains: bounds may stay where they are for long
EASIER, HARDER = 1.1, 0.6
CLIP_EASIER, CLIP_HARDER, CLIP_AGAIN = 1.25, 0.85, 1.1
CLIP_STEPS = 8
AIM_STEPS = 3
CLIP_PATIENCE = 1
CLIP_ROUNDS = 12
CLIP_PROGRESS = 0.05  # of the margin or of the open neurons' widths, that a round of clipping has to take off


class SignSearch(Witness, Protocol):
    """What the plain search offers."""

    def search(self, tree: SignTree, deadline: Deadline, result: SearchResult, limit: int) -> bool: ...
    def attack(self, result: SearchResult) -> bool: ...


@dataclass(slots=True)
class _Node:
    """One subdomain with all its open aims.

    Attributes:
        part: the subdomain once for each aim.
        aims: what is not proved yet.
        scores: (neurons,) how much each neuron's relaxation costs, for the aims and for the hulls behind it.
        closed: the subdomain for each aim that was proved when this was bounded, and these aims.
        slopes: of the bounds of single neurons.
    """

    part: SignSubdomains
    aims: Aims
    scores: Tensor
    closed: tuple[SignSubdomains, Aims]
    slopes: Slopes

    @property
    def loss(self) -> float:
        """How far the aims are from being proved, altogether."""
        return float(-self.part.bound.clamp(max=0).sum())


class HullTree:
    """Proves aims on one box.

    Args:
        search: searches below a subdomain.
        bounds: bounds subdomains.
        slopes: the root's, for single neurons.
        clips: whether signs and the unsafe set narrow hulls.
        records: whether leaves are wanted.
    """

    def __init__(self, search: SignSearch, bounds: SignBounds, slopes: Slopes, clips: bool, records: bool) -> None:
        self._search = search
        self._slopes = slopes
        self._layout = bounds.layout
        self._bounds = bounds
        self._hulls = SubdomainHulls(bounds.module, bounds.box, bounds.hulls, bounds.layout, self._slopes)
        self._reach = torch.inf
        self._clips = clips
        self._plain_share = CLIP_PLAIN_SHARE if self._clips else PLAIN_SHARE
        self._gains: dict[int, tuple[float, int]] = {}
        self._proofs = Proofs(search, records)

    def run(self, root: SignSubdomains, aims: Aims, deadline: Deadline, result: SearchResult) -> set[int]:
        """The numbers of aims that could not be proved. A counterexample, if one is found, is in `result`."""
        top = self._bounded(root, aims, NODE_STEPS, self._slopes)
        self._proofs.add(*top.closed)
        queue = [top]
        reach = FIRST_TRY * float(-root.bound.min())
        while queue and not deadline.passed and result.counterexample is None:
            node = queue.pop()
            if len(node.aims) and self._clips:
                self._clip_easiest(node, deadline, result)
            elif len(node.aims) and float(-node.part.bound.min()) <= reach:
                reach *= EASIER if self._close_all(node, deadline, result, PLAIN_LIMIT) else HARDER
            self._reach *= CLIP_AGAIN
            pieces, gain = self._split(node, result, deadline) if len(node.aims) else ([], 2.0)
            if gain < SLOW and result.counterexample is None and not deadline.passed:
                if self._close_all(node, deadline.part(self._plain_share), result, SLOW_LIMIT):
                    pieces = []
            if pieces is None:
                result.stuck += 1
                queue.append(node)
                break
            queue.extend(sorted(pieces, key=lambda piece: piece.loss))
            if deadline.passed:
                queue.append(node)
        left = set(top.aims.number.tolist()) if queue or result.counterexample is not None else set()
        self._proofs.settle(left)
        return left

    def _close_all(self, node: _Node, deadline: Deadline, result: SearchResult, limit: int) -> bool:
        """Prove a node's aims by the plain search, the easiest first, until one is too hard."""
        while len(node.aims):
            if not self._close(node, deadline.part(1 / len(node.aims)), result, limit):
                return False
        return True

    def _close(self, node: _Node, deadline: Deadline, result: SearchResult, limit: int) -> bool:
        """Prove the easiest aim of a node by the plain search."""
        place = int(node.part.bound.argmax())
        one = slice(place, place + 1)
        part, aim = node.part.pick(one), node.aims.pick(one)
        proved = self._clips and self._clip_away(part, aim, node, deadline, result)
        if not proved and (limit > PLAIN_LIMIT or not self._clips):
            proved = self._search_below(part, aim, deadline, result, limit)
        if proved:
            keep = torch.arange(len(node.aims)) != place
            node.part, node.aims = node.part.pick(keep), node.aims.pick(keep)
        return proved

    def _search_below(
        self, part: SignSubdomains, aim: Aims, deadline: Deadline, result: SearchResult, limit: int
    ) -> bool:
        tree = SignTree.of(self._bounds, part, aim)
        proved = self._search.search(tree, deadline, result, limit)
        if proved:
            self._proofs.add_tree(tree)
        return proved

    def _clip_easiest(self, node: _Node, deadline: Deadline, result: SearchResult) -> None:
        """Clip away the aims of a node whose margins are within reach, by what succeeded and failed before."""
        while len(node.aims):
            margin = float(-node.part.bound.max())
            if margin > self._reach or deadline.passed:
                return
            if not self._close(node, deadline, result, 0):
                self._reach = CLIP_HARDER * margin
                return
            self._reach = max(self._reach, CLIP_EASIER * margin)

    def _clip_away(
        self, part: SignSubdomains, aim: Aims, node: _Node, deadline: Deadline, result: SearchResult
    ) -> bool:
        """Prove one aim by clipping hulls with it and bounding it again, in turns, as long as that gets on."""
        whole, before, slow, slopes = part.pick(slice(None)), (-torch.inf, torch.inf), 0, node.slopes
        alone = len(node.aims) == 1
        for _ in range(CLIP_ROUNDS):
            margin, _ = self._bounds.bound(part, aim, NODE_STEPS)
            result.subdomains += 1
            if bool(margin > 0):
                self._proofs.add(part, aim)
                return True
            width = part.open_width
            gained = float(margin) > (1 - CLIP_PROGRESS) * before[0] or width < (1 - CLIP_PROGRESS) * before[1]
            slow = 0 if gained else slow + 1
            if slow > CLIP_PATIENCE or deadline.passed:
                return False
            before = float(margin), width
            clipped = self._hulls.clip(part, slopes, AIM_STEPS, self._bounds.unsafe(part, aim))
            if clipped is None:
                self._proofs.add(whole, aim)
                return True
            slopes = clipped[0]
            if alone:  # then what follows may use it
                node.part, node.slopes = part, slopes
        return False

    def _split(self, node: _Node, result: SearchResult, deadline: Deadline) -> tuple[list[_Node] | None, float]:
        """The two pieces of the best of several candidates, and the share of the loss that both took off together.

        Each candidate is bounded on both sides. There are no pieces, None, where no neuron is open.
        """
        best: tuple[float, list[_Node]] | None = None
        best_gain = 0.0
        for neuron in self._candidates(node):
            if deadline.passed:
                break
            pieces = [self._piece(node, neuron, side) for side in (1.0, -1.0)]
            result.subdomains += 2
            losses = [piece.loss for piece in pieces]
            narrowed = [1 - piece.part.open_width / max(node.part.open_width, 1e-9) for piece in pieces]
            shares = [(node.loss - loss) / max(node.loss, 1e-9) for loss in losses]
            gain = sum(shares)
            merit = prod(
                max(share, 0.0) + WIDTH_SHARE * less + ONE_SIDED for share, less in zip(shares, narrowed, strict=True)
            )
            total, count = self._gains.get(neuron, (0.0, 0))
            self._gains[neuron] = total + merit, count + 1
            if best is None or merit > best[0]:
                best, best_gain = (merit, pieces), gain
            if not any(losses):
                break
        if best is None:
            return None, 0.0
        open_: list[_Node] = []
        for piece in best[1]:
            self._proofs.add(*piece.closed)
            if len(piece.aims):
                result.subdomains += len(piece.aims)
                piece = self._sharpened(piece)
                self._proofs.add(*piece.closed)
                if len(piece.aims) and self._search.attack(result):
                    return [], best_gain
            if len(piece.aims):
                open_.append(piece)
        return open_, best_gain

    def _candidates(self, node: _Node) -> list[int]:
        """Neurons worth a trial: those that did well before, and the best-scored of each layer."""
        known, fresh = [], []
        for at in self._layout.places:
            scores = node.scores[at.section]
            value, index = scores.topk(min(PER_LAYER, scores.shape[0]))
            fresh += [(float(v), at.section.start + int(i)) for v, i in zip(value, index, strict=True) if v > 0]
        for neuron, (total, count) in self._gains.items():
            if float(node.scores[neuron]) > 0:
                known.append((total / count, neuron))
        known.sort(reverse=True)
        fresh = sorted((pair for pair in fresh if pair[1] not in self._gains), reverse=True)
        first = not self._gains
        chosen = [neuron for _, neuron in known[:CANDIDATES]]
        chosen += [neuron for _, neuron in (fresh if first else fresh[:1])]
        if not chosen and bool((node.scores > 0).any()):
            chosen = [int(node.scores.argmax())]
        return chosen

    def _piece(self, node: _Node, neuron: int, side: float) -> _Node:
        """The subdomain with one more sign fixed, and hulls behind it refreshed."""
        part = node.part.copy()
        (part.lower if side > 0 else part.upper)[:, neuron] = 0.0
        part.sign[:, neuron] = side
        later = [at.source for at in self._bounds.layout.places if at.section.start > neuron]
        behind = {name: node.slopes[name] for name in later if name in node.slopes}
        clipped = self._hulls.clip(part, behind, 0)
        if clipped is None:
            return self._nothing(part, node.aims)
        slopes, cost = clipped
        return self._bounded(part, node.aims, TRIAL_STEPS, {**node.slopes, **slopes}, cost)

    def _sharpened(self, node: _Node) -> _Node:
        """A node whose hulls have been clipped by its signs, and where just one aim is open by that as well."""
        part = node.part.pick(slice(None))
        slopes, cost = node.slopes, node.scores
        if self._clips:
            clipped = self._hulls.clip(part, node.slopes, CLIP_STEPS)
            if clipped is None:
                return self._nothing(part, node.aims)
            slopes, cost = clipped
        return self._bounded(part, node.aims, NODE_STEPS, slopes, cost)

    def _nothing(self, part: SignSubdomains, aims: Aims) -> _Node:
        none = slice(0, 0)
        return _Node(part.pick(none), aims.pick(none), torch.zeros_like(part.lower[0]), (part, aims), {})

    def _bounded(
        self, part: SignSubdomains, aims: Aims, steps: int, slopes: Slopes, cost: Tensor | None = None
    ) -> _Node:
        """A node of a subdomain's aims that its bounds leave open."""
        bound, scores = self._bounds.bound(part, aims, steps)
        part.bound = torch.fmax(part.bound, bound) if cost is None else bound
        total = scores.clamp(min=0).sum(dim=0)
        total = total / total.sum().clamp(min=torch.finfo(total.dtype).tiny)
        open_ = part.open_neurons[0]
        mixed = (total if cost is None else total + cost) * open_ + torch.finfo(total.dtype).tiny * open_
        keep = ~(part.bound > 0)
        return _Node(part.pick(keep), aims.pick(keep), mixed, (part.pick(~keep), aims.pick(~keep)), slopes)
