"""The windows that a convolution or an average is taken over."""

from __future__ import annotations

from typing import Any

import numpy as np

from zonoplug.certificates.network import Places


def windows_of(places: Places, kernel: tuple[int, ...], attributes: dict[str, Any]) -> Places:
    """The places under each position of a kernel, -1 in the padding: (channels, *positions, *kernel).

    Args:
        places: (1, channels, *spatial).
        attributes: strides, dilations, pads, auto_pad and ceil_mode of an ONNX operator.
    Raises:
        ValueError: attributes that do not fit, or that are not read: automatic padding, rounding up.
    """
    rank = len(kernel)
    strides, dilations = (list(attributes.get(name, [1] * rank)) for name in ("strides", "dilations"))
    pads = list(attributes.get("pads", [0] * 2 * rank))
    mode = attributes.get("auto_pad", b"NOTSET")
    if places.ndim != rank + 2 or places.shape[0] != 1 or not rank:
        raise ValueError("a batch, or another rank than the kernel's")
    if not (len(strides) == len(dilations) == rank and len(pads) == 2 * rank):
        raise ValueError("attributes of another rank")
    if min(*strides, *dilations, *kernel) < 1 or min(pads) < 0 or attributes.get("ceil_mode"):
        raise ValueError("a stride, a dilation or a pad out of range, or positions that are rounded up")
    if mode != b"NOTSET" and not (mode == b"VALID" and not any(pads)):
        raise ValueError("automatic padding")
    padded = np.pad(places[0], [(0, 0), *zip(pads[:rank], pads[rank:], strict=True)], constant_values=-1)
    reach = [dilation * (size - 1) + 1 for dilation, size in zip(dilations, kernel, strict=True)]
    views = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=tuple(range(1, rank + 1)))
    steps = [slice(None, None, step) for step in (1, *strides, *dilations)]
    return np.asarray(views[tuple(steps)])
