"""Certifying functions: whether the decision stands while given features are free."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.domain.input_sets import Box
from zonoplug.explain.counterfactual import attack_boxes
from zonoplug.explain.decision import Decision, takes_batches
from zonoplug.explain.region import Region
from zonoplug.explain.traversals import Answer
from zonoplug.io.onnx_model import OnnxModel
from zonoplug.lirpa.methods import BoundMethod
from zonoplug.lirpa.module import ZonotopeModule
from zonoplug.specification import Specification, Variable
from zonoplug.verify.bounds.sound_bounds import SoundBounds
from zonoplug.verify.outcome import Verdict
from zonoplug.verify.problem.problem import Problem
from zonoplug.verify.settings import Settings
from zonoplug.verify.verifier import Verification

SAMPLES = 64


@dataclass(slots=True, eq=False)
class BoundOracle:
    """Answers by one bound method on the whole box: PROVED or UNKNOWN.

    Attributes:
        module: the network in the host.
        region, decision: of one input.
        method: any bound method, ours or the host's.
    """

    module: ZonotopeModule
    region: Region
    decision: Decision
    method: str = "zonotope+crown"
    _bounds: SoundBounds = field(init=False)

    def __post_init__(self) -> None:
        BoundMethod.parse(self.method)
        self._bounds = SoundBounds(self.module, takes_batches(self.module, self.module, self.region.point))

    def lower(self, free: Tensor) -> Tensor:
        """Lower bounds of the margins while features (features,) or (m, features) are free: (1 or m, rivals).

        They hold for what the network's evaluation computes, as in the verifier.
        """
        box, rows, offset = self.region.freed(free), self.decision.rows, self.decision.offset
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            lower, _ = self._bounds.lower(BoundMethod.parse(self.method), box, rows)
        return lower + offset - (lower.abs() + offset.abs()) * torch.finfo(lower.dtype).eps

    def __call__(self, free: Tensor) -> Answer:
        return Answer.PROVED if bool((self.lower(free) > 0).all()) else Answer.UNKNOWN


@dataclass(slots=True, eq=False)
class VerifierOracle:
    """Answers by the whole verifier, attack and search included.

    Attributes:
        model: the network as read from its file.
        region, decision: of one input.
        timeout_seconds: for each call.
        counterexamples: points (inputs,) found, in the order of the calls that found one.
    """

    model: OnnxModel
    region: Region
    decision: Decision
    timeout_seconds: float = 10.0
    method: str = "auto"
    counterexamples: list[Tensor] = field(default_factory=list)

    def __call__(self, free: Tensor) -> Answer:
        settings = Settings(timeout_seconds=self.timeout_seconds, method=self.method, device="cpu")
        problem = Problem(specification_of(self.region.freed(free), self.decision), self.model, torch.device("cpu"))
        outcome = Verification(problem, settings, Deadline(self.timeout_seconds)).run()
        if outcome.counterexample is not None:
            self.counterexamples.append(torch.as_tensor(outcome.counterexample.inputs))
        return {Verdict.HOLDS: Answer.PROVED, Verdict.VIOLATED: Answer.REFUTED}.get(outcome.verdict, Answer.UNKNOWN)


@dataclass(slots=True, eq=False)
class CascadeOracle:
    """Asks one oracle after the other until one knows: cheap ones first."""

    oracles: tuple[BoundOracle | VerifierOracle | AttackOracle, ...]

    def __call__(self, free: Tensor) -> Answer:
        for oracle in self.oracles:
            answer = oracle(free)
            if answer is not Answer.UNKNOWN:
                return answer
        return Answer.UNKNOWN


@dataclass(slots=True, eq=False)
class AttackOracle:
    """Answers by attack alone: REFUTED or UNKNOWN."""

    network: torch.nn.Module
    region: Region
    decision: Decision
    steps: int = 20

    def __call__(self, free: Tensor) -> Answer:
        found = attack_boxes(self.network, self.region.freed(free), self.decision, self.steps)
        return Answer.REFUTED if bool(found.violated.any()) else Answer.UNKNOWN


def specification_of(box: Box, decision: Decision) -> Specification:
    """What the verifier is asked: can any margin be <= 0 in the box (1, *shape)? One disjunct for each rival."""
    rows = decision.rows[0].double().cpu().numpy()
    row, output = np.nonzero(rows)
    count, outputs = rows.shape
    lower, upper = (side.flatten(1).double().cpu().numpy() for side in box.interval_hull())
    return Specification(
        version="1.0",
        inputs=Variable("X", "float32", (lower.shape[1],)),
        outputs=Variable("Y", "float32", (outputs,)),
        lower=lower,
        upper=upper,
        box_of_disjunct=np.zeros(count, dtype=np.int64),
        row_disjunct=np.arange(count),
        row_bound=-decision.offset[0].double().cpu().numpy(),
        row_strict=np.zeros(count, dtype=np.bool_),
        entry_row=row,
        entry_output=output,
        entry_value=rows[row, output],
    )
