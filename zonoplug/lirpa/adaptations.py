"""Corrections of the supported auto_LiRPA versions, and of what they expect of torch and numpy; for `compat`."""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

_ABSENT = object()


@contextlib.contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """`owner.name` is `value` inside, and what it was before outside."""
    before = getattr(owner, name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


def _exporter_globals() -> Any:
    """torch's global settings of the TorchScript exporter; they moved in torch 2.9."""
    try:
        return importlib.import_module("torch.onnx._internal.torchscript_exporter._globals").GLOBALS
    except ModuleNotFoundError:
        return importlib.import_module("torch.onnx._globals").GLOBALS


@contextlib.contextmanager
def exporter_settings() -> Iterator[None]:
    """Both hosts set exporter settings while tracing and leave them set: give torch its own back."""
    settings = _exporter_globals()
    saved = dict(vars(settings))
    try:
        yield
    finally:
        vars(settings).update(saved)


def _set_opset_version(version: int) -> None:
    _exporter_globals().export_onnx_opset_version = version


def _node_attribute(node: Any, name: str) -> Any:
    """`node[name]` of a TorchScript node, which torch dropped in 1.13 and 0.3 still writes."""
    return getattr(node, node.kindOf(name))(name)


@contextlib.contextmanager
def importable_for_0_3() -> Iterator[None]:
    """The names that 0.3 imports and that numpy 2 and torch 2 no longer have exist inside."""
    symbolic_helper = importlib.import_module("torch.onnx.symbolic_helper")
    name = "numpy.lib.arraysetops"
    module = types.ModuleType(name)
    module.isin = np.isin  # type: ignore[attr-defined]
    present = name in sys.modules
    if not present:
        sys.modules[name] = module
    try:
        with _attribute(symbolic_helper, "_set_opset_version", _set_opset_version):
            yield
    finally:
        if not present:
            sys.modules.pop(name, None)


def adapt_0_3(module_class: Any) -> None:
    """Correct the host's own classes, so that modules which others build work too."""
    bound_general = importlib.import_module("auto_LiRPA.bound_general")
    operators: Any = importlib.import_module("auto_LiRPA.operators")
    relu, matmul, linear = operators.BoundRelu, operators.BoundMatMul, operators.BoundLinear
    parse_module, named_members = bound_general.parse_module, module_class._named_members
    ibp_general, init_opt_parameters = module_class.IBP_general, relu.init_opt_parameters

    def adapted_parse_module(*args: Any, **kwargs: Any) -> Any:
        with exporter_settings(), _attribute(torch._C.Node, "__getitem__", _node_attribute):
            return parse_module(*args, **kwargs)

    def adapted_named_members(
        self: Any, get_members: Any, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Any:
        return named_members(self, get_members, prefix=prefix, recurse=recurse)

    def adapted_ibp_general(self: Any, node: Any = None, *args: Any, **kwargs: Any) -> Any:
        if not node.perturbed:  # a constant node needs its value, not the interval rule that it may lack
            self.get_forward_value(node)
        return ibp_general(self, node, *args, **kwargs)

    def adapted_init_opt_parameters(self: Any, start_nodes: Any) -> None:
        bounds = self.inputs[0].lower
        if bounds.dim() not in (2, 4):  # sparse alpha exists behind linear layers and convolutions over images only
            self.use_sparse_features_alpha = False
        init_opt_parameters(self, start_nodes)
        if self.alpha_indices is not None:  # the host forgets to drop the indices where it made alpha dense
            unstable, neurons = self.alpha_indices[0].shape[0], bounds[0].numel()
            if unstable > self.options.get("minimum_sparsity", 0.9) * neurons:
                self.alpha_indices = None

    def adapted_matmul_interval(self: Any, *v: Any, C: Any = None) -> Any:
        """The host hands C to a final product as it does to a linear layer, which its product does not expect."""
        bounds = matmul_interval(self, *v)
        return bounds if C is None else linear.interval_propagate(None, bounds, C=C)

    matmul_interval = matmul.interval_propagate
    matmul.interval_propagate = adapted_matmul_interval
    bound_general.parse_module = adapted_parse_module  # type: ignore[attr-defined]
    module_class._named_members = adapted_named_members
    module_class.register_parameter = torch.nn.Module.register_parameter
    module_class.IBP_general = adapted_ibp_general
    relu.init_opt_parameters = adapted_init_opt_parameters


def adapt_patches_to_matrix() -> None:
    """Both hosts take the width of an image for its height there: let them see square images, padding included."""
    patches = importlib.import_module("auto_LiRPA.patches")
    original = patches.patches_to_matrix

    def patches_to_matrix(
        pieces: Any, input_shape: Any, stride: Any, padding: Any, output_shape: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        left, right, top, bottom = (padding,) * 4 if isinstance(padding, int) else padding
        height, width = input_shape[-2:]
        side = max(height + top + bottom, width + left + right)
        square = [*input_shape[:-2], side - top - bottom, side - left - right]
        matrix = original(pieces, square, stride, (left, right, top, bottom), output_shape, *args, **kwargs)
        return matrix[..., :height, :width]

    def rows_and_columns(*args: Any, **kwargs: Any) -> Any:
        zeros = kwargs.get("inserted_zeros", args[6] if len(args) > 6 else 0)
        return original(*args, **kwargs) if zeros else patches_to_matrix(*args, **kwargs)

    for name, module in list(sys.modules.items()):
        if name.startswith("auto_LiRPA") and getattr(module, "patches_to_matrix", None) is original:
            module.patches_to_matrix = rows_and_columns  # type: ignore[attr-defined]


def adapt_get_bias() -> None:
    """Both hosts put 0 in place of a bias that is NaN, which is no bound: keep it NaN, so that it says *unknown*."""
    bound = importlib.import_module("auto_LiRPA.operators.base").Bound
    original = bound.get_bias

    def get_bias(self: Any, coefficients: Any, bias: Any) -> Any:
        result = original(self, coefficients, bias)
        if isinstance(coefficients, torch.Tensor) and not isinstance(result, torch.Tensor):
            return coefficients.new_full(coefficients.shape[:2], torch.nan)
        return result

    bound.get_bias = get_bias


def adapt_0_7() -> None:
    """Concatenating a perturbed input with something else fails in 0.7's interval bounds unless sizes agree."""
    concat = importlib.import_module("auto_LiRPA.operators.slice_concat").BoundConcat
    original = concat.interval_propagate

    def interval_propagate(self: Any, *bounds: Any) -> Any:
        norms = {getattr(getattr(bound, "ptb", None), "norm", np.inf) for bound in bounds}
        return original(self, *(tuple(bound) if norms == {np.inf} else bound for bound in bounds))

    concat.interval_propagate = interval_propagate
