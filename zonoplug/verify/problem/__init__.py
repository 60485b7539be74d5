"""The specification and a model as tensors: boxes in the network's own numbers, rows, ONNX Runtime as referee."""
