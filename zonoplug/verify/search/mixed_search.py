"""Branch and bound on input boxes and phases of ReLUs in one tree, with constraints that contract both."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder
from zonoplug.verify.bounds.mixed_bounds import MixedBounds
from zonoplug.verify.branching.mixed import MixedFacts, inputs, mixed_rule
from zonoplug.verify.constraints.mixed import clip_bounds, contract_boxes
from zonoplug.verify.observer import Observer
from zonoplug.verify.problem.problem import Objective, Problem
from zonoplug.verify.search.base import BoxwiseSearch, SearchResult
from zonoplug.verify.subdomains.batch import take
from zonoplug.verify.subdomains.mixed import Margins, MixedSubdomains, pieces_of
from zonoplug.verify.subdomains.relu_phases import Properties

ROOT_STEPS = 40
STEPS = 8
TRIAL_STEPS = 3
CANDIDATES = 4
BATCH = 512
STATE_BYTES = 16 * 2**20  # of the subdomains in a step; the queue holds at most as much for each level of the tree
WORTH_ANOTHER = 0.95  # contraction to this share of what relaxations can cost is followed by new bounds before a split


class MixedSearch(BoxwiseSearch):
    """Proves disjuncts by splits of inputs and of ReLUs, whichever makes more progress.

    Args:
        problem, bounder, attack, observer, without: see `Search`.
        branching: which neuron or input to split: a name in `MIXED_RULES`, or "auto".
    Raises:
        UnknownNameError: no rule is called so.
        UnsupportedOperatorError: backward bounds do not pass the network, or it has no ReLUs.
    """

    def __init__(
        self,
        problem: Problem,
        bounder: Bounder,
        attack: Attack,
        observer: Observer | None = None,
        without: Collection[str] = (),
        branching: str = "auto",
    ) -> None:
        super().__init__(problem, bounder, attack, observer, without)
        if bounder.backward is None or not bounder.backward.relus:
            raise UnsupportedOperatorError("Backward bounds do not pass this network, or it has no ReLUs.")
        self._rule = mixed_rule(branching)
        self._tries = CANDIDATES if branching == "trial" else 1

    def _search_box(self, objective: Objective, deadline: Deadline, result: SearchResult) -> bool:
        properties = Properties.of(objective, self._box_number)
        self._bounds = MixedBounds(self._bounder, self._box, properties)
        root = self._bounds.root()
        batch = max(1, min(BATCH, STATE_BYTES // root.bytes_each))
        for piece in torch.arange(len(root)).split(batch):
            self._check_root(self._bounds.margins(root.pick(piece), STEPS).bound, properties.pick(piece))
        queue, steps = [root], ROOT_STEPS
        while queue:
            if deadline.passed:
                return False
            part = take(queue, batch)
            again, split, found = self._bounded(part, steps, result, sum(map(len, queue)))
            steps = STEPS
            if len(again):
                queue.append(again)
            if len(split):
                points = found.minimiser.unflatten(1, self._problem.box.lower.shape[1:])
                if self._attacked(points, self._box_number, result):
                    return False
                pieces = self._split(split, found, result)
                if pieces is None:
                    return False
                if len(pieces):
                    queue.append(pieces)
        return True

    def _bounded(
        self, part: MixedSubdomains, steps: int, result: SearchResult, waiting: int
    ) -> tuple[MixedSubdomains, MixedSubdomains, Margins]:
        """What is open of some subdomains: to be bounded again since the box shrank; to be split, and facts on that."""
        gone = self._bounds.refresh(part)
        found = self._bounds.margins(part, 0)  # which is enough for most that can be proved at all
        part.bound = found.bound
        result.subdomains += len(part)
        whole, left = part, (~gone & ~(found.bound > 0)).nonzero().flatten()
        part, found = part.pick(left), found.pick(left)
        shrunk = left > -1
        if len(part):
            found = self._bounds.margins(part, steps)
            part.bound = found.bound
            before = self._cost(part, found)
            gone = found.bound > 0
            if "contraction" not in self._without:
                gone |= contract_boxes(self._bounds.layers, part, found)
            if "clipping" not in self._without:
                gone |= clip_bounds(self._bounds.layers, part, found)
            shrunk = (self._cost(part, found) < WORTH_ANOTHER * before)[~gone]
            part, found, left = part.pick(~gone), found.pick(~gone), left[~gone]
        open_ = torch.zeros_like(whole.bound, dtype=torch.bool)
        open_[left] = True
        whole.bound[left] = part.bound
        self._observer.pieces(whole.share, open_, whole.bound, waiting)
        return part.pick(shrunk), part.pick(~shrunk), found.pick(~shrunk)

    @staticmethod
    def _cost(part: MixedSubdomains, found: Margins) -> Tensor:
        """What the relaxations of all unstable neurons can cost the bound at most, (n,)."""
        return (part.relaxation_costs(found.coefficients).clamp(min=0) * (found.coefficients < 0)).sum(dim=1)

    def _split(self, part: MixedSubdomains, found: Margins, result: SearchResult) -> MixedSubdomains | None:
        """The pieces of subdomains; None where one cannot be split."""
        facts = MixedFacts(part, found, self._bounds.layers.values(found.point))
        scores = self._rule(facts)
        scores = torch.where((scores.amax(dim=1) < 0).unsqueeze(1), inputs(facts), scores)
        best, places = scores.topk(min(self._tries, scores.shape[1]), dim=1)
        if bool((best[:, 0] < 0).any()):
            result.stuck += int((best[:, 0] < 0).sum())
            return None
        if self._tries > 1:
            chosen = self._try_out(part, places.masked_fill(best < 0, -1), result)
        else:
            chosen = places[:, 0]
        above, below = pieces_of(part, chosen)
        neurons = int((chosen < part.sign.shape[1]).sum())
        self._observer.split("activation", neurons)
        self._observer.split("input", len(part) - neurons)
        pieces = MixedSubdomains.join([above, below])
        return pieces.pick(pieces.bound.argsort(descending=True))

    def _try_out(self, part: MixedSubdomains, places: Tensor, result: SearchResult) -> Tensor:
        """The place of each subdomain, (n,), whose pieces do best in a short trial; `places` (n, candidates)."""
        count = places.shape[1]
        many = part.pick(torch.arange(len(part)).repeat_interleave(count))
        tried = places.flatten()
        tried = torch.where(tried < 0, places[:, :1].expand_as(places).flatten(), tried)
        gains = []
        for piece in pieces_of(many, tried):
            gone = self._bounds.refresh(piece)
            bound = self._bounds.margins(piece, TRIAL_STEPS).bound
            bound = torch.where(gone, torch.inf, bound).clamp(max=0)
            gains.append((bound - many.bound).clamp(min=0) / -many.bound)
            result.subdomains += len(piece)
        total = (gains[0].clamp(min=1e-3) * gains[1].clamp(min=1e-3)).unflatten(0, (-1, count))
        return places.gather(1, total.argmax(dim=1, keepdim=True)).squeeze(1)
