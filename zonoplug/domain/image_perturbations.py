"""Realistic perturbations of images as input sets with a few symbols.

Images are (batch, channels, height, width), with values in [0, 1]. A perturbation has settings, numbers in [0, 1]
that an adversary or the weather chooses, one vector for each image; `perturb` is the real formula, and `input_set`
contains its result for every setting, also when that is rounded to the images' type.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from zonoplug.domain.affine_image import AffineImage, minkowski_sum
from zonoplug.errors import SettingError

if TYPE_CHECKING:
    from typing_extensions import Self


class ImagePerturbation(ABC):
    """What may happen to an image between the scene and the network.

    Attributes:
        name: for titles.
        unit: what `strength` means, for axes.
        clip: whether values that leave [0, 1] are cut off, as a camera does.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    clip: bool = False

    @abstractmethod
    def num_settings(self, images: Tensor) -> int:
        """How many numbers an adversary chooses for one image."""

    @abstractmethod
    def raw(self, images: Tensor, settings: Tensor) -> Tensor:
        """The formula before clipping: settings (batch, num_settings) in [0, 1]; returns (batch, channels, h, w)."""

    @abstractmethod
    def raw_set(self, images: Tensor) -> AffineImage:
        """A set that contains `raw` of every setting, for each image."""

    def perturb(self, images: Tensor, settings: Tensor) -> Tensor:
        """The real formula: settings (batch, num_settings) in [0, 1]; returns images of the same shape and type."""
        changed = self.raw(images, settings)
        return changed.clamp(0, 1) if self.clip else changed

    def input_set(self, images: Tensor) -> AffineImage:
        """A set that contains `perturb` of every setting, for each image (batch, channels, height, width).

        Raises:
            SettingError: the images do not have four axes, or a value outside [0, 1].
        """
        check_images(images)
        changed = self.raw_set(images)
        return changed.clip(0.0, 1.0) if self.clip else changed

    def sample(self, images: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
        """`count` truly perturbed versions of each image, (count, batch, *shape): both ends first, then random ones."""
        size = (count, images.shape[0], self.num_settings(images))
        settings = torch.rand(size, generator=generator, dtype=torch.float64)
        settings[1::3] = settings[1::3].round()
        settings[:1], settings[1:2] = 0, 1
        return torch.stack([self.perturb(images, setting.to(images.device)) for setting in settings])

    def extremes(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The images with all settings at 0, in the middle and at 1."""
        shape = (images.shape[0], self.num_settings(images))
        at = [torch.full(shape, share, dtype=torch.float64, device=images.device) for share in (0.0, 0.5, 1.0)]
        return self.perturb(images, at[0]), self.perturb(images, at[1]), self.perturb(images, at[2])


def check_images(images: Tensor) -> None:
    """Raise SettingError unless images are (batch, channels, height, width) in [0, 1]."""
    if images.dim() != 4 or not bool(((images >= 0) & (images <= 1)).all()):
        raise SettingError("Image perturbations take images (batch, channels, height, width) with values in [0, 1].")


def rounding_radius(images: Tensor, moved: Tensor) -> Tensor:
    """What rounding to the images' type may change, where `moved` says that a value changes: (batch, *shape)."""
    room = 8 * torch.finfo(images.dtype).eps * (images.abs() + moved)
    return torch.where(moved > 0, room, torch.zeros_like(room))


class OneSetting(ImagePerturbation):
    """A perturbation with one setting: a path from one image to another.

    Attributes:
        strength: how far the path goes.
        within: the part of the path that is meant, from 0 (its begin) to 1 (its end).
    """

    strength: float
    within: tuple[float, float]

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise SettingError(f"{self.name}: strength is {self.strength}, and must be a number of at least 0.")
        if not 0 <= self.within[0] <= self.within[1] <= 1:
            raise SettingError(f"{self.name}: within is {self.within}, and must be two increasing numbers in [0, 1].")

    def num_settings(self, images: Tensor) -> int:
        return 1

    def along(self, settings: Tensor) -> Tensor:
        """Settings (batch, 1) as places on the whole path, (batch,)."""
        low, high = self.within
        return (low + (high - low) * settings[:, 0]).clamp(low, high)

    def split(self, count: int) -> tuple[Self, ...]:
        """`count` perturbations that cover this one: what holds for all holds for it, and each is bounded tighter."""
        low, high = self.within
        cuts = [low + (high - low) * part / count for part in range(count)] + [high]
        return tuple(replace(self, within=ends) for ends in pairwise(cuts))  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class SensorNoise(ImagePerturbation):
    """x + d_i,  |d_i| <= strength, every value on its own."""

    name: ClassVar[str] = "sensor noise"
    unit: ClassVar[str] = "largest change of each value (range of values: 1)"
    strength: float
    clip: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.strength < float("inf"):
            raise SettingError(f"{self.name}: strength is {self.strength}, and must be a number of at least 0.")

    def num_settings(self, images: Tensor) -> int:
        return images[0].numel()

    def raw(self, images: Tensor, settings: Tensor) -> Tensor:
        return (images + (2 * settings - 1).reshape(images.shape) * self.strength).to(images.dtype)

    def raw_set(self, images: Tensor) -> AffineImage:
        noise = torch.full_like(images, self.strength)
        return AffineImage(images, images.unsqueeze(1)[:, :0], None, noise + rounding_radius(images, noise))

    def input_set(self, images: Tensor) -> AffineImage:
        """A set that contains `perturb` of every setting, for each image: a box, clipped exactly."""
        check_images(images)
        changed = self.raw_set(images)
        if not self.clip:
            return changed
        low, high = (bound.clamp(0, 1) for bound in changed.interval_hull())
        center = (low + high) / 2
        radius = torch.maximum(high - center, center - low)
        return AffineImage(center, changed.generators, None, radius * (1 + 4 * torch.finfo(radius.dtype).eps))

    def extremes(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The images with all values darker, with random signs, and with all values brighter."""
        dark, _, bright = ImagePerturbation.extremes(self, images)
        random = torch.Generator().manual_seed(0)
        signs = torch.rand((images.shape[0], self.num_settings(images)), generator=random).round()
        return dark, self.perturb(images, signs.double().to(images.device)), bright


@dataclass(frozen=True, slots=True)
class DeadPixels(ImagePerturbation):
    """Given pixels of the sensor read anything in [0, 1], in every channel on its own."""

    name: ClassVar[str] = "dead pixels"
    unit: ClassVar[str] = "number of dead pixels"
    pixels: tuple[tuple[int, int], ...]

    def num_settings(self, images: Tensor) -> int:
        return len(self.pixels) * images.shape[1]

    def _masks(self, images: Tensor) -> Tensor:
        """(num_settings, channels, height, width): 1 where a setting has its say."""
        channels, height, width = images.shape[1:]
        masks = images.new_zeros(len(self.pixels), channels, channels, height, width)
        for number, (row, column) in enumerate(self.pixels):
            _check_index(self.name, row, height)
            _check_index(self.name, column, width)
            masks[number, range(channels), range(channels), row, column] = 1
        return masks.flatten(0, 1)

    def raw(self, images: Tensor, settings: Tensor) -> Tensor:
        return _overwritten(images, self._masks(images), settings)

    def raw_set(self, images: Tensor) -> AffineImage:
        return _overwritten_set(images, self._masks(images))


@dataclass(frozen=True, slots=True)
class DeadLines(ImagePerturbation):
    """Given rows (or columns) of the sensor are stuck, each at one value in [0, 1], in every channel on its own."""

    name: ClassVar[str] = "dead rows or columns"
    unit: ClassVar[str] = "number of dead lines"
    lines: tuple[int, ...]
    columns: bool = False

    def num_settings(self, images: Tensor) -> int:
        return len(self.lines) * images.shape[1]

    def _masks(self, images: Tensor) -> Tensor:
        channels, *size = images.shape[1:]
        masks = images.new_zeros(len(self.lines), channels, channels, *size)
        for number, line in enumerate(self.lines):
            _check_index(self.name, line, size[self.columns])
            for channel in range(channels):
                masks[number, channel, channel].select(int(self.columns), line).fill_(1)
        return masks.flatten(0, 1)

    def raw(self, images: Tensor, settings: Tensor) -> Tensor:
        return _overwritten(images, self._masks(images), settings)

    def raw_set(self, images: Tensor) -> AffineImage:
        return _overwritten_set(images, self._masks(images))


def _check_index(name: str, index: int, size: int) -> None:
    if not 0 <= index < size:
        raise SettingError(f"{name}: position {index} is outside the image; it has 0 to {size - 1}.")


def _overwritten(images: Tensor, masks: Tensor, settings: Tensor) -> Tensor:
    """Images with the marked values replaced; where marks overlap, the last one wins."""
    changed = images
    for mask, value in zip(masks, settings.T, strict=True):
        changed = torch.where(mask > 0, value.to(images.dtype).reshape(-1, 1, 1, 1), changed)
    return changed


def _overwritten_set(images: Tensor, masks: Tensor) -> AffineImage:
    """Exact: 1/2 +/- 1/2 on the marked values, one symbol for each mask."""
    visible = masks.clone()
    for later in range(1, masks.shape[0]):
        visible[:later] *= 1 - masks[later]
    center = torch.where(visible.sum(dim=0) > 0, torch.full_like(images, 0.5), images)
    return AffineImage(center, (visible / 2).expand(images.shape[0], *visible.shape))


@dataclass(frozen=True, slots=True)
class Sum(ImagePerturbation):
    """x + sum_i (P_i(x) - x),  clipped at the end: several perturbations, each with its own settings.

    Noise or brightness on top of something else is this sum; two blurs, or contrast after a blur, are not.
    """

    name: ClassVar[str] = "sum"
    unit: ClassVar[str] = "strength"
    parts: Sequence[ImagePerturbation]
    clip: bool = True

    def num_settings(self, images: Tensor) -> int:
        return sum(part.num_settings(images) for part in self.parts)

    def raw(self, images: Tensor, settings: Tensor) -> Tensor:
        each = settings.split([part.num_settings(images) for part in self.parts], dim=1)
        start = images.double()
        changes = [part.raw(start, values) - start for part, values in zip(self.parts, each, strict=True)]
        return (start + torch.stack(changes).sum(dim=0)).to(images.dtype)

    def raw_set(self, images: Tensor) -> AffineImage:
        total = minkowski_sum([part.raw_set(images) for part in self.parts], images)
        room = rounding_radius(images, total.radius())
        return replace(total, box=room if total.box is None else total.box + room)
