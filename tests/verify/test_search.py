"""What searches have in common: box after box, points tried on the way, and bounds of the whole box under suspicion."""

from __future__ import annotations

import pytest
import torch

from zonoplug.clock import Deadline
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder, BrokenMethodError
from zonoplug.verify.search.base import BoxwiseSearch, SearchResult
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.subdomains.relu_phases import Properties


class Listed(BoxwiseSearch):
    """Proves the boxes that it is told to, and lists those that it was asked for."""

    def __init__(self, *arguments, provable=(), **options):
        super().__init__(*arguments, **options)
        self.provable, self.asked = provable, []

    def _search_box(self, objective, deadline, result):
        self.asked.append(self._box_number)
        assert torch.equal(self._box.lower, self._problem.box.lower[self._box_number].unsqueeze(0))
        return self._box_number in self.provable


def search_of(absolute_difference, level=3.0, **options):
    """|x0 - x1| on three boxes with x0 in [0, 1], [1, 2] and [2, 3], x1 in [0, 1], and the level as what is unsafe."""
    network, spec = absolute_difference()
    parts = [
        f"(and (>= X_0 {at}) (<= X_0 {at + 1}) (>= X_1 0) (<= X_1 1) (>= Y_0 {level}) (>= Y_0 0))" for at in range(3)
    ]
    spec.write_text(spec.read_text().split("(assert")[0] + "(assert (or " + " ".join(parts) + "))\n")
    problem = load_problem(network, spec, Settings(device="cpu"))
    attack = Attack(problem)
    attack.random_points(60)
    return problem, Listed(problem, Bounder(problem), attack, **options)


@pytest.mark.parametrize(("provable", "asked"), [((0, 1, 2), [0, 2]), ((0, 1), [0, 2]), ((1, 2), [0])])
def test_open_boxes_are_searched_until_one_is_not_proved(absolute_difference, provable, asked):
    problem, search = search_of(absolute_difference, provable=provable)
    closed = torch.zeros_like(problem.objective.exists)
    closed[1] = True
    result = search.run(problem.objective.without(closed), Deadline(10))
    assert search.asked == asked
    assert result.proved is set(asked).issubset(provable)


def test_points_are_tried_in_their_boxes_unless_that_is_left_out(absolute_difference):
    points = torch.tensor([[2.5, 0.0], [3.0, 0.0]])
    for number in (2, torch.tensor([2, 2])):
        result = SearchResult()
        assert not search_of(absolute_difference, 2.9)[1]._attacked(points[:1], 2, result)
        assert result.counterexample is None
        assert search_of(absolute_difference, 2.9)[1]._attacked(points, number, result)
        assert result.counterexample.inputs.tolist() == [3.0, 0.0]
    _, search = search_of(absolute_difference, 2.9, without=("inner-attack",))
    result = SearchResult()
    assert not search._attacked(points, 2, result)
    assert result.counterexample is None


@pytest.mark.parametrize("number", range(3))
def test_a_bound_of_a_whole_box_is_held_against_the_points_of_that_box(absolute_difference, number):
    """The margin of  y >= 3  is  3 - y:  one above the least that was seen is refused, one just below is not."""
    problem, search = search_of(absolute_difference)
    search._box_number, properties = number, Properties.of(problem.objective, number)
    seen = search._attack.referee.of_box(number)
    least = 3.0 - float(seen.max())
    search._check_root(torch.tensor([least - 1e-3]), properties)
    with pytest.raises(BrokenMethodError, match="below its bound"):
        search._check_root(torch.tensor([least + 1e-3]), properties)
