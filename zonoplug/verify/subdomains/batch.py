"""Batches of subdomains, or of facts about them: tensors with one entry for each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from typing_extensions import Self

AnyBatch = TypeVar("AnyBatch", bound="Batch")


class Batch:
    """The base of dataclasses whose fields are all tensors (n, ...) with the same n."""

    __slots__ = ()
    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __len__(self) -> int:
        return int(self.parts()[0].shape[0])

    def parts(self) -> tuple[Tensor, ...]:
        """The fields, in their order."""
        return tuple(getattr(self, name) for name in self.__dataclass_fields__)

    @property
    def num_bytes(self) -> int:
        """Of all entries."""
        return sum(part.numel() * part.element_size() for part in self.parts())

    @property
    def bytes_each(self) -> int:
        """Of one entry."""
        return self.pick(slice(0, 1)).num_bytes

    def pick(self, index: Tensor | slice) -> Self:
        """The entries at an index of the first axis."""
        return self._of(part[index] for part in self.parts())

    def copy(self) -> Self:
        """The same in memory of its own."""
        return self._of(part.clone() for part in self.parts())

    @classmethod
    def join(cls, many: list[Self]) -> Self:
        """All entries, in memory of their own."""
        return cls._of(torch.cat(parts) for parts in zip(*(one.parts() for one in many), strict=True))

    @classmethod
    def _of(cls, parts: Any) -> Self:
        return cls(*parts)


def take(queue: list[AnyBatch], count: int) -> AnyBatch:
    """Remove and join the last `count` entries of a queue of batches, or all if there are fewer."""
    taken: list[AnyBatch] = []
    while queue and count > 0:
        chunk = queue.pop()
        if len(chunk) > count:
            queue.append(chunk.pick(slice(0, len(chunk) - count)))
            chunk = chunk.pick(slice(len(chunk) - count, None))
        taken.append(chunk)
        count -= len(chunk)
    return taken[0].join(taken)
