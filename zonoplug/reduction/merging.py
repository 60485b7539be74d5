"""Merging: what is reduced keeps a few generators of its own, and only the rest goes to the box.

    G_R = P C + rest      for any P and C, with  rest = G_R - P C  computed as written

so  {G_R e : |e_j| <= 1}  lies in  {P diag(sum_j |C_j|) f : |f_i| <= 1} + box(sum_j |rest_j|).  No condition on rank or
orthogonality is needed: a bad choice of P and C is loose, never wrong. The f are fresh symbols: for every e there is an
f and a point of the box that give the same point, whatever other values the e move.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from zonoplug.domain import rounding
from zonoplug.domain.symbols import SymbolIds
from zonoplug.domain.zonotope import Zonotope
from zonoplug.errors import ReductionRefusedError
from zonoplug.reduction.base import BoxReduction, Reduction, marks_of
from zonoplug.reduction.columns import boxed, dense_block, divide, written_out
from zonoplug.reduction.context import ReductionContext
from zonoplug.reduction.l1 import L1

MERGED_ENTRIES = 1 << 26  # of the generators that are merged; the shortest beyond that are boxed


class Merged(NamedTuple):
    """What becomes of the reduced part: generators (batch, r, n), and a box (batch, n)."""

    generators: Tensor
    box: Tensor


@dataclass(frozen=True)
class MergeReduction(Reduction):
    """Keep the longest generators, merge the others into a few.

    Attributes:
        share: of the budget that merged generators get, above 0 and at most 1; the rest is for generators kept as they
            are.
        keep: decides which those are. By length, since Girard's score takes symbols fresh from an activation for
            worthless.
    """

    share: float = 0.25
    keep: BoxReduction = field(default_factory=L1)

    @abstractmethod
    def merge(self, generators: Tensor, count: int, shape: tuple[int, ...]) -> Merged:
        """Enclose the generators (batch, k, n), k > count, in at most `count` and a box.

        Args:
            shape: of the value they belong to; n = prod(shape).
        """

    def _reduce(
        self, zonotope: Zonotope, max_symbols: int, protected: SymbolIds, context: ReductionContext
    ) -> Zonotope:
        free = max_symbols - protected.shape[0]
        count = min(free, max(1, round(self.share * free)))
        best, _ = self.keep.order(zonotope, protected, context)
        kept = marks_of(best[: max_symbols - count], best.shape[0])
        if count == 0:
            return boxed(zonotope, kept)
        source = context.source
        if source is None:
            raise ReductionRefusedError(
                f"{type(self).__name__} makes fresh symbols and needs to know which ids are free."
                " Pass context=ReductionContext(source=...), the source that the zonotope's symbols came from."
            )
        last = max_symbols - count + max(count + 1, MERGED_ENTRIES // max(zonotope.center.numel(), 1))
        near = marks_of(best[:last], best.shape[0])
        candidates = boxed(zonotope, near)
        inside, middle = divide(candidates, kept[near])
        generators = written_out(zonotope, middle)
        merged = self.merge(generators, count, zonotope.shape)
        if not bool(merged.generators.isfinite().all() & merged.box.isfinite().all()):
            return boxed(zonotope, kept)
        ids = source.fresh(f"reduction at {context.node}", merged.generators.abs().argmax(dim=2))
        block = dense_block(zonotope, ids, merged.generators)
        box = merged.box.reshape(zonotope.center.shape)
        return Zonotope(zonotope.center, (*inside, block), candidates.box).widen(box)


def enclose_product(generators: Tensor, frame: Tensor, coefficients: Tensor) -> Merged:
    """Enclose generators by a frame P and any coefficients C, as the formula above says.

    Args:
        generators: (batch, k, n), rows are generators.
        frame: (batch, r, n).
        coefficients: (batch, k, r): generator j is nearly sum_i C_ji P_i.
    """
    rest = generators - torch.bmm(coefficients, frame)
    lengths = rounding.sum_up(coefficients.abs().sum(dim=1), coefficients.shape[1])
    box = rounding.sum_up(rest.abs().sum(dim=1), rest.shape[1])
    if rounding.active():
        spread = generators.abs().sum(dim=1) + torch.einsum("bkr,brn->bn", coefficients.abs(), frame.abs())
        terms = frame.shape[1] + generators.shape[1]
        box = rounding.up(box + 2 * spread * rounding.gamma(terms + 4, spread.dtype))
        box = rounding.up(box + lengths.unsqueeze(1).bmm(frame.abs()).squeeze(1) * rounding.gamma(4, spread.dtype))
    return Merged(frame * lengths.unsqueeze(2), box)


def along_directions(generators: Tensor, directions: Tensor, cluster: Tensor) -> Merged:
    """Enclose each generator along the direction of its cluster, what stands across in the box.

        g_j = a_j u + r_j,  a_j = g_j . u      cluster -> u sum |a_j|,  box -> sum |r_j|

    Exact for generators parallel to their direction. A cluster of one keeps its generator as it is.

    Args:
        generators: (batch, k, n).
        directions: u, (batch, r, n), unit vectors or 0.
        cluster: (batch, k) in [0, r), or -1 for generators that go to the box as they are.
    """
    batch, count, n = generators.shape
    inside = cluster >= 0
    index = cluster.clamp(min=0)
    own = directions.gather(1, index.unsqueeze(2).expand(batch, count, n))
    length = (generators * own).sum(dim=2).masked_fill(~inside, 0)
    coefficients = generators.new_zeros(batch, count, directions.shape[1]).scatter(
        2, index.unsqueeze(2), length[:, :, None]
    )
    return enclose_product(generators, directions, coefficients)


def unit(vectors: Tensor) -> Tensor:
    """Vectors along the last axis, scaled to length 1; 0 stays 0, and nothing overflows on the way."""
    tiny = torch.finfo(vectors.dtype).tiny
    scaled = vectors / vectors.abs().amax(dim=-1, keepdim=True).clamp(min=tiny)
    result: Tensor = scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp(min=tiny)
    return result


def longest_first(generators: Tensor) -> Tensor:
    """(batch, k): the order of generators (batch, k, n) from the longest, by the sum of absolute entries."""
    return generators.abs().sum(dim=2).argsort(dim=1, descending=True, stable=True)


def choose(generators: Tensor, index: Tensor) -> Tensor:
    """The generators (batch, k, n) at the places (batch, m): (batch, m, n)."""
    return generators.gather(1, index.unsqueeze(2).expand(*index.shape, generators.shape[2]))
