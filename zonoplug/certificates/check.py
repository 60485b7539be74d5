"""Checks a certificate of `unsat`: its trees cover every input box, and every leaf is proved again.

Nothing that a certificate says is believed. Boxes come from the specification, split constraints from the tree;
recorded slopes and multipliers are suggestions that any value of would be sound. What is shared with the search is the
reader of VNN-LIB files, and what tells whether all that ONNX Runtime makes of a model is known (`check_runtime`);
networks are read, and bounded, by code of its own, in float64 with outward rounding.

A valid certificate says that no point of an input box reaches the unsafe set: neither for the function over real
numbers that the file describes, nor for what ONNX Runtime may compute in the model's own number type, in any order of
summation, with or without fused multiply-add, at any of its optimisation levels. runtime_rounding.py lists what is
assumed of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zonoplug.certificates.agreement import require_agreement
from zonoplug.certificates.certificate import (
    Certificate,
    CertificateError,
    Floats,
    InputSplit,
    Proof,
    ReluSplit,
    read_certificate,
    sha256_of,
)
from zonoplug.certificates.network import Network
from zonoplug.certificates.onnx_reader import read_network
from zonoplug.certificates.prover import Prover, Region, Rows
from zonoplug.errors import UnsupportedOperatorError
from zonoplug.specification import Specification

FURTHER_SPLITS = 20_000
SHOWN_REGIONS = 20


@dataclass(slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        leaves: in the certificate.
        further_splits: that the checker made where a leaf resisted.
        unproved: (number, description) of leaves that stay open; the certificate is valid if there is none.
        seconds: wall time.
    """

    leaves: int = 0
    further_splits: int = 0
    unproved: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def valid(self) -> bool:
        return not self.unproved

    def text(self) -> str:
        """For people: one line, and one for each leaf that is not proved, up to a few."""
        counts = f"{self.leaves} leaves, {self.further_splits} further splits, {self.seconds:.2f} s"
        if self.valid:
            return f"valid: every leaf is proved again ({counts})"
        lines = [f"not valid: {len(self.unproved)} leaves could not be proved again ({counts})"]
        lines += [f"  leaf {number}: {what}" for number, what in self.unproved[:SHOWN_REGIONS]]
        return "\n".join(lines + ["  ..."] * (len(self.unproved) > SHOWN_REGIONS))


def check_certificate(
    model: str | Path, specification: str | Path, certificate: str | Path, further_splits: int = FURTHER_SPLITS
) -> CheckReport:
    """Prove all over again what a certificate claims.

    Args:
        model, specification: an ONNX and a VNN-LIB file, plain or gzipped.
        certificate: what `zonoplug verify --certificate` wrote.
        further_splits: how many splits the checker may add where a leaf resists its bounds.
    Raises:
        CertificateError: the certificate is malformed, of other files, or does not cover the specification.
        ModelError: the network cannot be read, or not run.
        UnsupportedOperatorError: the network has an operator that the checker does not know, or ONNX Runtime executes
            something whose rounding is not known.
        ModelMismatchError: the checker's network and ONNX Runtime disagree.
    """
    from zonoplug.io.runtime import check_runtime
    from zonoplug.io.vnnlib import read_specification

    start = time.monotonic()
    claim = read_certificate(certificate)
    for noun, path, recorded in (
        ("network", model, claim.model_sha256),
        ("specification", specification, claim.specification_sha256),
    ):
        if sha256_of(path) != recorded:
            raise CertificateError(f"{certificate}: was made for another {noun} than {path}.")
    spec = read_specification(specification)
    network, source = read_network(model)
    if (network.num_inputs, network.outputs.size) != (spec.num_inputs, spec.num_outputs):
        raise CertificateError(f"{specification}: belongs to another network than {model}.")
    unknown = check_runtime(source)
    if unknown is not None:
        raise UnsupportedOperatorError(f"Nothing can be proved about {model}: {unknown}.")
    require_agreement(network, source, spec)
    _require_all_disjuncts(claim, spec)
    report = CheckReport()
    shared: dict[int, list[tuple[Floats, Floats]]] = {}
    with np.errstate(all="ignore"):  # what overflows becomes NaN or infinite, and proves nothing
        for proof in claim.proofs:
            _check_proof(network, spec, proof, further_splits, report, shared.setdefault(proof.box, []))
    report.seconds = time.monotonic() - start
    return report


def regions_of(proof: Proof, lower: Floats, upper: Floats, network: Network, first: int = 0) -> Iterator[Region]:
    """The leaves of a tree as regions, in preorder; together they cover the box [lower, upper] (inputs,).

    Raises:
        CertificateError: nodes are missing or left over, or a split is outside of its subdomain.
    """
    sizes = [block.places.size for block in network.relus]
    stack: list[tuple[Floats, Floats, dict[tuple[int, int], int]]] = [(lower, upper, {})]
    number = first
    for place, node in enumerate(proof.nodes):
        if not stack:
            raise CertificateError(f"The tree of box {proof.box} is complete before its node {place}.")
        low, high, phases = stack.pop()
        if isinstance(node, InputSplit):
            axis = node.input
            if not (axis < low.size and low[axis] <= node.at <= high[axis]):
                raise CertificateError(f"Node {place} of box {proof.box}: its split lies outside of its subdomain.")
            middle_high, middle_low = high.copy(), low.copy()
            middle_high[axis] = middle_low[axis] = node.at
            stack += [(middle_low, high, phases), (low, middle_high, phases)]
        elif isinstance(node, ReluSplit):
            key = (node.layer, node.neuron)
            if not (node.layer < len(sizes) and node.neuron < sizes[node.layer] and key not in phases):
                raise CertificateError(f"Node {place} of box {proof.box}: there is no neuron {key} to split on.")
            stack += [(low, high, {**phases, key: -1}), (low, high, {**phases, key: 1})]
        else:
            if any(layer >= len(sizes) or neuron >= sizes[layer] for layer, neuron, _ in node.beta):
                raise CertificateError(f"Node {place} of box {proof.box}: multipliers of neurons that do not exist.")
            if node.alpha is not None and node.alpha.size != sum(sizes):
                raise CertificateError(
                    f"Node {place} of box {proof.box}: {node.alpha.size} slopes for {sum(sizes)} ReLU neurons."
                )
            yield Region(low, high, phases, node, number)
            number += 1
    if stack:
        raise CertificateError(f"The tree of box {proof.box} is not complete: {len(stack)} subdomains are missing.")


def _check_proof(
    network: Network,
    spec: Specification,
    proof: Proof,
    further_splits: int,
    report: CheckReport,
    shared: list[tuple[Floats, Floats]],
) -> None:
    lower = np.nextafter(spec.lower[proof.box], -np.inf)  # decimal numbers were rounded to the nearest
    upper = np.nextafter(spec.upper[proof.box], np.inf)
    first = report.leaves
    prover = Prover(network, Rows(spec, proof.disjuncts), lower, upper, shared)
    waiting: list[Region] = []

    def work() -> None:
        left = further_splits - report.further_splits
        stuck, made = prover.prove(waiting, left)
        report.further_splits += made
        report.unproved += [(region.number, _describe(region, proof)) for region in stuck]
        waiting.clear()

    for region in regions_of(proof, lower, upper, network, first):
        report.leaves += 1
        waiting.append(region)
        if len(waiting) >= prover.batch:
            work()
    work()


def _require_all_disjuncts(claim: Certificate, spec: Specification) -> None:
    proved: set[int] = set()
    for proof in claim.proofs:
        if proof.box >= spec.num_boxes or not proof.disjuncts:
            raise CertificateError(
                f"The certificate speaks of box {proof.box}; the specification has {spec.num_boxes}."
            )
        for disjunct in proof.disjuncts:
            if disjunct >= spec.num_disjuncts or spec.box_of_disjunct[disjunct] != proof.box:
                raise CertificateError(f"The specification has no disjunct {disjunct} in box {proof.box}.")
        proved.update(proof.disjuncts)
    missing = sorted(set(range(spec.num_disjuncts)) - proved)
    if missing:
        raise CertificateError(f"The certificate proves nothing about disjunct {missing[0]} of the specification.")


def _describe(region: Region, proof: Proof) -> str:
    phases = f", {len(region.phases)} split constraints" if region.phases else ""
    method = f", proved by {region.leaf.method}" if region.leaf.method else ", not bounded by the search"
    varying = np.flatnonzero(region.upper > region.lower)[:6]
    ranges = "".join(f", x_{i} in [{region.lower[i]:.6g}, {region.upper[i]:.6g}]" for i in varying)
    return f"box {proof.box}{phases}{method}{ranges}"
