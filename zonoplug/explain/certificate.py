"""The one-pass certificate: which features may move, judged from a single propagation over all of them.

A margin over a box is  c + sum_i a_i e_i +/- (sum_j |b_j| + box). A coordinate that is held at x has
e_i0 = (x_i - mid_i) / rad_i, which is 0 in the middle of its interval and not where the box was clipped. So for every
set F of freed coordinates

    margin >= c + sum_{i not in F} a_i e_i0 - sum_{i in F} |a_i| - sum_j |b_j| - box
            = slack - sum_{i in F} (|a_i| + a_i e_i0),     slack = c + sum_i a_i e_i0 - sum_j |b_j| - box.

To free as many features as possible under this bound, for all rivals at once, is a knapsack with costs >= 0.

The idea for linear bounds: Boumazouza, Elsaleh, Ducoffe, Bassan, Katz, ICLR 2026 (abstract batch certificates).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.errors import SettingError
from zonoplug.explain.influence import Influence
from zonoplug.explain.region import Region

KNAPSACK_ROUNDS = 24
RELATIVE_ERROR = 1e-12  # of the sums below, which are made in float64


@dataclass(frozen=True, slots=True, eq=False)
class Certificate:
    """A lower bound of each margin for every set of freed features.

    Attributes:
        slack: (rivals,) float64: the bound with nothing freed.
        cost: (features, rivals) float64 >= 0: what freeing a feature takes off.
        covered: (features,) True where the propagation let the feature move in its whole box; no other may be freed.
    """

    slack: Tensor
    cost: Tensor
    covered: Tensor

    @classmethod
    def of(cls, influence: Influence, region: Region, covered: Tensor | None = None) -> Certificate:
        """The certificate of one propagation over `region.freed(covered)`.

        It covers rounding as far as the propagation did.

        Args:
            influence: of a single input, over a box.
            covered: (features,) all by default.
        Raises:
            SettingError: the influence is not that of a single box.
        """
        if influence.center.shape[0] != 1:
            raise SettingError(f"Certificate: one input at a time, got a batch of {influence.center.shape[0]}.")
        generators = influence.inputs.radius()
        if influence.inputs.box is not None or influence.symbols.shape[2] > generators.numel():
            raise SettingError("Certificate: the input set must be a box, with a symbol for each coordinate.")
        middle, radius = influence.inputs.center[0].double(), generators[0].double()
        moves = radius > 0
        held = torch.where(moves, (region.point[0].double() - middle) / torch.where(moves, radius, 1.0), 0.0)
        signed = influence.signed()[0].double()
        magnitude = influence.magnitude()[0].double()
        slack = (
            influence.center[0].double() + (signed * held).flatten(1).sum(dim=1) - influence.unattributed[0].double()
        )
        cost = region.per_feature(magnitude + signed * held).T.clamp(min=0)
        size = influence.center[0].double().abs() + magnitude.flatten(1).sum(dim=1) + influence.unattributed[0].double()
        slack = slack - RELATIVE_ERROR * size
        everything = torch.ones(region.num_features, dtype=torch.bool)
        return cls(slack.cpu(), cost.cpu(), everything if covered is None else covered.cpu())

    def margin(self, free: Tensor) -> Tensor:
        """A lower bound of each margin, (rivals,), while the features (features,) move; -inf outside `covered`."""
        if bool((free.cpu() & ~self.covered).any()):
            return torch.full_like(self.slack, -torch.inf)
        return self.slack - self.cost[free.cpu()].sum(dim=0)

    def allows(self, free: Tensor) -> bool:
        """Whether all margins are proved above 0."""
        return bool((self.margin(free) > 0).all())

    def largest(self) -> Tensor:
        """As many features as the certificate lets free, (features,); none where it proves nothing.

        Greedy by weighted cost, with weights on rivals that grow where a rival's room runs out first. The best for one
        rival; for several, a set to which no feature can be added.
        """
        none = torch.zeros(self.cost.shape[0], dtype=torch.bool)
        if not self.allows(none):
            return none
        share = self.cost / self.slack
        share[~self.covered] = torch.inf
        weights = torch.ones(share.shape[1], dtype=share.dtype) / max(share.shape[1], 1)
        best = none
        for attempt in range(KNAPSACK_ROUNDS):
            measure = share.amax(dim=1) if attempt == 0 else share @ weights
            chosen, used = self._greedy(measure.argsort(stable=True), share)
            if int(chosen.sum()) > int(best.sum()) and self.allows(chosen):
                best = chosen
            weights = weights * torch.exp(2 * (used - used.max()))
            weights = weights / weights.sum()
        return best

    @staticmethod
    def _greedy(order: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
        """The longest prefix that fits, then of what still fits alone, until nothing does; and what each rival pays."""
        chosen = torch.zeros(order.shape[0], dtype=torch.bool)
        used = torch.zeros(share.shape[1], dtype=share.dtype)
        while order.numel():
            fits = (used + share[order].cumsum(dim=0) < 1).all(dim=1)
            count = int(fits.to(torch.int64).cumprod(dim=0).sum())
            chosen[order[:count]] = True
            used = used + share[order[:count]].sum(dim=0)
            order = order[count:]
            order = order[(used + share[order] < 1 - RELATIVE_ERROR).all(dim=1)]
        return chosen, used
