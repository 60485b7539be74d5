"""A specification and a model together, as tensors that attacks and bounds work on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zonoplug.domain.input_sets import Box
from zonoplug.errors import SpecificationError
from zonoplug.specification import Specification
from zonoplug.verify.outcome import Counterexample
from zonoplug.verify.problem.input_numbers import InputNumbers
from zonoplug.verify.problem.rounded_box import nearest_box, outward_box
from zonoplug.verify.problem.scaled_rows import scaled_rows


@dataclass(frozen=True, slots=True, eq=False)
class Objective:
    """The rows of the specification, for each input box, padded to equal length.

    A row's margin is  a . y - b.  A point is unsafe if in some disjunct every margin is <= 0 (< 0 for a strict row).
    Rows are multiplied by powers of two and rounded so that a margin above 0 is one of the row as written: see
    `ScaledRows`. Whether a point is unsafe is decided by the specification itself.

    Attributes:
        coefficients: a, (boxes, rows, outputs).
        bound: b, (boxes, rows); infinite where no number of the type is large enough.
        strict: (boxes, rows).
        disjunct: (boxes, rows) the row's disjunct, numbered within its box.
        padding: (boxes, rows) True where there is no row.
        exists: (boxes, disjuncts) False where a box has fewer disjuncts than another.
        index: (boxes, disjuncts) the disjunct's number in the specification, -1 where there is none.
        scale: (boxes, rows) what the rows as written were multiplied by, float64; None for 1.
    """

    coefficients: Tensor
    bound: Tensor
    strict: Tensor
    disjunct: Tensor
    padding: Tensor
    exists: Tensor
    index: Tensor
    scale: Tensor | None = None

    @property
    def num_boxes(self) -> int:
        return int(self.bound.shape[0])

    def rows(self, group: Tensor) -> Tensor:
        """Specification matrices for subdomains of the boxes `group` (n,): (n, rows, outputs), or one for all."""
        return self.coefficients if self.num_boxes == 1 else self.coefficients[group]

    def values(self, outputs: Tensor, group: Tensor) -> Tensor:
        """a . y for flattened outputs (n, outputs): (n, rows)."""
        if self.num_boxes == 1:
            return outputs @ self.coefficients[0].T
        return torch.einsum("nro,no->nr", self.coefficients[group], outputs)

    def goal(self, group: Tensor) -> Tensor:
        """Lower bounds of a . y that put a row's disjunct out of reach: (n, rows), or one for all; -inf in padding."""
        return self._of(self.bound.masked_fill(self.padding, -torch.inf), group)

    def exact_values(self, outputs: Tensor, group: Tensor) -> Tensor:
        """As `values`, in double precision."""
        return torch.einsum("nro,no->nr", self.rows(group).double().expand(len(group), -1, -1), outputs.double())

    def margins(self, values: Tensor, group: Tensor) -> Tensor:
        """Margins of rows from values a . y (n, rows), or from lower bounds of them: (n, rows)."""
        return values - self._of(self.bound, group)

    def as_written(self, margins: Tensor, group: Tensor) -> Tensor:
        """Margins (n, rows) in units of the rows as written, for people to read."""
        return margins if self.scale is None else margins / self._of(self.scale, group).to(margins.dtype)

    def best(self, margins: Tensor, group: Tensor) -> Tensor:
        """Largest margin in each disjunct, (n, disjuncts): above 0 the disjunct is out of reach. NaN counts as -inf."""
        known = margins.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        known = known.masked_fill(self._of(self.padding, group), -torch.inf)
        start = known.new_full((known.shape[0], self.exists.shape[1]), -torch.inf)
        best = start.scatter_reduce(1, self._of(self.disjunct, group).expand_as(known), known, "amax")
        return best.masked_fill(~self._of(self.exists, group), torch.inf)

    def excluded(self, margins: Tensor, group: Tensor) -> Tensor:
        """Which disjuncts the lower bounds `margins` (n, rows) put out of reach: (n, disjuncts).

        A bound of exactly 0 excludes a strict row only.
        """
        above = (margins > 0) | (self._of(self.strict, group) & (margins >= 0))
        above &= ~self._of(self.padding, group)
        start = torch.zeros(above.shape[0], self.exists.shape[1], dtype=torch.int8, device=above.device)
        hit = start.scatter_reduce(1, self._of(self.disjunct, group).expand_as(above), above.to(torch.int8), "amax")
        return (hit > 0) | ~self._of(self.exists, group)

    def members(self) -> Tensor:
        """The rows of each disjunct, (boxes, disjuncts, m): their numbers, filled up with the count of all rows."""
        boxes, rows = self.bound.shape
        disjuncts = self.exists.shape[1]
        member = self.disjunct.unsqueeze(1) == torch.arange(disjuncts, device=self.disjunct.device)[:, None]
        member = member & ~self.padding.unsqueeze(1)
        most = int(member.sum(dim=2).max())
        number = torch.arange(rows, device=member.device).expand(boxes, disjuncts, -1)
        return number.masked_fill(~member, rows).sort(dim=2).values[:, :, :most]

    def without(self, excluded: Tensor) -> Objective:
        """The objective without the disjuncts marked (boxes, disjuncts)."""
        gone = excluded.gather(1, self.disjunct)
        keep = (~gone & ~self.padding).any(dim=0)
        keep[0] |= not bool(keep.any())
        return Objective(
            self.coefficients[:, keep],
            self.bound[:, keep],
            self.strict[:, keep],
            self.disjunct[:, keep],
            (self.padding | gone)[:, keep],
            self.exists & ~excluded,
            self.index,
            None if self.scale is None else self.scale[:, keep],
        )

    def escapes(self, values: Tensor, lower: Tensor, group: Tensor) -> Tensor:
        """Where `exact_values` (n, rows) that were reached lie below lower bounds of them."""
        room = 1e-12 * values.abs()
        return (values + room < lower.double()) & ~self._of(self.padding, group)

    def _of(self, table: Tensor, group: Tensor) -> Tensor:
        return table if self.num_boxes == 1 else table[group]


class Problem:
    """A specification on a model, both on one device.

    Attributes:
        specification, model: what was read.
        box: (boxes, *input_shape) each holding every number of the model's type in the box as written.
        has_points: (boxes,) False where no number of the model's type satisfies the bounds of some input.
        attack_box: the same boxes rounded inwards: every point of it is inside the bounds as written. Where there is
            none, the numbers nearest to them, inside `box`: evidence against bounds, but never a counterexample.
        objective: the rows.

    Args:
        input_bounds: "written", or "nearest" to read the bounds that no number of the model's type satisfies as the
            nearest numbers: then every box has points.
    Raises:
        SpecificationError: the specification's variables do not fit the model, or a bound is beyond its number type.
    """

    def __init__(
        self, specification: Specification, model: Any, device: torch.device, input_bounds: str = "written"
    ) -> None:
        for noun, name, ours, theirs in (
            ("inputs", "X", specification.num_inputs, model.num_inputs),
            ("outputs", "Y", specification.num_outputs, model.num_outputs),
        ):
            if ours != theirs:
                raise SpecificationError(
                    f"The specification declares {ours} {noun} ({name}), the model has {theirs}:"
                    " it belongs to another model."
                )
        self.specification = specification
        self.model = model
        self.device = device
        self._numpy_type = np.dtype(np.float64 if model.dtype == torch.float64 else np.float32)
        self._numbers = InputNumbers(specification, self._numpy_type)
        self.box = self._box(outward_box)
        self.attack_box = self._box(nearest_box)
        met = [input_bounds == "nearest" or not inputs for inputs in self._numbers.unmet]
        self.has_points = torch.tensor(met, device=device)
        self.objective = self._objective()

    @property
    def dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def num_perturbed(self) -> int:
        """The largest number of inputs that may vary in a box."""
        return int((self.box.upper > self.box.lower).flatten(1).sum(dim=1).max())

    def outputs(self, points: Tensor) -> Tensor:
        """The loaded model's flattened outputs (n, outputs) at points (n, *input_shape)."""
        result: Tensor = self.model.module(points)
        return result.flatten(1).to(self.dtype)  # networks that count give whole numbers

    def point_margins(self, outputs: Tensor, group: Tensor) -> Tensor:
        """Largest margin of each disjunct at points, (n, disjuncts); <= 0 means unsafe."""
        objective = self.objective
        return objective.best(objective.margins(objective.values(outputs, group), group), group)

    def confirm(self, point: Tensor, group: int) -> Counterexample | None:
        """The point (*input_shape), put into box `group`, as a counterexample; None if it is none.

        It is one if each input, as a rational, satisfies its bounds as written (or what "nearest" reads for them), and
        ONNX Runtime's outputs, as rationals, all rows of a disjunct of that box as written.
        """
        if not bool(self.has_points[group]):
            return None
        low, high = self.attack_box.lower[group], self.attack_box.upper[group]
        inside = torch.minimum(torch.maximum(point, low), high).flatten().cpu().numpy()
        inputs, reading = inside.astype(np.float64), self._numbers.reading(group)
        if not (np.isfinite(inputs).all() and (reading or self.specification.within(inputs, group)[0])):
            return None
        outputs = np.asarray(self.model.evaluate(inside[None]))[0].astype(np.float64)
        in_box = np.zeros(self.specification.num_boxes, dtype=np.bool_)
        in_box[group] = True
        disjunct = self.specification.unsafe_disjunct(outputs, in_box)
        return None if disjunct is None else Counterexample(inputs, outputs, disjunct, reading)

    def why_no_counterexample(self, open_: Tensor) -> str | None:
        """Why nothing in the boxes of disjuncts `open_` (boxes, disjuncts) can be confirmed; None if a point can."""
        if bool((open_.any(dim=1) & self.has_points).any()):
            return None
        return self._numbers.none_in(open_.any(dim=1).cpu().numpy())

    def _box(self, rounded: Any) -> Box:
        pairs = [rounded(self.specification, box, self._numpy_type) for box in range(self.specification.num_boxes)]
        lower, upper = (
            torch.as_tensor(np.stack(side), dtype=self.dtype, device=self.device) for side in zip(*pairs, strict=True)
        )
        shape = (-1, *self.model.input_shape)
        return Box(lower.reshape(shape), upper.reshape(shape))

    def _objective(self) -> Objective:
        spec = self.specification
        row_box = spec.box_of_disjunct[spec.row_disjunct]
        disjuncts = np.bincount(spec.box_of_disjunct, minlength=spec.num_boxes)
        local_disjunct = _position_in_group(spec.box_of_disjunct, spec.num_boxes)
        slot = _position_in_group(row_box, spec.num_boxes)
        width = max(int(np.bincount(row_box, minlength=spec.num_boxes).max(initial=0)), 1)
        size = (spec.num_boxes, width)

        rows = scaled_rows(spec, self._numpy_type)
        coefficients = torch.zeros(*size, spec.num_outputs, dtype=self.dtype)
        places = (row_box[spec.entry_row], slot[spec.entry_row], spec.entry_output)
        coefficients.index_put_(
            tuple(torch.as_tensor(place) for place in places),
            torch.as_tensor(rows.entry_value, dtype=self.dtype),
            accumulate=True,
        )
        bound = torch.zeros(size, dtype=self.dtype)
        bound[row_box, slot] = torch.as_tensor(rows.bound, dtype=self.dtype)
        scale = torch.ones(size, dtype=torch.float64)
        scale[row_box, slot] = torch.as_tensor(rows.scale)
        strict = torch.zeros(size, dtype=torch.bool)
        strict[row_box, slot] = torch.as_tensor(spec.row_strict)
        disjunct = torch.zeros(size, dtype=torch.int64)
        disjunct[row_box, slot] = torch.as_tensor(local_disjunct[spec.row_disjunct])
        padding = torch.ones(size, dtype=torch.bool)
        padding[row_box, slot] = False
        count = max(int(disjuncts.max(initial=0)), 1)
        exists = torch.arange(count) < torch.as_tensor(disjuncts)[:, None]
        index = torch.full((spec.num_boxes, count), -1)
        index[spec.box_of_disjunct, local_disjunct] = torch.arange(spec.num_disjuncts)
        parts = (coefficients, bound, strict, disjunct, padding, exists, index, scale)
        return Objective(*(part.to(self.device) for part in parts))


def _position_in_group(group: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """For each element, how many earlier elements are in the same group."""
    order = np.argsort(group, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(group, minlength=count))[:-1]])
    position = np.empty(group.shape[0], dtype=np.int64)
    position[order] = np.arange(group.shape[0]) - np.repeat(starts, np.bincount(group, minlength=count))
    return position
