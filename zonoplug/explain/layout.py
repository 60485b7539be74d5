"""How a network's input is arranged as an image: pictures, superpixels and files go through here."""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from zonoplug.errors import SettingError


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """Inputs of shape `shape` as images (channels, height, width).

    Attributes:
        shape: of one input of the network.
        channels, height, width: of the image.
        transposed: the network counts pixels column by column.
    Raises:
        SettingError: the numbers of elements differ.
    """

    shape: tuple[int, ...]
    channels: int
    height: int
    width: int
    transposed: bool = False

    def __post_init__(self) -> None:
        if torch.Size(self.shape).numel() != self.channels * self.height * self.width:
            raise SettingError(
                f"An image of {self.channels} x {self.height} x {self.width} does not fit an input of {self.shape}."
            )

    @classmethod
    def guess(cls, shape: tuple[int, ...], transposed: bool = False) -> ImageLayout | None:
        """(C, H, W) as it is, with 1 or 3 channels; a flat input of h * h or 3 * h * h elements as a square image.

        None where the input is no such image, or a flat one of fewer than 64 elements.
        """
        if len(shape) == 3 and shape[0] in (1, 3) and min(shape[1:]) > 1:
            return cls(shape, *shape, transposed)
        count = torch.Size(shape).numel()
        if max(shape, default=0) == count >= 64:
            for channels in (1, 3):
                side = isqrt(count // channels)
                if side * side * channels == count:
                    return cls(shape, channels, side, side, transposed)
        return None

    def to_image(self, values: Tensor) -> Tensor:
        """(*shape) -> (channels, height, width)."""
        if self.transposed:
            return values.reshape(self.channels, self.width, self.height).transpose(1, 2)
        return values.reshape(self.channels, self.height, self.width)

    def from_image(self, image: Tensor) -> Tensor:
        """(channels, height, width) -> (*shape)."""
        return (image.transpose(1, 2) if self.transposed else image).reshape(self.shape)

    def features(self, labels: Tensor) -> Tensor:
        """Labels of pixels (height, width) as features of the input's coordinates (*shape), for all channels."""
        return self.from_image(labels.expand(self.channels, self.height, self.width).contiguous())

    def pixels(self) -> Tensor:
        """A feature for each pixel, its channels together: (*shape)."""
        return self.features(torch.arange(self.height * self.width).reshape(self.height, self.width))
