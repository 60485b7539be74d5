"""The open subdomains of a search on input boxes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zonoplug.verify.subdomains.batch import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Boxes(Batch):
    """A batch of subdomains.

    Attributes:
        lower, upper: (n, *input_shape).
        group: (n,) the input box that each is a piece of.
        margin: (n,) the parent's worst bound: the lower, the sooner it is wanted.
        load: (n,) how many neurons were unstable in the parent.
        rule: (n,) number of the branching rule that made it, -1 for none.
    """

    lower: Tensor
    upper: Tensor
    group: Tensor
    margin: Tensor
    load: Tensor
    rule: Tensor


class BoxQueue:
    """Gives subdomains from the chunk with the worst margin while there is room, and the newest once there is not.

    Chunks are sorted, so that a step costs no more than its own subdomains. Depth first, a queue holds at most the
    pieces of one batch for each level of the tree, so that beyond the limit it hardly grows.

    Args:
        limit_bytes: what best-first order may hold.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._chunks: list[Boxes] = []
        self._heads: list[float] = []
        self._limit_bytes = limit_bytes
        self.num_bytes = 0

    def __len__(self) -> int:
        return sum(map(len, self._chunks))

    def push(self, boxes: Boxes) -> None:
        """Add subdomains."""
        if len(boxes):
            self._add(boxes.pick(boxes.margin.argsort(descending=True)))

    def pop(self, count: int) -> Boxes:
        """Remove `count` subdomains, or all if there are fewer; there must be some."""
        taken: list[Boxes] = []
        while not taken or (self._chunks and count > 0):
            place = -1
            if self.num_bytes < self._limit_bytes:
                place = min(range(len(self._heads)), key=self._heads.__getitem__)
            chunk, _ = self._chunks.pop(place), self._heads.pop(place)
            self.num_bytes -= chunk.num_bytes
            if len(chunk) > count:
                self._add(chunk.pick(slice(0, len(chunk) - count)))
                chunk = chunk.pick(slice(len(chunk) - count, None))
            taken.append(chunk)
            count -= len(chunk)
        return taken[0] if len(taken) == 1 else Boxes.join(taken)

    def _add(self, chunk: Boxes) -> None:
        """Add a sorted chunk. A slice keeps all of its storage, so that a small one is copied."""
        if 2 * chunk.lower.numel() * chunk.lower.element_size() < chunk.lower.untyped_storage().nbytes():
            chunk = chunk.copy()
        self._chunks.append(chunk)
        self._heads.append(float(chunk.margin[-1]))
        self.num_bytes += chunk.num_bytes
