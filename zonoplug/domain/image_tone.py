"""Brightness and contrast as input sets: changes that depend on a pixel's own value and one setting."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from zonoplug.domain.affine_image import AffineImage
from zonoplug.domain.image_perturbations import OneSetting, rounding_radius

MAX_SHARED = 16  # symbols for errors that many pixels share


class _Tone(OneSetting):
    """x + d * direction(x),  |d| <= strength: equal pixels stay equal.

    So what clipping does beyond a linear function is the same for equal pixels, and they share its symbol: without that
    a black background would be as many unknowns as it has pixels.
    """

    @abstractmethod
    def direction(self, images: Tensor) -> Tensor:
        """How fast each value changes with d."""

    def raw(self, images: Tensor, settings: Tensor) -> Tensor:
        amount = (2 * self.along(settings) - 1) * self.strength
        exact = images.double()
        return (exact + amount.reshape(-1, 1, 1, 1) * self.direction(exact)).to(images.dtype)

    def raw_set(self, images: Tensor) -> AffineImage:
        low, high = self.within
        direction = self.direction(images)
        center = images + direction * (self.strength * (low + high - 1))
        generator = direction * (self.strength * (high - low))
        moved = (direction * self.strength).abs()
        return AffineImage(center, generator.unsqueeze(1), rounding_radius(images, moved))

    def input_set(self, images: Tensor) -> AffineImage:
        """A set that contains `perturb` of every setting, for each image (batch, channels, height, width)."""
        changed = super().input_set(images)
        return changed if changed.noise is None else share_noise(changed, images)


def share_noise(images: AffineImage, key: Tensor, limit: int = MAX_SHARED) -> AffineImage:
    """One symbol for the noise of all coordinates with equal `key`, instead of one for each coordinate.

    It is for the caller to know that they move together. Groups of one stay as they are, and so do all but the `limit`
    groups with the largest sum of radii, in each element of the batch.

    Args:
        key: (batch, *shape).
    """
    assert images.noise is not None
    noise = images.noise.clone()
    shared = noise.new_zeros(noise.shape[0], limit, *noise.shape[1:])
    for element in range(noise.shape[0]):
        values, group, count = key[element].unique(return_inverse=True, return_counts=True)
        total = noise.new_zeros(values.shape[0]).index_add_(0, group.flatten(), noise[element].flatten())
        total = total.masked_fill(count < 2, 0)
        for slot, chosen in enumerate(total.argsort(descending=True)[:limit].tolist()):
            members = (group == chosen) & (total[chosen] > 0)
            shared[element, slot][members] = noise[element][members]
            noise[element][members] = 0
    used = shared.flatten(2).any(dim=2).any(dim=0)
    return replace(images, generators=torch.cat([images.generators, shared[:, used]], dim=1), noise=noise)


@dataclass(frozen=True, slots=True)
class Brightness(_Tone):
    """x + d,  |d| <= strength, the same d for the whole image."""

    name: ClassVar[str] = "brightness"
    unit: ClassVar[str] = "largest shift of all values (range of values: 1)"
    strength: float
    clip: bool = True
    within: tuple[float, float] = (0.0, 1.0)

    def direction(self, images: Tensor) -> Tensor:
        return torch.ones_like(images)


@dataclass(frozen=True, slots=True)
class Contrast(_Tone):
    """1/2 + (1 + d) (x - 1/2),  |d| <= strength."""

    name: ClassVar[str] = "contrast"
    unit: ClassVar[str] = "largest relative change around mid-grey"
    strength: float
    clip: bool = True
    within: tuple[float, float] = (0.0, 1.0)

    def direction(self, images: Tensor) -> Tensor:
        return images - 0.5
