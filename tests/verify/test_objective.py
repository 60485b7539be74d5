"""Rows, disjuncts and splits against direct loops."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from zonoplug.domain.input_sets import Box
from zonoplug.verify.problem.problem import Objective
from zonoplug.verify.subdomains.bisection import bisect


def random_objective(seed, boxes=3, rows=5, outputs=2):
    """Random rows in random disjuncts, the last rows of some boxes padding."""
    random = torch.Generator().manual_seed(seed)
    disjunct = torch.randint(0, 3, (boxes, rows), generator=random)
    padding = torch.arange(rows) >= torch.randint(1, rows + 1, (boxes, 1), generator=random)
    exists = torch.zeros(boxes, 3, dtype=torch.bool)
    for box in range(boxes):
        exists[box, disjunct[box, ~padding[box]]] = True
    return Objective(
        torch.randn(boxes, rows, outputs, generator=random).masked_fill(padding[..., None], 0),
        torch.randn(boxes, rows, generator=random).masked_fill(padding, 0),
        torch.rand(boxes, rows, generator=random) < 0.5,
        disjunct * ~padding,
        padding,
        exists,
        torch.arange(boxes * 3).reshape(boxes, 3),
    )


@given(st.integers(0, 10_000))
def test_best_and_excluded_agree_with_loops(seed):
    objective = random_objective(seed)
    group = torch.randint(0, 3, (7,), generator=torch.Generator().manual_seed(seed))
    outputs = torch.randn(7, 2, generator=torch.Generator().manual_seed(seed + 1))
    margins = objective.margins(objective.values(outputs, group), group)
    best, excluded = objective.best(margins, group), objective.excluded(margins, group)
    for i, box in enumerate(group.tolist()):
        for d in range(3):
            rows = [r for r in range(5) if not objective.padding[box, r] and objective.disjunct[box, r] == d]
            wanted = [float(objective.coefficients[box, r] @ outputs[i] - objective.bound[box, r]) for r in rows]
            if not objective.exists[box, d]:
                assert best[i, d] == torch.inf
                assert excluded[i, d]
            else:
                assert abs(float(best[i, d]) - max(wanted)) < 1e-5
                assert bool(excluded[i, d]) == any(m > 0 for m in wanted)


@given(st.integers(0, 10_000))
def test_dropping_excluded_disjuncts_leaves_the_others_as_they_were(seed):
    objective = random_objective(seed)
    gone = objective.exists & (torch.rand(3, 3, generator=torch.Generator().manual_seed(seed)) < 0.5)
    smaller = objective.without(gone)
    group = torch.arange(3)
    outputs = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed + 1))
    before = objective.best(objective.margins(objective.values(outputs, group), group), group)
    after = smaller.best(smaller.margins(smaller.values(outputs, group), group), group)
    torch.testing.assert_close(after, before.masked_fill(gone, torch.inf))


def test_nan_excludes_nothing_and_counts_as_unknown():
    objective = random_objective(0)
    margins = torch.full((3, 5), torch.nan)
    assert not bool((objective.excluded(margins, torch.arange(3)) & objective.exists).any())
    assert bool((objective.best(margins, torch.arange(3))[objective.exists] == -torch.inf).all())


def test_a_bound_of_exactly_zero_excludes_strict_rows_only():
    one = torch.ones(1, 2, 1)
    objective = Objective(
        one,
        torch.zeros(1, 2),
        torch.tensor([[True, False]]),
        torch.tensor([[0, 1]]),
        torch.zeros(1, 2, dtype=torch.bool),
        torch.ones(1, 2, dtype=torch.bool),
        torch.tensor([[0, 1]]),
        torch.zeros(1, 2),
    )
    assert objective.excluded(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64)).tolist() == [[True, False]]


@given(st.integers(0, 1000), st.integers(1, 4))
def test_the_pieces_of_a_split_cover_the_box(seed, times):
    random = torch.Generator().manual_seed(seed)
    box = Box.ball(torch.randn(3, 4, generator=random), torch.rand(3, 4, generator=random))
    pieces, parent = bisect(box, torch.rand(3, 4, generator=random), times)
    points = box.sample(40, random)
    for point in points:
        for element in range(3):
            mine = parent == element
            inside = ((point[element] >= pieces.lower[mine]) & (point[element] <= pieces.upper[mine])).all(dim=1)
            assert bool(inside.any())
    assert bool((pieces.lower >= box.lower[parent]).all() & (pieces.upper <= box.upper[parent]).all())
    assert pieces.lower.shape[0] == 3 * 2**times


def test_a_box_too_narrow_to_halve_is_returned_whole():
    low = torch.tensor([[1.0, 2.0]])
    high = torch.nextafter(low, low + 1)
    pieces, parent = bisect(Box(low, high), torch.ones(1, 2))
    assert parent.tolist() == [0]
    assert torch.equal(pieces.lower, low)
    assert torch.equal(pieces.upper, high)
