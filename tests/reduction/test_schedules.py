"""When to reduce, and to how many symbols."""

from __future__ import annotations

import pytest

from zonoplug.errors import SettingError
from zonoplug.reduction import (
    AboveBytes,
    AboveSymbols,
    Backoff,
    EveryLayer,
    LiveValue,
    Never,
    PerLayer,
    Proportional,
    ReductionContext,
)


def test_schedules(make_zonotope):
    zonotope = make_zonotope(dense=5, diagonal=0)
    layer = [ReductionContext(layer=number, introduced=10) for number in range(5)]
    assert Never().budget(zonotope) is None
    assert AboveSymbols(5).budget(zonotope) is None
    assert AboveSymbols(4).budget(zonotope) == 4
    assert AboveSymbols(4).budget(zonotope, layer[0]) is None  # an input
    assert [EveryLayer(2, 3).budget(zonotope, at) for at in layer] == [None, None, None, 2, None]
    assert [PerLayer((3, 9, 1)).budget(zonotope, at) for at in layer] == [None, 3, None, 1, 1]
    assert Proportional(0.3).budget(zonotope, layer[1]) == 3
    assert Proportional(0.3).budget(zonotope) == 2
    size = 3 * zonotope.center.numel() * 8
    assert AboveBytes(4 * size).budget(zonotope, layer[0]) == 4
    assert AboveBytes(5 * size).budget(zonotope) is None
    assert AboveBytes(4 * size).budget(zonotope, ReductionContext(widest=10)) == 2
    busy = ReductionContext(elsewhere=(LiveValue(make_zonotope(dense=3, diagonal=0)),))
    assert AboveBytes(4 * size).budget(zonotope, busy) == 3
    assert AboveBytes().budget(zonotope) is None
    for wrong in (
        lambda: AboveSymbols(-1),
        lambda: EveryLayer(3, 0),
        lambda: PerLayer(()),
        lambda: Proportional(1.5),
        lambda: AboveBytes(-1),
        lambda: Backoff(growth=1.0),
    ):
        with pytest.raises(SettingError):
            wrong()
