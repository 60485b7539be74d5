"""Folding the constant parts of an ONNX graph, and operators that only move constants."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

# Rewritings of ONNX Runtime that compute new constants in the file's type, or change what is rounded and where.
UNWANTED = [
    "CastChainElimination", "CastElimination", "ConvAddFusion", "ConvBNFusion", "ConvMulFusion", "DivMulFusion",
    "FuseFp16InitializerToFp32NodeTransformer", "GeluFusionL1", "GemmSumFusion", "LayerNormFusionL1", "MatMulAddFusion",
    "MatMul_BatchNormalization_Fusion", "RemoveDuplicateCastTransformer", "SimplifiedLayerNormFusion",
]  # fmt: skip


def session_of(source: bytes, optimised: str | None = None) -> Any:
    """An ONNX Runtime session on one thread that changes nothing, or that writes its basic optimisation to a file."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # kernels warn of old attributes, once for each session
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_DISABLE_ALL if optimised is None else levels.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    unwanted = None
    if optimised is not None:
        options.optimized_model_filepath, unwanted = optimised, UNWANTED
    return onnxruntime.InferenceSession(
        source, options, providers=["CPUExecutionProvider"], disabled_optimizers=unwanted
    )


def fold_constants(model: ModelProto) -> ModelProto:
    """Let ONNX Runtime fold constants and drop what is redundant; operators on values of the input stay as they are."""
    handle, name = tempfile.mkstemp(suffix=".onnx")
    os.close(handle)
    try:
        session_of(model.SerializeToString(), optimised=name)
        return onnx.load(name)
    finally:
        Path(name).unlink(missing_ok=True)
