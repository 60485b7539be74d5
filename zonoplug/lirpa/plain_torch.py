"""Layers and functions of torch written in operators that both hosts know, in place while the host traces a model.

They compute what torch computes, for the shapes and options that occur in inference; other uses go to torch's own.
`compat.build` compares the host's graph with the model afterwards.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

_NEVER = -1e4  # a score of which softmax leaves nothing


def _scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query key' scale + mask) value."""
    if dropout_p or enable_gqa:
        raise NotImplementedError("scaled_dot_product_attention with dropout or grouped queries")
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        rows, columns = int(query.shape[-2]), int(key.shape[-2])
        attn_mask = torch.tensor([[0.0 if j <= i else _NEVER for j in range(columns)] for i in range(rows)])
    if attn_mask is not None:
        scores = scores + _additive(attn_mask, scores)
    return torch.softmax(scores, -1) @ value


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """A mask as numbers to add: where a boolean one is false, so much that nothing is left of a softmax there."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    return mask.to(like).clamp(min=_NEVER)


def _attention(
    self: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Multi-head attention over tokens (batch, tokens, size), or (tokens, batch, size) where not `batch_first`."""
    if key_padding_mask is not None or self.bias_k is not None or self.add_zero_attn or query.dim() != 3:
        raise NotImplementedError("MultiheadAttention with a padding mask, added keys, or without a batch")
    inputs = [x if self.batch_first else x.transpose(0, 1) for x in (query, key, value)]
    if self.in_proj_weight is None:
        weights = [self.q_proj_weight, self.k_proj_weight, self.v_proj_weight]
    else:
        weights = list(self.in_proj_weight.split(self.embed_dim))
    biases = [None] * 3 if self.in_proj_bias is None else list(self.in_proj_bias.split(self.embed_dim))
    heads = [
        functional.linear(x, weight, bias)
        .reshape(-1, int(x.shape[1]), self.num_heads, self.head_dim)
        .permute(0, 2, 1, 3)
        for x, weight, bias in zip(inputs, weights, biases, strict=True)
    ]
    scores = heads[0] @ heads[1].permute(0, 1, 3, 2) * (1 / math.sqrt(self.head_dim))
    if attn_mask is not None:
        mask = ~attn_mask if attn_mask.dtype == torch.bool else attn_mask
        mask = mask if mask.dim() == 2 else mask.reshape(-1, self.num_heads, *mask.shape[1:])
        scores = scores + _additive(mask, scores)
    shares = torch.softmax(scores, -1)
    joined = (shares @ heads[2]).permute(0, 2, 1, 3).reshape(-1, int(inputs[0].shape[1]), self.embed_dim)
    result: Tensor = self.out_proj(joined)
    result = result if self.batch_first else result.transpose(0, 1)
    averaged = shares.mean(1) if average_attn_weights else shares
    return result, averaged if need_weights else None


def _gates(cell: Any, count: int, suffix: str = "") -> list[list[Any]]:
    """The weights and biases of a recurrent layer, gate by gate: [[input weights], [state weights], biases ...]."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    found = [getattr(cell, f"{name}{suffix}", None) for name in names]
    return [[None] * count if part is None else list(part.chunk(count)) for part in found]


def _lstm_step(x: Tensor, state: tuple[Tensor, Tensor], gates: list[list[Any]]) -> tuple[Tensor, Tensor]:
    hidden, memory = state
    write, keep, new, read = (
        functional.linear(x, a, c) + functional.linear(hidden, b, d) for a, b, c, d in zip(*gates, strict=True)
    )
    memory = torch.sigmoid(keep) * memory + torch.sigmoid(write) * torch.tanh(new)
    return torch.sigmoid(read) * torch.tanh(memory), memory


def _gru_step(x: Tensor, hidden: Tensor, gates: list[list[Any]]) -> Tensor:
    """(1 - update) new + update hidden, written as new + update (hidden - new)."""
    (of_x, of_hidden) = ([functional.linear(value, a, b) for a, b in zip(*part, strict=True)] for value, part in (
        (x, gates[0::2]), (hidden, gates[1::2])
    ))  # fmt: skip
    reset, update = (torch.sigmoid(of_x[gate] + of_hidden[gate]) for gate in (0, 1))
    new = torch.tanh(of_x[2] + reset * of_hidden[2])
    return new + update * (hidden - new)


def _nothing(x: Tensor, size: int) -> Tensor:
    """Zeros (batch, size) for a row x (batch, inputs)."""
    return (0 * x[:, :1]).expand(-1, size)


def _lstm_cell(self: nn.LSTMCell, x: Tensor, state: Any = None) -> tuple[Tensor, Tensor]:
    start = (_nothing(x, self.hidden_size),) * 2 if state is None else state
    return _lstm_step(x, start, _gates(self, 4))


def _gru_cell(self: nn.GRUCell, x: Tensor, state: Tensor | None = None) -> Tensor:
    return _gru_step(x, _nothing(x, self.hidden_size) if state is None else state, _gates(self, 3))


def _recurrent(step: Callable[..., Any], gates: int, states: int) -> Callable[..., Any]:
    """The forward of a recurrent layer, unrolled over its steps, from zero states."""

    def forward(self: Any, x: Tensor, start: Any = None) -> Any:
        if x.dim() != 3 or start is not None or self.proj_size:
            raise NotImplementedError("a recurrent layer without a batch, with a first state or projections")
        rows = x if self.batch_first else x.transpose(0, 1)
        steps = [rows[:, place] for place in range(int(rows.shape[1]))]
        finals = []
        for layer in range(self.num_layers):
            outputs = []
            for suffix in ("", "_reverse")[: 2 if self.bidirectional else 1]:
                weights = _gates(self, gates, f"_l{layer}{suffix}")
                zero = _nothing(steps[0], self.hidden_size)
                state: Any = (zero,) * states if states > 1 else zero
                along = []
                for value in reversed(steps) if suffix else steps:
                    state = step(value, state, weights)
                    along.append(state[0] if states > 1 else state)
                finals.append(state if states > 1 else (state,))
                outputs.append(along[::-1] if suffix else along)
            steps = [torch.cat(parts, -1) if len(parts) > 1 else parts[0] for parts in zip(*outputs, strict=True)]
        result = torch.cat([value.unsqueeze(1) for value in steps], 1)
        last = tuple(torch.cat([part.unsqueeze(0) for part in parts]) for parts in zip(*finals, strict=True))
        return result if self.batch_first else result.transpose(0, 1), last if states > 1 else last[0]

    return forward


def _normalised(x: Tensor, axes: list[int], epsilon: float, centered: bool = True) -> Tensor:
    deviation = x - x.mean(axes, keepdim=True) if centered else x
    return deviation / torch.sqrt((deviation * deviation).mean(axes, keepdim=True) + epsilon)


def _by_channel(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    x = x if weight is None else x * weight.reshape(shape)
    return x if bias is None else x + bias.reshape(shape)


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    sizes = [int(size) for size in x.shape[1:]]
    groups = x.reshape(-1, num_groups, math.prod(sizes) // num_groups)
    return _by_channel(_normalised(groups, [2], eps).reshape(-1, *sizes), weight, bias)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not use_input_stats and running_mean is not None and running_var is not None:
        factor = 1 / torch.sqrt(running_var + eps)
        return _by_channel(_by_channel(x, factor, -running_mean * factor), weight, bias)
    sizes = [int(size) for size in x.shape[1:]]
    flat = x.reshape(-1, sizes[0], math.prod(sizes[1:]))
    return _by_channel(_normalised(flat, [2], eps).reshape(-1, *sizes), weight, bias)


def _rms_norm(x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    axes = list(range(-len(normalized_shape), 0))
    result = _normalised(x, axes, torch.finfo(x.dtype).eps if eps is None else eps, centered=False)
    return result if weight is None else result * weight


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    half = int(x.shape[dim]) // 2
    return x.narrow(dim, 0, half) * torch.sigmoid(x.narrow(dim, half, half))


def _hardswish(x: Tensor, inplace: bool = False) -> Tensor:
    """As older exporters write it; newer ones have an operator for it that neither host has."""
    return x * functional.hardsigmoid(x)


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Nothing: a model is built for inference, and the host would trace it as if in training."""
    return x


_interpolate = functional.interpolate


def _resize(
    x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *args: Any, **kw: Any
) -> Tensor:
    """Interpolation axis by axis, each a product with a matrix; torch's own where the exporter knows it."""
    aligned = args[0] if args else kw.get("align_corners")
    if size is None and not aligned and mode in ("nearest", "linear", "bilinear"):
        return _interpolate(x, size, scale_factor, mode, *args, **kw)
    separable = {"nearest": "nearest", "nearest-exact": "nearest-exact", "linear": "linear", "bilinear": "linear"}
    kind = {**separable, "trilinear": "linear"}.get(mode)
    if kind is None or kw.get("antialias") or kw.get("recompute_scale_factor"):
        return _interpolate(x, size, scale_factor, mode, *args, **kw)
    rank = x.dim() - 2
    target = [_for_axis(size, axis) for axis in range(rank)]
    factors = [_for_axis(scale_factor, axis) for axis in range(rank)]
    for axis in range(rank):
        place, length = axis + 2, int(x.shape[axis + 2])
        unit = torch.eye(length, dtype=x.dtype, device=x.device).unsqueeze(0)
        corners = {"align_corners": bool(aligned)} if kind == "linear" else {}
        matrix = _interpolate(unit, target[axis], factors[axis], kind, **corners)[0].detach()  # (length, new length)
        x = (x.transpose(place, -1) @ matrix).transpose(place, -1)
    return x


def _for_axis(value: Any, axis: int) -> Any:
    return value[axis] if isinstance(value, tuple | list | torch.Size) else value


_REPLACED: tuple[tuple[Any, str, Any], ...] = (
    (functional, "scaled_dot_product_attention", _scaled_dot_product_attention),
    (functional, "group_norm", _group_norm),
    (functional, "instance_norm", _instance_norm),
    (functional, "rms_norm", _rms_norm),
    (functional, "dropout", _dropout),
    (functional, "hardswish", _hardswish),
    (functional, "glu", _glu),
    (functional, "interpolate", _resize),
    (nn.MultiheadAttention, "forward", _attention),
    (nn.LSTMCell, "forward", _lstm_cell),
    (nn.GRUCell, "forward", _gru_cell),
    (nn.LSTM, "forward", _recurrent(_lstm_step, 4, 2)),
    (nn.GRU, "forward", _recurrent(_gru_step, 3, 1)),
)


@contextlib.contextmanager
def plain_torch() -> Iterator[None]:
    """Inside, torch's layers and functions are those of this file."""
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in _REPLACED:
            if hasattr(owner, name):
                stack.enter_context(mock.patch.object(owner, name, replacement))
        yield
