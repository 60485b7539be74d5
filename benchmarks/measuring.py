"""What the benchmarks of speed and memory share: times of both sides in turn, peak tensor memory, networks, results."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zonoplug.domain.input_sets import Box
from zonoplug.lirpa.compat import HOST_VERSION
from zonoplug.report.tables import markdown_table

RESULTS = Path(__file__).resolve().parent / "results"


def median_seconds(sides: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median time of each side; one after the other in each round, so that other work hits all. A first round warms.

    With one thread, time of the processor in this process, which other processes disturb less; else wall time.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(repeats + 1):
        for name, run in sides.items():
            start = clock()
            run()
            if number:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_bytes(run: Callable[[], Any]) -> int:
    """Most bytes of tensors that a call has alive at once, beyond those before it; by torch's own account of the CPU.

    Memory that a library takes for itself inside an operator is not in it.
    """
    run()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def fully_connected(inputs: int, width: int, depth: int) -> nn.Module:
    """`depth` hidden ReLU layers of `width` neurons, ten outputs."""
    layers: list[nn.Module] = []
    for size in [inputs, *[width] * (depth - 1)]:
        layers += [nn.Linear(size, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10)).eval()


def convolutional(channels: int, size: int, depth: int) -> nn.Module:
    """`depth` 3x3 convolutions of `channels` channels on 3 x size x size, the last with stride 2, two dense layers."""
    layers: list[nn.Module] = []
    for number in range(depth):
        stride = 2 if number == depth - 1 else 1
        layers += [nn.Conv2d(channels if number else 3, channels, 3, stride=stride, padding=1), nn.ReLU()]
    flat = channels * ((size + 1) // 2) ** 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, 100), nn.ReLU(), nn.Linear(100, 10)).eval()


def perturbed_corner(point: Tensor, count: int, radius: float) -> Box:
    """A box around a point (1, *shape), in its first `count` coordinates."""
    room = torch.zeros_like(point).flatten(1)
    room[:, :count] = radius
    return Box.ball(point, room.reshape(point.shape))


def write(name: str, text: str) -> None:
    """Print a report, and keep it in benchmarks/results."""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)


def report(title: str, command: str, sections: Mapping[str, tuple[str, Sequence[str], Sequence[Sequence[str]]]]) -> str:
    """Markdown: a title, how it was made, and for each section a sentence and a table."""
    made = f"Made by `{command}`: torch {torch.__version__}, {torch.get_num_threads()} threads, {_processor()}."
    clock = "processor" if torch.get_num_threads() == 1 else "wall"
    caution = f"Medians of {clock} time. Other work may have run on the machine; ratios compare sides of one run."
    parts = [f"# {title}\n\n{made}\n{caution}"]
    for name, (sentence, header, rows) in sections.items():
        parts.append(f"## {name}\n\n{sentence}\n\n{markdown_table(header, rows)}")
    return "\n\n".join(parts) + "\n"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def host() -> str:
    return f"auto_LiRPA {HOST_VERSION}"
