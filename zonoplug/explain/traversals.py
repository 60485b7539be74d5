"""Orders in which features are freed one by one, in groups, or by halves, with a certifying function as the oracle.

Each takes features in the order in which to free them (least important first) and a function that says what is known
while a set of features is free. What is proved for a set holds for every part of it, so all of them end with a set to
which, as far as the oracle can tell, nothing can be added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum

from zonoplug.registry import Registry


class Answer(Enum):
    """What an oracle says: the decision stands for all values of the free features, or falls for some, or neither."""

    PROVED = "proved"
    REFUTED = "refuted"
    UNKNOWN = "unknown"


Oracle = Callable[[frozenset[int]], Answer]
Traversal = Callable[[Sequence[int], frozenset[int], Oracle], frozenset[int]]

TRAVERSALS: Registry[Traversal] = Registry("traversal", "zonoplug.traversals")


@TRAVERSALS.register("deletion")
def deletion(order: Sequence[int], free: frozenset[int], oracle: Oracle) -> frozenset[int]:
    """Try each feature in turn: one call each."""
    for feature in order:
        if oracle(free | {feature}) is Answer.PROVED:
            free = free | {feature}
    return free


@TRAVERSALS.register("binary")
def binary(order: Sequence[int], free: frozenset[int], oracle: Oracle) -> frozenset[int]:
    """Try runs of features: twice as many after a success, half as many after a failure; one that fails is kept."""
    place, step = 0, max(len(order) // 2, 1)
    while place < len(order):
        run = order[place : place + step]
        if oracle(free | set(run)) is Answer.PROVED:
            free = free | set(run)
            place += len(run)
            step = 2 * step
        elif len(run) == 1:
            place += 1
        else:
            step = len(run) // 2
    return free


@TRAVERSALS.register("quickxplain")
def quickxplain(order: Sequence[int], free: frozenset[int], oracle: Oracle) -> frozenset[int]:
    """Find the features to keep by halves; few calls where few are kept.

    Source: Junker, AAAI 2004.
    """
    everything = free | set(order)

    def kept(fixed: frozenset[int], grown: bool, features: Sequence[int]) -> frozenset[int]:
        if grown and oracle(everything - fixed) is Answer.PROVED:
            return frozenset()
        if len(features) == 1:
            return frozenset(features)
        half = len(features) // 2
        first, second = features[:half], features[half:]
        of_second = kept(fixed | set(first), True, second)
        return of_second | kept(fixed | of_second, bool(of_second), first)

    if not order or oracle(everything) is Answer.PROVED:
        return everything
    # The halves that come first are fixed first: the most important features.
    return everything - kept(frozenset(), False, list(reversed(order)))
