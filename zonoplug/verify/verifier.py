"""The main job: attack first, then bound by ever stronger methods, then split, until the time is up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import torch
from torch import Tensor

from zonoplug.clock import Deadline
from zonoplug.errors import HostError, UnsupportedOperatorError, ZonoplugError
from zonoplug.verify.attack.attack import Attack
from zonoplug.verify.bounds.bounder import Bounder, BrokenMethodError, check_bounds
from zonoplug.verify.branching.by_name import Branching
from zonoplug.verify.observer import Observer
from zonoplug.verify.outcome import Counterexample, Outcome, Verdict
from zonoplug.verify.problem.problem import Objective, Problem
from zonoplug.verify.search.base import Search
from zonoplug.verify.search.input_search import BranchAndBound
from zonoplug.verify.search.method_search import MethodSearch
from zonoplug.verify.search.mixed_search import MixedSearch
from zonoplug.verify.search.relu_search import ActivationSearch
from zonoplug.verify.settings import Settings, load_problem
from zonoplug.verify.stages import OWN_SPLITS, Stage, stages

AGREEMENT_POINTS = 8
ROOT_BATCH = 64
SPLITTABLE_INPUTS = 64
QUICK_ATTACK_SECONDS = 2.0
QUICK_CHANGES = 40
LONG_ATTACK_SHARE = 0.15
CHANGES_SHARE = 0.05
JUMPS_SHARE = 0.3  # of the time: bounds say little about networks that jump


def verify_files(model_path: str | Path, specification_path: str | Path, settings: Settings | None = None) -> Outcome:
    """Decide whether a network can reach the unsafe set of a specification.

    Args:
        model_path, specification_path: an ONNX and a VNN-LIB file, plain or gzipped.
        settings: limits and choices; the default ones if None.
    Raises:
        ZonoplugError: as `load_problem`, and ModelMismatchError where the loaded model and ONNX Runtime disagree.
    """
    settings = settings or Settings()
    deadline = Deadline(settings.timeout_seconds)
    settings.check()
    return Verification(load_problem(model_path, specification_path, settings), settings, deadline).run()


class SearchOptions(TypedDict):
    """What every search takes."""

    observer: Observer
    without: tuple[str, ...]


class Verification:
    """One run over one problem; an observer is told of every step."""

    def __init__(
        self, problem: Problem, settings: Settings, deadline: Deadline, observer: Observer | None = None
    ) -> None:
        self._problem = problem
        self._settings = settings
        self._branching = Branching.named(settings.branching)
        self._deadline = deadline
        self._attack = Attack(problem, settings.seed, settings.without)
        self._observer = observer or Observer()
        self._outcome = Outcome(Verdict.UNKNOWN, statistics=self._observer.statistics)
        self._open = problem.objective.exists

    def run(self) -> Outcome:
        """Attack, bound, split. The outcome says `timeout` if the deadline passed first."""
        with self._observer.stage("attack"):
            found = self._quick_attack()
        if found is not None:
            return self._finish(Verdict.VIOLATED, "attack", found)
        if not bool(self._problem.objective.exists.any()):
            return self._finish(Verdict.HOLDS, "reading: no disjunct can be satisfied")
        try:
            with self._observer.stage("graph"):
                self._check_model()
                bounder = Bounder(self._problem)
                bounder.check_points(self._attack.referee)
        except (HostError, UnsupportedOperatorError, BrokenMethodError) as error:
            self._outcome.notes.append(str(error))
            return self._keep_attacking(None)
        outcome = self._bound_and_split(bounder)
        outcome.notes.extend(bounder.notes)
        return outcome

    def _bound_and_split(self, bounder: Bounder) -> Outcome:
        objective = self._problem.objective
        splittable = self._problem.num_perturbed <= SPLITTABLE_INPUTS
        excluded = torch.zeros_like(objective.exists)
        for stage in self._stages(splittable):
            if self._deadline.passed:
                return self._finish(Verdict.TIMEOUT, stage.method)
            if stage.kind == "root":
                with self._observer.stage(stage.name):
                    now = self._at_root(bounder, stage.method, objective.without(excluded)) & objective.exists
                self._observer.excluded_at_root(now, stage.name)
                excluded |= now
                self._open = objective.exists & ~excluded
                if bool((excluded | ~objective.exists).all()):
                    self._outcome.notes += [f"reductions left {left}"] if (left := bounder.reduced_by) else []
                    return self._finish(Verdict.HOLDS, stage.method)
                continue
            with self._observer.stage(stage.name):
                outcome = self._search(bounder, stage, objective.without(excluded), excluded)
            if outcome is not None:
                return outcome
        return self._keep_attacking(excluded)

    def _stages(self, splittable: bool) -> list[Stage]:
        """What is tried, in this order, until the verdict is reached."""
        perturbed = self._problem.num_perturbed if splittable else None
        every = stages(self._settings.method, perturbed, self._observer.record is not None)
        return [stage for stage in every if not stage.needs(self._settings.without)]

    def _quick_attack(self) -> Counterexample | None:
        found = self._attack.random_points(max(256, self._problem.objective.num_boxes))
        if "attack" in self._settings.without:
            return found
        seconds = min(QUICK_ATTACK_SECONDS, 0.2 * max(self._deadline.left_seconds, 0.0))
        if not self._attack.jumps:
            found = found or self._attack.descend(4, 40, Deadline(seconds))
            return found or self._attack.change_parts(Deadline(seconds / 4), QUICK_CHANGES)
        found = found or self._attack.scan(Deadline(seconds)) or self._attack.descend(4, 40, Deadline(seconds))
        return found or self._attack.change_parts(self._deadline.part(JUMPS_SHARE))

    def _check_model(self) -> None:
        from zonoplug.io.agreement import check_agreement
        from zonoplug.io.runtime import check_runtime

        unknown = check_runtime(self._problem.model.source)
        if unknown is not None:
            raise UnsupportedOperatorError(unknown)
        points = self._attack.points[:AGREEMENT_POINTS]
        check_agreement(self._problem.model, points.flatten(1).cpu().numpy())

    def _at_root(self, bounder: Bounder, method: str, objective: Objective) -> Tensor:
        """The disjuncts (boxes, disjuncts) that a method excludes on the whole input boxes."""
        self._outcome.method = method
        excluded = torch.zeros_like(objective.exists)
        needed = objective.exists.any(dim=1).nonzero().flatten()
        for group in needed.split(ROOT_BATCH):
            try:
                referee = self._attack.referee
                bounds = bounder.bound(method, self._problem.box.pick(group), group, objective)
                seen = torch.isin(referee.groups, group)
                groups = referee.groups[seen]
                at = bounds.lower[torch.searchsorted(group, groups)]
                values = objective.exact_values(referee.outputs[seen], groups)
                check_bounds(method, replace(bounds, lower=at), values, groups, objective)
            except BrokenMethodError as error:
                self._outcome.notes.append(str(error))
                return torch.zeros_like(objective.exists)
            except Exception as error:  # one method failing, out of memory included, must not end the others
                self._note_failure(method, error)
                return torch.zeros_like(objective.exists)
            self._outcome.subdomains += group.shape[0]
            excluded[group] = objective.excluded(objective.margins(bounds.lower, group), group)
            if self._deadline.passed:
                break
        return excluded

    def _search(self, bounder: Bounder, stage: Stage, objective: Objective, excluded: Tensor) -> Outcome | None:
        """One stage of the search; None if it cannot decide, so that another may try."""
        if stage.kind == "attack":
            limit = self._deadline.part(LONG_ATTACK_SHARE)
            found = self._attack.descend(16, 60, limit, excluded, max_batch=64)
            found = found or self._attack.change_parts(self._deadline.part(CHANGES_SHARE), 10 * QUICK_CHANGES)
            return None if found is None else self._finish(Verdict.VIOLATED, "attack", found)
        name, limit = stage.name, self._deadline.part(stage.share)
        self._outcome.method = name
        try:
            result = self._searcher(bounder, stage).run(objective, limit)
        except UnsupportedOperatorError:
            return None  # the next stage does not need it
        except BrokenMethodError as error:
            self._outcome.notes.append(str(error))
            return None
        except Exception as error:
            self._note_failure(name, error)
            return None
        self._outcome.subdomains += result.subdomains
        if result.counterexample is not None:
            return self._finish(Verdict.VIOLATED, name, result.counterexample)
        if result.proved:
            return self._finish(Verdict.HOLDS, name)
        if self._deadline.passed:
            return self._finish(Verdict.TIMEOUT, name)
        if limit.passed or not result.stuck:
            return None
        self._outcome.notes.append(f"{result.stuck} subdomains could not be split further and are still open")
        return None

    def _searcher(self, bounder: Bounder, stage: Stage) -> Search:
        what = self._problem, bounder, self._attack
        options: SearchOptions = {"observer": self._observer, "without": self._settings.without}
        if stage.kind == "mixed splits":
            return MixedSearch(*what, branching=self._branching.mixed, **options)
        if stage.kind == "input splits":
            trial = None if stage.trial is None else self._deadline.part(stage.trial)
            return BranchAndBound(*what, stage.method, branching=self._branching.inputs, trial=trial, **options)
        if stage[:2] == OWN_SPLITS[:2]:
            rule = self._branching.activations
            return ActivationSearch(*what, branching=rule, trial=stage.trial is not None, **options)
        return MethodSearch(*what, stage.method, branching=self._branching.activations, **options)

    def _keep_attacking(self, excluded: Tensor | None) -> Outcome:
        """Nothing can be proved any more: spend the time that is left on the attack, where there is what to attack."""
        restarts = 8
        attackable = self._problem.why_no_counterexample(self._open) is None
        while attackable and not self._deadline.passed and "attack" not in self._settings.without:
            with self._observer.stage("attack"):
                found = self._attack.descend(restarts, 100, self._deadline.part(0.5), excluded, max_batch=64)
                found = found or self._attack.change_parts(self._deadline.part(0.2))
            if found is not None:
                return self._finish(Verdict.VIOLATED, "attack", found)
            restarts = min(2 * restarts, 64)
        return self._finish(Verdict.TIMEOUT if self._deadline.passed else Verdict.UNKNOWN, self._outcome.method)

    def _note_failure(self, method: str, error: Exception) -> None:
        if isinstance(error, ZonoplugError):
            reason = str(error)
        else:
            reason = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0][:200]}"
        self._outcome.notes.append(f"method {method} failed: {reason}")

    def _finish(self, verdict: Verdict, method: str, found: Counterexample | None = None) -> Outcome:
        self._observer.statistics.subdomains = self._outcome.subdomains
        self._observer.statistics.points_tried = self._attack.points_tried
        if verdict is Verdict.HOLDS:
            self._observer.statistics.volume_proved = 1.0
        if verdict in (Verdict.UNKNOWN, Verdict.TIMEOUT):
            reason = self._problem.why_no_counterexample(self._open)
            if reason is not None:
                self._outcome.notes.append(reason)
                verdict = Verdict.UNKNOWN
        self._outcome.verdict = verdict
        self._outcome.method = method
        self._outcome.counterexample = found
        if found is not None and found.reading:
            self._outcome.notes.append(found.reading)
        self._outcome.seconds = self._deadline.elapsed_seconds
        return self._outcome
