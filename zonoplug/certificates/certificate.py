"""The file format of a proof of `unsat`: one JSON object a line, plain or gzipped (.gz).

    {"format": "zonoplug certificate", "version": 1, "model_sha256": ..., "specification_sha256": ..., "made_by": ...}
    {"box": 0, "disjuncts": [0, 1], "nodes": 3}           a proof: these disjuncts are out of reach in this input box
    {"split": "input", "input": 4, "at": 0.25}            its tree in preorder: first x_4 <= 0.25, then x_4 >= 0.25
    {"leaf": "zonotope+crown"}                            the method that proved a leaf
    {"split": "relu", "layer": 1, "neuron": 7}            first the neuron's input >= 0, then <= 0
    {"leaf": "...", "alpha": "...", "beta": [[layer, neuron, value], ...]}

Hashes are of the uncompressed files. Boxes and disjuncts are numbered as in the Specification, layers as the ReLUs of
the ONNX file, neurons in C order. `alpha` holds the lower slopes of all ReLUs, layers one after another, as float16,
deflated, in base64; `beta` the multipliers of the split constraints. A tree says nothing about boxes: they follow from
the specification and the splits, so a tree without holes covers its input box whatever numbers it has.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zonoplug.errors import ZonoplugError

FORMAT = "zonoplug certificate"
VERSION = 1
MAX_LINES = 4_000_000
MAX_DEPTH = 8
MAX_SLOPES = 10_000_000

Floats = NDArray[np.float64]


class CertificateError(ZonoplugError):
    """A certificate that cannot be read, is of other files, or leaves something out."""


@dataclass(frozen=True, slots=True)
class InputSplit:
    """x_input <= at, and x_input >= at."""

    input: int
    at: float


@dataclass(frozen=True, slots=True)
class ReluSplit:
    """The input of a ReLU's neuron >= 0, and <= 0."""

    layer: int
    neuron: int


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A subdomain that one bound excluded.

    Attributes:
        method: of the search, for people; "" for a region that the search needed no bound for.
        alpha: lower slopes of all ReLUs side by side, in [0, 1], or None.
        beta: (layer, neuron) to multiplier >= 0.
    """

    method: str
    alpha: Floats | None = None
    beta: tuple[tuple[int, int, float], ...] = ()


Node = InputSplit | ReluSplit | Leaf


@dataclass(frozen=True, slots=True)
class Proof:
    """That some disjuncts of one input box are out of reach: a tree in preorder."""

    box: int
    disjuncts: tuple[int, ...]
    nodes: list[Node]


@dataclass(frozen=True, slots=True)
class Certificate:
    """Proofs, and the files they are about."""

    model_sha256: str
    specification_sha256: str
    proofs: list[Proof]
    made_by: str = ""

    def lines(self) -> Iterator[str]:
        """The file's lines."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "model_sha256": self.model_sha256,
            "specification_sha256": self.specification_sha256,
            "made_by": self.made_by,
        }
        yield json.dumps(header)
        for proof in self.proofs:
            yield json.dumps({"box": proof.box, "disjuncts": list(proof.disjuncts), "nodes": len(proof.nodes)})
            for node in proof.nodes:
                yield json.dumps(_as_json(node))

    def data(self, compress: bool) -> bytes:
        """The file's content."""
        text = "".join(f"{line}\n" for line in self.lines()).encode()
        return gzip.compress(text, mtime=0) if compress else text


def sha256_of(path: str | Path) -> str:
    """The hash of a file's content, uncompressed if it is gzipped. Raises CertificateError if it cannot be read."""
    return hashlib.sha256(_content(path)).hexdigest()


def read_certificate(path: str | Path) -> Certificate:
    """Read a certificate and check its form; what it claims is not checked here.

    Raises:
        CertificateError: the file cannot be read, or a line is not as the format says.
    """
    lines = _content(path).decode("utf-8", "replace").splitlines()
    if len(lines) > MAX_LINES:
        raise CertificateError(f"{path}: {len(lines)} lines; at most {MAX_LINES} are read.")
    objects = [_parsed(path, number, line) for number, line in enumerate(lines, 1)]
    if not objects or objects[0].get("format") != FORMAT:
        raise CertificateError(f"{path}: is not a certificate of zonoplug.")
    header = objects[0]
    if header.get("version") != VERSION:
        raise CertificateError(f"{path}: is of version {header.get('version')!r}; this checker reads {VERSION}.")
    proofs, place = [], 1
    while place < len(objects):
        try:
            head = objects[place]
            count = _natural(head["nodes"])
            if not count <= len(objects) - place - 1:
                raise ValueError(f"{count} nodes are announced, the file ends before")
            box, disjuncts = _natural(head["box"]), tuple(map(_natural, head["disjuncts"]))
            first, place = place + 1, place + 1 + count
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise _malformed(path, place, error) from error
        nodes = []
        for number in range(first, place):
            try:
                nodes.append(_from_json(objects[number]))
            except (KeyError, TypeError, ValueError, OverflowError, zlib.error) as error:
                raise _malformed(path, number, error) from error
        proofs.append(Proof(box, disjuncts, nodes))
    hashes = str(header.get("model_sha256")), str(header.get("specification_sha256"))
    return Certificate(*hashes, proofs, str(header.get("made_by", "")))


def _as_json(node: Node) -> dict[str, Any]:
    if isinstance(node, InputSplit):
        return {"split": "input", "input": node.input, "at": node.at}
    if isinstance(node, ReluSplit):
        return {"split": "relu", "layer": node.layer, "neuron": node.neuron}
    shown: dict[str, Any] = {"leaf": node.method}
    if node.alpha is not None:
        shown["alpha"] = base64.b64encode(zlib.compress(node.alpha.astype("<f2").tobytes())).decode()
    if node.beta:
        shown["beta"] = [list(entry) for entry in node.beta]
    return shown


def _from_json(value: dict[str, Any]) -> Node:
    kind = value.get("split")
    if kind == "input":
        return InputSplit(_natural(value["input"]), _finite(value["at"]))
    if kind == "relu":
        return ReluSplit(_natural(value["layer"]), _natural(value["neuron"]))
    if kind is not None or not isinstance(value["leaf"], str):
        raise ValueError(f"no node of a tree: {value!r:.80}")
    alpha = None
    if "alpha" in value:
        unpack = zlib.decompressobj()
        raw = unpack.decompress(base64.b64decode(value["alpha"], validate=True), 2 * MAX_SLOPES)
        alpha = np.frombuffer(raw, "<f2").astype(np.float64)
        if not ((alpha >= 0) & (alpha <= 1)).all():
            raise ValueError("a slope of a ReLU lies outside [0, 1]")
    beta = tuple((_natural(layer), _natural(neuron), _finite(at)) for layer, neuron, at in value.get("beta", ()))
    if not all(at >= 0 for _, _, at in beta):
        raise ValueError("a multiplier is below 0")
    return Leaf(value["leaf"], alpha, beta)


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.40} is not a number from 0 up")
    return value


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) < float("inf"):
        raise ValueError(f"{value!r:.40} is not a finite number")
    return float(value)


def _parsed(path: str | Path, number: int, line: str) -> dict[str, Any]:
    try:
        steps = (1 if bracket in "[{" else -1 for bracket in re.sub(r"[^][{}]", "", line))
        if max(itertools.accumulate(steps), default=0) > MAX_DEPTH:  # the parser would run out of stack
            raise ValueError("brackets are nested too deeply")
        value = json.loads(line)
        if not isinstance(value, dict):
            raise ValueError("not an object")
        return value
    except ValueError as error:
        raise _malformed(path, number - 1, error) from error


def _malformed(path: str | Path, place: int, error: Exception) -> CertificateError:
    reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return CertificateError(f"{path}, line {place + 1}: is not as the format says: {reason}.")


def _content(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise CertificateError(f"{path}: cannot be read: {error}") from error
