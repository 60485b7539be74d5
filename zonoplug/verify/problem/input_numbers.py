"""Which numbers of a network's own type the input bounds of a specification allow, and what to say if none."""

from __future__ import annotations

from typing import Any

import numpy as np

from zonoplug.errors import SpecificationError
from zonoplug.specification import Bools, Specification, element_name
from zonoplug.verify.problem.rounded_box import beyond_range, inward_box

INPUT_BOUNDS = ("written", "nearest")


class InputNumbers:
    """The input boxes of a specification, as numbers of one type.

    Args:
        specification: what was read.
        kind: float32 or float64, which the network computes in.

    Attributes:
        unmet: for each box, the inputs whose bounds as written no number of the type satisfies.
    Raises:
        SpecificationError: a tensor is declared of another type, or a bound is beyond the type's range.
    """

    def __init__(self, specification: Specification, kind: np.dtype[Any]) -> None:
        self._specification, self._kind = specification, kind
        self._check_types()
        boxes = (inward_box(specification, box, kind) for box in range(specification.num_boxes))
        self.unmet = [tuple(np.flatnonzero(low > high).tolist()) for low, high in boxes]

    def none_in(self, boxes: Bools) -> str | None:
        """Why no point of some boxes (boxes,) can be a counterexample; None if one can be, or no box is marked."""
        marked = np.flatnonzero(boxes).tolist()
        if not marked or not all(self.unmet[box] for box in marked):
            return None
        rest = len(marked) - 1
        more = f", and {rest} more open box{'es' if rest > 1 else ''} like that" if rest else ""
        return f"nothing that is left can be a counterexample: {self._gap(marked[0])}{more}"

    def reading(self, box: int) -> str:
        """What a counterexample in a box relies on where bounds are read as the nearest numbers; "" if on nothing."""
        if not self.unmet[box]:
            return ""
        return f"the counterexample reads input bounds as the nearest {self._kind.name}: {self._gap(box)}"

    def _gap(self, box: int) -> str:
        spec, (place, *others) = self._specification, self.unmet[box]
        lower, upper = float(spec.lower[box, place]), float(spec.upper[box, place])
        more = f" (nor for {len(others)} other input{'s' if len(others) > 1 else ''})" if others else ""
        return f"{self._name(place)}: no {self._kind.name} lies within {lower!r} and {upper!r} as written{more}"

    def _name(self, place: int) -> str:
        return element_name(self._specification.version, self._specification.inputs, place)

    def _check_types(self) -> None:
        spec, name = self._specification, self._kind.name
        for variable in (spec.inputs, spec.outputs):
            if spec.version != "1.0" and variable.dtype not in ("real", name):
                raise SpecificationError(
                    f"The specification declares {variable.name} of type {variable.dtype}, and the model computes in"
                    f" {name}: it must be {name} or real."
                )
        found = beyond_range(spec, self._kind)
        if found is not None:
            raise SpecificationError(
                f"The input {self._name(found[0])} has the bound {found[1]!r}, beyond the model's type: {name} ends at"
                f" {np.finfo(self._kind).max:.8g}."
            )
