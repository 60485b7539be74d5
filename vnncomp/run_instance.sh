#!/usr/bin/env bash
# VNN-COMP: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT; the project's own script does it.
exec "$(dirname "${BASH_SOURCE[0]}")/../run_instance.sh" "$@"
