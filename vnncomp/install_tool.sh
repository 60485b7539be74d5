#!/usr/bin/env bash
# VNN-COMP: install the tool. The competition looks for install_tool.sh, prepare_instance.sh and run_instance.sh in one
# folder: this one.
set -euo pipefail
if (($# != 1)) || [[ $1 != v1 ]]; then
    echo "usage: install_tool.sh v1" >&2
    exit 2
fi
exec "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
