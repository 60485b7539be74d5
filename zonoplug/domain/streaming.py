"""Generators that are computed when they are needed, in chunks of symbols: for layers too large for memory.

    with memory_limit(2**30):
        ...                             # generators made here take about a gigabyte at once, not more

A `StreamedBlock` keeps no columns, only how they come about: the blocks in which its symbols were born, and the maps,
scalings and sums they went through since. Slopes are numbers by the time they are recorded, so what is recorded is
linear, and chunks of symbols can be sent through it one after the other: radii, products with rows and small images
are the same as without a limit, up to the order of sums.

Cost: each layer's radius sends all symbols through the layers before it that did not fit; O(depth^2) passes in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from math import inf, prod

import torch
from torch import Tensor

from zonoplug.domain.alignment import align_sum, sum_columns
from zonoplug.domain.blocks import DenseBlock, GeneratorBlock
from zonoplug.domain.linear_maps import LinearMap, Shape
from zonoplug.domain.symbols import SymbolIds, merge_ids

Blocks = tuple[GeneratorBlock, ...]

_limit: ContextVar[int | None] = ContextVar("zonoplug_memory_limit", default=None)


@contextmanager
def memory_limit(limit_bytes: int | None) -> Iterator[None]:
    """Generators of one value, of the value it is made from, and what is made on the way stay within `limit_bytes`.

    None for no limit. What a limit cannot hold: a single symbol's columns; symbols of unit balls; and operators that
    read all columns of a value at once (products of two perturbed operands, softmax, max-pooling, reductions).
    """
    token = _limit.set(limit_bytes)
    try:
        yield
    finally:
        _limit.reset(token)


def fits(entries: int, like: Tensor) -> bool:
    """Whether `entries` numbers for each element of a batch, and as many for temporaries, are within the limit."""
    limit = _limit.get()
    return limit is None or 2 * entries * like.shape[0] * like.element_size() <= limit


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One step of a computation of columns.

    Attributes:
        shape: of the columns.
        inputs: earlier stages.
        function: the inputs' blocks, all for the same few symbols, -> blocks.
        introduced: blocks in which symbols begin; only in stages without inputs, whose function gets their selection.
    """

    shape: Shape
    inputs: tuple[Stage, ...]
    function: Callable[..., Blocks]
    introduced: Blocks = ()

    def blocks(self, ids: SymbolIds, earlier: Sequence[Blocks]) -> Blocks:
        """The blocks of this stage for the symbols `ids`."""
        if self.inputs:
            return self.function(*earlier)
        marks = [(block, torch.isin(block.symbols, ids)) for block in self.introduced]
        return tuple(block.select(mark) for block, mark in marks if bool(mark.any()))


def stage_of(blocks: Blocks) -> Stage:
    """A stage with the columns of some blocks, of which some may be streamed."""
    streamed = [block.last for block in blocks if isinstance(block, StreamedBlock)]
    introduced = tuple(block for block in blocks if not isinstance(block, StreamedBlock))
    shape = blocks[0].shape
    stages = (*streamed, Stage(shape, (), tuple, introduced)) if introduced else tuple(streamed)
    return stages[0] if len(stages) == 1 else Stage(shape, stages, lambda *parts: sum(parts, ()))


@dataclass(frozen=True, slots=True, eq=False)
class StreamedBlock(GeneratorBlock):
    """Columns that are computed on demand.

    Attributes:
        symbols: (k,) sorted ids.
        last: the stage that gives the columns.
        like: (batch, ...), a tensor of the columns' batch, type and device.
        norm: inf; symbols of unit balls are not streamed.
        limit_bytes: the limit under which the block was made.
    """

    symbols: SymbolIds
    last: Stage
    like: Tensor
    norm: float = inf
    limit_bytes: int | None = field(default_factory=_limit.get)
    _radius: list[Tensor] = field(default_factory=list)  # once it was computed

    @classmethod
    def over(cls, last: Stage, blocks: Sequence[GeneratorBlock], like: Tensor) -> StreamedBlock:
        """The block of a stage's columns, which stand for the symbols of `blocks`."""
        return cls(merge_ids(*(block.symbols for block in blocks)), last, like)

    @property
    def shape(self) -> Shape:
        return self.last.shape

    @property
    def entries(self) -> int:
        return 0

    def radius(self) -> Tensor:
        if not self._radius:
            total = self.like.new_zeros(self.like.shape[0], *self.shape)
            for _, _, blocks in self.chunks():
                for block in blocks:
                    total = total + block.radius()
            self._radius.append(total)
        return self._radius[0]

    def scale(self, factor: Tensor) -> StreamedBlock:
        known = [radius * factor.abs() for radius in self._radius]
        return replace(self._then(self.shape, lambda block: block.scale(factor)), _radius=known)

    def map(self, linear: LinearMap) -> StreamedBlock:
        return self._then(tuple(linear.apply(self.like.new_zeros(1, *self.shape)).shape[1:]), lambda b: b.map(linear))

    def reshape(self, shape: Shape) -> StreamedBlock:
        known = [radius.reshape(-1, *shape) for radius in self._radius]
        return replace(self._then(shape, lambda block: block.reshape(shape)), _radius=known)

    def contract(self, rows: Tensor) -> DenseBlock:
        return self._then((rows.shape[1],), lambda block: block.contract(rows)).written_out()

    def select(self, marks: Tensor) -> DenseBlock:
        return replace(self, symbols=self.symbols[marks], _radius=[]).written_out()

    def dense(self) -> Tensor:
        total = self.like.new_empty(self.like.shape[0], self.num_symbols, *self.shape)
        for start, ids, blocks in self.chunks():
            total[:, start : start + len(ids)] = sum_columns(blocks, ids)
        return total

    def written_out(self) -> DenseBlock:
        """The same columns, in memory."""
        return DenseBlock(self.symbols, self.dense())

    def chunks(self) -> Iterator[tuple[int, SymbolIds, Blocks]]:
        """Position, ids and blocks of as many symbols at a time as the limit allows."""
        order = _order(self.last)
        size = max(self.num_symbols, 1)
        if self.limit_bytes is not None:
            number_bytes = self.like.shape[0] * self.like.element_size()
            held = number_bytes * sum(block.entries for stage in order for block in stage.introduced)
            room = max(3 * self.limit_bytes // 4 - held, self.limit_bytes // 4)
            size = max(1, room // (number_bytes * _live_entries(order)))
        for start in range(0, self.num_symbols, size):
            ids = self.symbols[start : start + size]
            yield start, ids, _run(order, ids)

    def _then(self, shape: Shape, function: Callable[[GeneratorBlock], GeneratorBlock]) -> StreamedBlock:
        stage = Stage(shape, (self.last,), lambda blocks: tuple(function(block) for block in blocks))
        return StreamedBlock(self.symbols, stage, self.like)


def map_streamed(blocks: Blocks, linear: LinearMap, shape: Shape, like: Tensor) -> GeneratorBlock:
    """The image of some blocks, over coordinates of `shape`: written out where it fits the limit, else streamed."""
    stage = Stage(shape, (stage_of(blocks),), lambda parts: tuple(block.map(linear) for block in parts))
    image = StreamedBlock.over(stage, blocks, like)
    return image.written_out() if fits(2 * image.num_symbols * prod(shape), like) else image


def reshape_streamed(blocks: Blocks, shape: Shape, like: Tensor) -> Blocks:
    """Blocks over coordinates arranged as `shape`, without writing out what other structures leave out."""
    plain = tuple(block for block in blocks if block.norm == inf)
    balls = tuple(block.reshape(shape) for block in blocks if block.norm != inf)
    if not plain:
        return balls
    stage = Stage(shape, (stage_of(plain),), lambda parts: tuple(block.reshape(shape) for block in parts))
    return (StreamedBlock.over(stage, plain, like), *balls)


def sum_streamed(left: Blocks, right: Blocks, like: Tensor) -> Blocks:
    """The sum of blocks of which some are streamed; shared symbols are aligned by id.

    Where symbols of unit balls are among them, all columns are written out.
    """
    if any(block.norm != inf for block in (*left, *right)):
        return align_sum(*([b.written_out() if isinstance(b, StreamedBlock) else b for b in s] for s in (left, right)))
    if not left or not right:
        return left or right
    stage = Stage(left[0].shape, (stage_of(left), stage_of(right)), align_sum)
    return (StreamedBlock.over(stage, (*left, *right), like),)


def _order(last: Stage) -> list[Stage]:
    """All stages that lead to one, in an order in which each comes after its inputs."""
    order: list[Stage] = []
    seen: set[int] = set()
    stack = [(last, False)]
    while stack:
        stage, inputs_done = stack.pop()
        if inputs_done:
            order.append(stage)
        elif id(stage) not in seen:
            seen.add(id(stage))
            stack.append((stage, True))
            stack.extend((earlier, False) for earlier in reversed(stage.inputs))
    return order


def _readers(order: Sequence[Stage]) -> dict[int, int]:
    counts = {id(stage): 0 for stage in order}
    for stage in order:
        for earlier in stage.inputs:
            counts[id(earlier)] += 1
    return counts


def _run(order: Sequence[Stage], ids: SymbolIds) -> Blocks:
    """The last stage's blocks for a few symbols; each stage's are freed after their last reader."""
    left = _readers(order)
    values: dict[int, Blocks] = {}
    for stage in order:
        values[id(stage)] = stage.blocks(ids, [values[id(earlier)] for earlier in stage.inputs])
        for earlier in stage.inputs:
            left[id(earlier)] -= 1
            if not left[id(earlier)]:
                values.pop(id(earlier), None)
    return values[id(order[-1])]


def _live_entries(order: Sequence[Stage]) -> int:
    """The most entries alive at once for one symbol and one element of a batch, with a temporary copy of each image."""
    left = _readers(order)
    live = most = 0
    for stage in order:
        size = prod(stage.shape)
        most = max(most, live + 2 * size)
        live += size
        for earlier in stage.inputs:
            left[id(earlier)] -= 1
            if not left[id(earlier)]:
                live -= prod(earlier.shape)
    return most
