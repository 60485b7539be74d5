"""Principal directions as a frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.reduction.base import REDUCTIONS
from zonoplug.reduction.frames import FrameReduction


@REDUCTIONS.register("pca")
@dataclass(frozen=True)
class PCA(FrameReduction):
    """Absorb the reduced part in its principal directions.

    They are the right singular vectors of the reduced generators, the largest first; with fewer than coordinates the
    rest goes to the box. All generators rotated into such a basis would be worse: kept ones are left out.
    """

    source: ClassVar[str] = "Kopetzki, Schürmann, Althoff, CDC 2017, section III.A"

    def frame(self, generators: Tensor, count: int) -> Tensor:
        axes: Tensor = torch.linalg.svd(generators, full_matrices=False).Vh
        return axes[:count]
