"""Merging by a randomised low-rank factorisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS
from zonoplug.reduction.merging import Merged, MergeReduction, enclose_product


@REDUCTIONS.register("lowrank")
@dataclass(frozen=True)
class LowRank(MergeReduction):
    """Merge the reduced part into its principal directions, found by random projection; box what is left over.

    A random combination of generators spans, nearly, what the large ones span: with Y = Omega G_R and an orthonormal
    basis U of Y's rows, C = G_R U^T, turned to its own principal axes. Only the reduced part is projected: a basis of
    all generators would mix those that had better stay. Cost O(k n r), no n x n matrix. `lowrank:7` sets the seed.

    Attributes:
        seed: of the projection.
    """

    source: ClassVar[str] = "Halko, Martinsson, Tropp, SIAM Review 2011 (range finder); Kopetzki et al., CDC 2017 (PCA)"
    option: ClassVar = ("seed", int)
    seed: int = 0

    def merge(self, generators: Tensor, count: int, shape: tuple[int, ...]) -> Merged:
        k, n = generators.shape[1:]
        rank = min(count, n)
        scale = generators.abs().amax(dim=(1, 2), keepdim=True)
        scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
        scaled = (generators / scale).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        random = torch.Generator().manual_seed(self.seed)
        omega = torch.randn(rank, k, generator=random, dtype=torch.float64).to(generators)
        basis = torch.linalg.qr((omega @ scaled).transpose(1, 2)).Q
        _, _, axes = torch.linalg.svd(scaled @ basis, full_matrices=False)
        frame = axes @ basis.transpose(1, 2)
        return enclose_product(generators, frame, generators @ frame.transpose(1, 2))
