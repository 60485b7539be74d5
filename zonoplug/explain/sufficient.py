"""Certified sufficient sets: features that alone settle the decision, whatever all others do in the box.

First certificates from single propagations free many features at once; then a traversal asks an oracle about the rest;
last, an attack shows for each feature that is left what happens without it. What is proved stays proved: the set
returned was the very question of a certificate or of an oracle that said yes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.errors import SettingError
from zonoplug.explain.certificate import Certificate
from zonoplug.explain.counterfactual import attack_boxes
from zonoplug.explain.decision import Decision, network_outputs
from zonoplug.explain.influence import SymbolInfluence
from zonoplug.explain.region import Region
from zonoplug.explain.traversals import TRAVERSALS, Answer

MOST_PASSES = 24
LEAST_STEP = 1 / 50  # of all features: smaller steps are the traversal's
ATTACK_BATCH = 256

OracleTensor = Callable[[Tensor], Answer]  # (features,) bool, True where free


@dataclass(slots=True, eq=False)
class SufficientSet:
    """A certified sufficient set of features, and how it was found.

    Attributes:
        kept: features whose values settle the decision, most influential first.
        free: (features,) the others: whatever they are in the box, the decision stands.
        needed: (features,) True where an attack or the oracle showed that freeing this one too breaks the decision.
        importance: (features,) influence, as last known.
        by_certificate: how many features the certificates freed.
        passes, calls: propagations for certificates, and questions to the oracle.
        counterexamples: feature -> a point (1, *shape) where the decision falls if that feature is freed too.
        seconds: wall time.
    """

    kept: list[int]
    free: Tensor
    needed: Tensor
    importance: Tensor
    by_certificate: int
    passes: int
    calls: int
    counterexamples: dict[int, Tensor] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def size(self) -> int:
        return len(self.kept)

    @property
    def share_needed(self) -> float:
        """The share of kept features proved to be needed; 1 means that the set is proved minimal."""
        return 1.0 if not self.kept else float(self.needed.sum()) / len(self.kept)


def sufficient_set(
    explainer: SymbolInfluence | None,
    region: Region,
    decision: Decision,
    oracle: OracleTensor | None = None,
    traversal: str = "binary",
    importance: Tensor | None = None,
    network: torch.nn.Module | None = None,
    deadline: Deadline | None = None,
    patience: int | None = None,
) -> SufficientSet:
    """A sufficient set of features for the decision at the region's point.

    Args:
        explainer: for the certificates; without one only the oracle frees features.
        oracle: asked about the rest; any function from free features to an answer, such as a `BoundOracle`, a
            `VerifierOracle`, or a bound on a smaller network that stands for this one. None: certificates only.
        traversal: the order of questions to the oracle; see `TRAVERSALS`.
        importance: (features,) the order in which features are kept; by symbol influence if None.
        network: attacked at the end, to show which features are needed; None: not attacked.
        deadline: no question is asked after it, and what is proved by then is returned.
        patience: the oracle is not asked any more once it refused this many single features in a row; None: it is asked
            about all. Least influential features are asked about first, so later ones are the less likely to be freed.
    Raises:
        SettingError: the decision does not stand at the point itself, or there is neither explainer nor importance.
    """
    start = time.monotonic()
    deadline = deadline or Deadline(float("inf"))
    known = network if network is not None else None if explainer is None else explainer.network
    if known is not None and not bool((decision.margins(network_outputs(known, region.point)) > 0).all()):
        raise SettingError("The network does not make this decision at the point itself: there is nothing to explain.")
    if importance is None and explainer is None:
        raise SettingError("A sufficient set needs symbol influence, or an importance of features to go by.")
    nothing = torch.zeros(region.num_features, dtype=torch.bool)
    found = _Certified(nothing, torch.zeros(region.num_features) if importance is None else importance, 0)
    if explainer is not None:
        found = _by_certificates(explainer, region, decision, importance, deadline)
    free, calls = found.free, 0
    needed, examples = nothing.clone(), dict[int, Tensor]()
    order = [int(f) for f in found.importance.argsort(stable=True) if not bool(free[f])]
    if oracle is not None and order:
        asked = _Recorded(oracle, region.num_features, deadline, free, patience)
        TRAVERSALS.get(traversal)(order, frozenset(free.nonzero().flatten().tolist()), asked)
        free, calls = asked.largest, asked.calls
        for question in asked.refuted:
            extra = question & ~free
            if int(extra.sum()) == 1 and not bool((free & ~question).any()):
                needed |= extra
    kept = [feature for feature in reversed(order) if not bool(free[feature])]
    if network is not None:
        left = [feature for feature in kept if not bool(needed[feature])]
        for some in (left[i : i + ATTACK_BATCH] for i in range(0, len(left), ATTACK_BATCH)):
            if deadline.passed:
                break
            questions = free.repeat(len(some), 1)
            questions[torch.arange(len(some)), torch.tensor(some)] = True
            result = attack_boxes(network, region.freed(questions), decision)
            for feature, point, violated in zip(some, result.points, result.violated.tolist(), strict=True):
                if violated:
                    needed[feature] = True
                    examples[feature] = point[None]
    seconds = time.monotonic() - start
    by_certificate = int(found.free.sum())
    return SufficientSet(kept, free, needed, found.importance, by_certificate, found.passes, calls, examples, seconds)


@dataclass(slots=True, eq=False)
class _Recorded:
    """The judge as traversals see it: counts, remembers, and asks nothing after the deadline."""

    oracle: OracleTensor
    features: int
    deadline: Deadline
    largest: Tensor
    patience: int | None = None
    calls: int = 0
    refusals: int = 0
    refuted: list[Tensor] = field(default_factory=list)

    def __call__(self, free: frozenset[int]) -> Answer:
        if self.deadline.passed or (self.patience is not None and self.refusals >= self.patience):
            return Answer.UNKNOWN
        question = torch.zeros(self.features, dtype=torch.bool)
        question[list(free)] = True
        self.calls += 1
        answer = self.oracle(question)
        if answer is Answer.PROVED and int(question.sum()) > int(self.largest.sum()):
            self.largest = question
            self.refusals = 0
        elif answer is Answer.REFUTED:
            self.refuted.append(question)
        if answer is not Answer.PROVED and int(question.sum()) == int(self.largest.sum()) + 1:
            self.refusals += 1
        return answer


@dataclass(slots=True, eq=False)
class _Certified:
    free: Tensor
    importance: Tensor
    passes: int


def _by_certificates(
    explainer: SymbolInfluence, region: Region, decision: Decision, importance: Tensor | None, deadline: Deadline
) -> _Certified:
    """Free features by certificates alone, each over what is free already and some more.

    With fewer features moving a propagation is tighter, so its certificate covers more of them. The number added
    halves where a certificate frees no more than before.
    """
    count = region.num_features
    free = torch.zeros(count, dtype=torch.bool)
    margins = decision.margins(network_outputs(explainer.network, region.point))[0].double().cpu()
    fixed = importance is not None
    score = torch.full((count,), -torch.inf, dtype=torch.float64) if importance is None else importance.double().cpu()
    step, least, passes = count, max(1, int(LEAST_STEP * count)), 0
    while step >= least and not bool(free.all()) and passes < MOST_PASSES and not deadline.passed:
        rest = score.masked_fill(free, torch.inf).argsort(stable=True)[: count - int(free.sum())]
        tried = free.clone()
        tried[rest[:step]] = True
        passes += 1
        influence = explainer.influence(region.point, decision, region.freed(tried))
        certificate = Certificate.of(influence, region, tried)
        if not fixed:
            fresh = (certificate.cost / margins).amax(dim=1)
            score = torch.where(tried & fresh.isfinite(), fresh, score)
        gained = tried if certificate.allows(tried) else certificate.largest()
        if int(gained.sum()) > int(free.sum()):
            step = 2 * step if bool((gained == tried).all()) else step
            free = gained
        else:
            step //= 2
        step = min(step, int((~free).sum()))
    return _Certified(free, score.clamp(min=0).nan_to_num(), passes)
