"""Seconds that are counted, not measured: what a search does in its time limit does not depend on the load."""

from __future__ import annotations

from zonoplug import clock
from zonoplug.lirpa.backward import refinement
from zonoplug.verify import observer
from zonoplug.verify.attack import attack
from zonoplug.verify.problem import referee
from zonoplug.verify.search import input_search, neuron_search

READERS = (clock, refinement, attack, referee, input_search, neuron_search, observer)  # those that decide by the time
TICK = 0.01  # seconds: about what a search does between two looks at the time, in the networks of the tests

BATCH = 512  # boxes at most: batches that grow while they are fast would grow for ever


class CountedTime:
    """Stands in for the module `time`: each look at the clock takes TICK seconds, and nothing else takes any."""

    def __init__(self) -> None:
        self.looks = 0

    def monotonic(self) -> float:
        self.looks += 1
        return self.looks * TICK


def count_time(monkeypatch) -> CountedTime:
    """Let all searches count their looks at the time, until the test ends."""
    counted = CountedTime()
    for module in READERS:
        monkeypatch.setattr(module, "time", counted)
    monkeypatch.setattr(input_search, "MAX_BATCH", BATCH)
    return counted
