#!/usr/bin/env bash
# VNN-COMP: get ready for one instance, within seconds. Ends what is left of earlier instances, checks that the two files
# can be read, and brings them and the tool's libraries into the disk cache. A non-zero exit status means that the
# instance cannot be run.
#
#   prepare_instance.sh v1 CATEGORY ONNX VNNLIB
set -uo pipefail
if (($# != 4)) || [[ $1 != v1 ]]; then
    echo "usage: prepare_instance.sh v1 CATEGORY ONNX VNNLIB" >&2
    exit 2
fi
onnx=$3
vnnlib=$4
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$project/.venv/bin/python

for file in "$onnx" "$vnnlib"; do
    if [[ ! -f $file || ! -r $file ]]; then
        echo "prepare_instance.sh: cannot read $file" >&2
        exit 1
    fi
done
if [[ ! -x $python || ! -f $project/.venv/zonoplug-ready ]]; then
    echo "prepare_instance.sh: zonoplug is not installed; run install_tool.sh v1 first" >&2
    exit 1
fi

# Prints the ids of processes that run an instance (`.venv/bin/python -m vnncomp v1 ...`) of this installation.
stale() {
    local folder argv
    for folder in /proc/[0-9]*; do
        mapfile -d '' -t argv 2>/dev/null <"$folder/cmdline" || continue
        if [[ ${argv[*]:0:4} == "$python -m vnncomp v1" ]]; then echo "${folder#/proc/}"; fi
    done 2>/dev/null
}

for signal in TERM KILL; do
    read -r -d '' -a found < <(stale)
    ((${#found[@]})) || break
    kill -s "$signal" "${found[@]}" 2>/dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10; do
        [[ -n $(stale) ]] || break
        sleep 0.1
    done
done

cat "$onnx" "$vnnlib" >/dev/null || exit 1
"$python" -c 'import onnx, onnxruntime, torch, vnnlib' >/dev/null 2>&1
exit 0
