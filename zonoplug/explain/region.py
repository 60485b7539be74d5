"""A point, the box around it, and the features that may be freed to move in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.errors import SettingError


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Inputs around one point, in features: freeing one lets all its coordinates move in the box.

    Attributes:
        point: (1, *shape).
        box: around the point, (1, *shape).
        features: (*shape) int64, the feature of each coordinate: 0 to n - 1, each in use.
    Raises:
        SettingError: the point is outside the box, or features are not numbered without gaps.
    """

    point: Tensor
    box: Box
    features: Tensor

    def __post_init__(self) -> None:
        if self.point.shape[0] != 1 or self.box.lower.shape != self.point.shape:
            raise SettingError(
                f"Region: one point (1, *shape) in a box of that shape; got {tuple(self.point.shape)} in a box of"
                f" {tuple(self.box.lower.shape)}."
            )
        if not bool(((self.box.lower <= self.point) & (self.point <= self.box.upper)).all()):
            raise SettingError("Region: the point lies outside the box.")
        if self.features.shape != self.point.shape[1:]:
            raise SettingError(
                f"Region: features have shape {tuple(self.features.shape)}, the point {tuple(self.point.shape[1:])}."
            )
        used = torch.unique(self.features)
        if not torch.equal(used.cpu(), torch.arange(used.numel())):
            raise SettingError("Region: features must be numbered 0 to n - 1, each in use.")

    @classmethod
    def ball(
        cls,
        point: Tensor,
        radius: float,
        lower: float | Tensor = -torch.inf,
        upper: float | Tensor = torch.inf,
        features: Tensor | None = None,
    ) -> Region:
        """The l-infinity ball around a point (1, *shape), cut to the valid range; a feature for each coordinate.

        Args:
            lower, upper: the valid range of inputs.
        """
        low, high = torch.as_tensor(lower).to(point), torch.as_tensor(upper).to(point)
        box = Box(
            torch.minimum(torch.maximum(point - radius, low), point),
            torch.maximum(torch.minimum(point + radius, high), point),
        )
        return cls(point, box, single_features(point.shape[1:]) if features is None else features)

    @property
    def num_features(self) -> int:
        return int(self.features.max()) + 1 if self.features.numel() else 0

    def mask(self, free: Tensor) -> Tensor:
        """The coordinates of free features, on the point's device: (features,) or (m, features) bool to (m, *shape)."""
        return free[..., self.features].to(self.point.device)

    def freed(self, free: Tensor) -> Box:
        """The box in which only free features move: (features,) -> (1, *shape), (m, features) -> (m, *shape)."""
        mask = self.mask(free if free.dim() == 2 else free[None])
        return Box(torch.where(mask, self.box.lower, self.point), torch.where(mask, self.box.upper, self.point))

    def per_feature(self, values: Tensor) -> Tensor:
        """Sums over each feature's coordinates: (m, *shape) -> (m, features)."""
        flat = values.flatten(1)
        total = flat.new_zeros(flat.shape[0], self.num_features)
        return total.index_add(1, self.features.flatten().to(flat.device), flat)


def single_features(shape: torch.Size | tuple[int, ...]) -> Tensor:
    """A feature for each coordinate."""
    return torch.arange(torch.Size(shape).numel()).reshape(tuple(shape))


def pixel_features(shape: torch.Size | tuple[int, ...]) -> Tensor:
    """A feature for each pixel of an image (channels, height, width): its channels are freed together."""
    if len(shape) != 3:
        return single_features(shape)
    return torch.arange(shape[1] * shape[2]).reshape(1, shape[1], shape[2]).expand(tuple(shape)).contiguous()
