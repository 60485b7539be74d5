"""Frame methods of the control literature, restated: a few generators are the frame, all others are absorbed by it.

They were made for few coordinates and more symbols than coordinates. Here the frame has as many members as the budget
gives it, and what they cannot express goes to the box, so a rank-deficient frame is loose, not wrong.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.errors import ReductionRefusedError
from zonoplug.reduction.merging import Merged, MergeReduction, choose, enclose_product

MAX_COORDINATES = 4096


@dataclass(frozen=True)
class FrameReduction(MergeReduction):
    """Keep the longest generators, absorb the others in a frame.  Refuses values with more than 4096 coordinates."""

    share: float = 0.5

    @abstractmethod
    def frame(self, generators: Tensor, count: int) -> Tensor:
        """Frame vectors (r, n), 1 <= r <= count, for one element's finite generators (k, n)."""

    def merge(self, generators: Tensor, count: int, shape: tuple[int, ...]) -> Merged:
        batch, _, n = generators.shape
        if n > MAX_COORDINATES:
            raise ReductionRefusedError(
                f"{type(self).__name__} needs matrices of {n} x {n} numbers here, and goes up to {MAX_COORDINATES}"
                " coordinates. For larger values use lowrank, cluster or a boxing rule such as l1."
            )
        scale = generators.abs().amax(dim=(1, 2), keepdim=True)
        scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
        scaled = (generators / scale).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        frames = [self.frame(scaled[element], count) for element in range(batch)]
        size = max(frame.shape[0] for frame in frames)
        frame = torch.stack([torch.cat([f, f.new_zeros(size - f.shape[0], n)]) for f in frames])
        # Any coefficients are sound, so the pseudo-inverse needs no guard against dependent frame vectors.
        return enclose_product(generators, frame, generators @ torch.linalg.pinv(frame))


def most_independent(generators: Tensor, count: int, start: int | None = None) -> Tensor:
    """Greedily the generators (k, n) that stand out most from the span of those before: places (r,), r <= count.

    Args:
        start: the first one; the longest if None.
    """
    rest = generators.clone()
    places: list[int] = []
    largest = torch.linalg.vector_norm(generators, dim=1).max()
    for step in range(min(count, generators.shape[1], generators.shape[0])):
        lengths = torch.linalg.vector_norm(rest, dim=1)
        place = start if step == 0 and start is not None else int(lengths.argmax())
        if not bool(lengths[place] > 1e-6 * largest):
            break
        places.append(place)
        direction = rest[place] / lengths[place]
        rest = rest - (rest @ direction)[:, None] * direction
    return torch.tensor(places or [0], dtype=torch.int64, device=generators.device)


def hull_size(generators: Tensor, frame: Tensor) -> Tensor:
    """How large the enclosure by each of several frames is: its volume, or its hull's width where no volume exists.

    Args:
        generators: (k, n); frame: (frames, r, n).
    Returns:
        (frames,), infinite for dependent frame vectors of full number.
    """
    many = generators.expand(frame.shape[0], *generators.shape)
    if frame.shape[1] < generators.shape[1]:
        merged = enclose_product(many, frame, many @ torch.linalg.pinv(frame))
        return merged.generators.abs().sum(dim=(1, 2)) + merged.box.sum(dim=1)
    lengths = (many @ torch.linalg.pinv(frame)).abs().sum(dim=1)
    logarithm = torch.linalg.slogdet(frame).logabsdet + lengths.clamp(min=torch.finfo(frame.dtype).tiny).log().sum(
        dim=1
    )
    return torch.where(logarithm.isfinite(), logarithm, torch.full_like(logarithm, torch.inf))


def choose_one(generators: Tensor, index: Tensor) -> Tensor:
    """The generators (k, n) at places (m, r): (m, r, n)."""
    return choose(generators.expand(index.shape[0], *generators.shape), index)
