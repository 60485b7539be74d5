"""Classes of networks that the checker of certificates reads, and certificates that it must not accept."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from redteam.draws import Draws
from redteam.graph import Graph
from redteam.loading import pool_attributes
from redteam.moving import MOVES
from redteam.planting import Built

READ = ("gather", "expand", "slice", "concat", "gather", "expand", "split", "transpose", "squeeze")
FURTHER_SPLITS = 60
CERTIFICATES = ("trivial", "splits", "slopes", "written", "transplanted", "tampered")
BASE = ("certificate trivial", "certificate slopes", "auto blind")
MODES = tuple(f"certificate {kind}" for kind in CERTIFICATES)


def _all_of(d: Draws, graph: Graph, x: str, low: Any, high: Any, variant: str) -> Built:
    return Built(
        graph, graph.rows(x), low, high, [], variant, modes=MODES, base=BASE, boxes=0.15, beside="gap", gate=0.0
    )


def _box(d: Draws, count: int) -> tuple[Any, Any]:
    centre, radius = d.normal(count, scale=3.0), np.abs(d.normal(count)) * d.choice((0.1, 1.0)) + 0.05
    return centre - radius, centre + radius


def moves(d: Draws) -> Built:
    """Operators that move numbers about, on the input itself."""
    shape = [1, d.integer(1, 4), d.integer(1, 3), d.integer(2, 3)]
    graph = Graph(shape, np.float32, d.choice((13, 17)))
    name = d.turn(READ)
    own = {"expand": _expanded, "gather": _gathered, "squeeze": _squeezed}
    x = own[name](d, graph, shape) if name in own else MOVES[name](d, graph, "X", shape)
    if d.flag(0.3):
        x = graph.add("Relu", x)
    return _all_of(d, graph, x, *_box(d, graph.count), name)


def _expanded(d: Draws, graph: Graph, shape: list[int]) -> str:
    graph.shape = (1, shape[1], 1, 1)
    return str(graph.add("Expand", "X", np.array([1, shape[1], shape[2], shape[3]])))


def _gathered(d: Draws, graph: Graph, shape: list[int]) -> str:
    axis = d.integer(1, 3)
    places = [d.integer(0, shape[axis] - 1) for _ in range(d.integer(1, 3))]
    return str(graph.add("Gather", "X", np.array([*places, *places]), axis=axis))


def _squeezed(d: Draws, graph: Graph, shape: list[int]) -> str:
    graph.shape = (1, shape[1], 1, shape[3])
    return str(graph.add("Unsqueeze", graph.add("Squeeze", "X", np.array([2])), np.array([d.choice((0, 1, 3))])))


def repeats(d: Draws) -> Built:
    """The same number several times: among the outputs, among what is added, among what a matrix multiplies."""
    count, width = d.integer(1, 3), d.integer(2, 3)
    graph = Graph([1, count], np.float32, 17)
    hidden = graph.add("Relu", graph.add("Gemm", "X", d.normal(count, 4), d.normal(4)))
    y = graph.add("Gemm", hidden, d.normal(4, width))
    kind = d.turn(("concat", "gather", "sum", "add", "gemm of twice", "mul and add", "split"))
    if kind == "concat":
        x = graph.add("Concat", y, y, *([y] if d.flag(0.3) else []), axis=1)
    elif kind == "gather":
        x = graph.add("Gather", y, d.arrays.integers(0, width, 4), axis=1)
    elif kind == "sum":
        x = graph.add("Sum", *[y] * d.choice((1, 2, 3)), hidden if width == 4 else y)
    elif kind == "add":
        x = graph.add(d.choice(("Add", "Sub")), graph.add("Mul", y, 3.0), y)
    elif kind == "gemm of twice":
        x = graph.add("Gemm", graph.add("Concat", y, y, axis=1), d.normal(2 * width, 2))
    elif kind == "split":
        parts = graph.add("Split", y, np.array([1, width - 1]), outputs=2, axis=1)
        x = graph.add("Concat", parts[0], parts[0], parts[1], axis=1)
    else:
        x = graph.add("Add", graph.add("Gather", y, np.array([0, 0, 1]), axis=1), d.normal(3))
    return _all_of(d, graph, x, -np.ones(count), np.ones(count), kind)


def affine(d: Draws) -> Built:
    """Convolutions, pools, normalisations and products with constants."""
    shape = [1, d.integer(1, 2), d.integer(2, 4), d.integer(2, 4)]
    graph = Graph(shape, np.float32, d.choice((13, 17)))
    kind = d.turn(("conv", "avgpool", "batchnorm", "gemm", "matmul", "div", "global"))
    if kind == "conv":
        pads = [d.integer(0, 1) for _ in range(4)]
        x = graph.add("Conv", "X", d.normal(2, shape[1], 2, 2), d.normal(2), pads=pads, strides=[1, d.integer(1, 2)])
    elif kind == "avgpool":
        x = graph.add("AveragePool", "X", **pool_attributes(d, (shape[2], shape[3]), "AveragePool"))
    elif kind == "batchnorm":
        c = shape[1]
        x = graph.add("BatchNormalization", "X", d.normal(c), d.normal(c), d.normal(c), np.abs(d.normal(c)) + 0.1)
    elif kind == "gemm":
        x = graph.add(
            "Gemm", graph.rows("X"), d.normal(graph.count, 2), d.normal(2), alpha=d.choice((1.0, -2.0)), beta=0.5
        )
    elif kind == "matmul":
        x = graph.add("MatMul", "X", d.normal(shape[3], 2))
    elif kind == "div":
        x = graph.add("Div", graph.add("Sub", d.normal(1, shape[3]), "X"), d.uniform(0.5, 2, 1, shape[3]))
    else:
        x = graph.add("GlobalAveragePool", "X")
    if d.flag(0.4):
        x = graph.add("Relu", x)
    return _all_of(d, graph, x, *_box(d, graph.count), kind)


def functions(d: Draws) -> Built:
    """Small networks of ReLU, LeakyReLU of any slope, Clip, sigmoid and tanh."""
    count, width = d.integer(1, 3), d.integer(2, 5)
    graph = Graph([1, count], np.float32, 17)
    x, names = graph.add("Gemm", "X", d.normal(count, width), d.normal(width)), []
    for _ in range(d.integer(1, 2)):
        kind = d.choice(("Relu", "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh"))
        names.append(kind)
        slope = {"alpha": d.choice((0.1, 1.0, 1.7, 4.0, 0.0))} if kind == "LeakyRelu" else {}
        ends = [d.choice((-0.5, 0.0)), d.choice((0.5, 6.0))] if kind == "Clip" else []
        made = graph.add(kind, x, *ends, **slope)
        x = graph.add("Gemm", graph.add("Add", made, x) if d.flag(0.3) else made, d.normal(width, width))
    return _all_of(d, graph, x, -np.ones(count), np.ones(count), " ".join(names))


def make_certificate(kind: str, d: Draws, model: Path, spec: Path, easy: Path, to: Path) -> bool:
    """Write a certificate of a kind for `spec`, which is violated; False if this kind gives none here.

    "trivial": one leaf for each box. "splits": a random tree on inputs. "slopes": one on signs too, with slopes and
    multipliers. "written": what the verifier itself writes. "transplanted": what it writes for `easy`, which holds,
    under the name of `spec`; "tampered": the same with something changed.
    """
    if kind in ("written", "transplanted", "tampered"):
        of = spec if kind == "written" else easy
        if not _verifiers(model, of, to):
            return False
        if kind == "written":
            return True
        lines = [json.loads(line) for line in to.read_text().splitlines()]
        lines[0]["specification_sha256"] = hashlib.sha256(spec.read_bytes()).hexdigest()
        if kind == "tampered":
            _tamper(d, lines)
    else:
        try:
            lines = _made_up(kind, d, model, spec)
        except (ImportError, AttributeError):  # the reader of specifications has other parts now
            return False
    to.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return True


def _verifiers(model: Path, spec: Path, to: Path) -> bool:
    from zonoplug.worker import answer

    if not spec.exists():
        return False
    settings = {"timeout_seconds": 1.0, "device": "cpu", "without": ("attack", "inner-attack")}
    request = {"job": "verify", "model": str(model), "specification": str(spec), "settings": settings}
    answer(request | {"certificate": str(to)})
    return to.exists() and to.stat().st_size > 0


def _made_up(kind: str, d: Draws, model: Path, spec: Path) -> list[dict[str, Any]]:
    from zonoplug.io.vnnlib import read_specification

    read = read_specification(spec)
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (model, spec)]
    header = {"format": "zonoplug certificate", "version": 1, "model_sha256": sums[0], "specification_sha256": sums[1]}
    lines: list[dict[str, Any]] = [header | {"made_by": "red team"}]
    sizes = _relu_sizes(model) if kind == "slopes" else []
    for box in range(read.num_boxes):
        disjuncts = [number for number, at in enumerate(read.box_of_disjunct) if at == box]
        low, high = np.asarray(read.lower[box], float), np.asarray(read.upper[box], float)
        nodes = _tree(d, low, high, sizes, 0 if kind == "trivial" else 3)
        lines += [{"box": box, "disjuncts": disjuncts, "nodes": len(nodes)}, *nodes]
    return lines


def _tree(
    d: Draws, low: Any, high: Any, sizes: list[int], depth: int, fixed: tuple[Any, ...] = ()
) -> list[dict[str, Any]]:
    if depth and d.flag(0.7):
        layers = [number for number, size in enumerate(sizes) if size]
        if layers and d.flag():
            layer = d.choice(layers)
            neuron = layer, d.integer(0, sizes[layer] - 1)
            if neuron not in fixed:
                halves = [_tree(d, low, high, sizes, depth - 1, (*fixed, neuron)) for _ in range(2)]
                return [{"split": "relu", "layer": neuron[0], "neuron": neuron[1]}, *halves[0], *halves[1]]
        axis = d.integer(0, low.size - 1)
        at = float(low[axis] + d.choice((0.0, 0.5, 0.3, 1.0)) * (high[axis] - low[axis]))
        if low[axis] <= at <= high[axis]:
            upper, lower = high.copy(), low.copy()
            upper[axis] = lower[axis] = at
            halves = [_tree(d, *box, sizes, depth - 1, fixed) for box in ((low, upper), (lower, high))]
            return [{"split": "input", "input": axis, "at": at}, *halves[0], *halves[1]]
    leaf: dict[str, Any] = {"leaf": d.choice(("zonotope", "", "alpha-zonotope"))}
    if sizes and d.flag():
        slopes = d.arrays.random(sum(sizes)).astype("<f2")
        leaf["alpha"] = base64.b64encode(zlib.compress(slopes.tobytes())).decode()
        leaf["beta"] = [[layer, neuron, d.choice((0.5, 10.0, 1e300))] for layer, neuron in fixed]
    return [leaf]


def _relu_sizes(model: Path) -> list[int]:
    try:
        from zonoplug.certificates.onnx_reader import read_network

        return [int(block.places.size) for block in read_network(model)[0].relus]
    except (ImportError, AttributeError):
        return []


def _tamper(d: Draws, lines: list[dict[str, Any]]) -> None:
    changes: list[Callable[[], Any]] = [
        lambda: lines.append({"box": 0, "disjuncts": [0], "nodes": 0}),
        lambda: lines[1].update(disjuncts=[]),
        lambda: lines[1].update(box=7),
        lambda: lines[1].update(nodes=0),
        lambda: lines.pop(),
        lambda: lines[-1].update(alpha="AAAA"),
        lambda: lines[-1].update(beta=[[0, 0, 1e308]]),
        lambda: lines[-1].update(split="input", input=0, at=1e9),
        lambda: lines[0].update(version=True),
    ]
    d.choice(changes)()
