#!/usr/bin/env bash
# zonoplug from a checkout; the first call sets it up (see vnncomp/setup.sh for ZONOPLUG_PYTHON and ZONOPLUG_LIRPA).
#
#   ./run_instance.sh                                  set up, then verify the bundled example
#   ./run_instance.sh MODEL.onnx SPEC.vnnlib [OPTIONS] verify (also: list, compare, --version, --help)
#   ./run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS_FILE TIMEOUT     the competition's form
#   ./run_instance.sh test [PYTEST ARGUMENTS]          set up with test tools, then run the tests, on all cores (one
#                                                      process with -n 0); once more with the auto_LiRPA in the
#                                                      folder ZONOPLUG_LIRPA_ALSO, if that is set
set -uo pipefail
# Time limits count from here, for the process that this one becomes.
start_clock() { export ZONOPLUG_STARTED=$$:${EPOCHREALTIME:-}; }
start_clock

script=${BASH_SOURCE[0]}
[[ -L $script ]] && script=$(realpath "$script")
[[ $script == */* ]] || script=./$script
project=$(cd "${script%/*}" && pwd -P)
python=$project/.venv/bin/python
stamp=$project/.venv/zonoplug-ready

# ready run|test: is everything set up, and as ZONOPLUG_LIRPA asks? Costs no process.
ready() {
    local host extras folder
    [[ -x $python && -f $stamp ]] || return
    [[ ! $project/pyproject.toml -nt $stamp && ! $project/vnncomp/constraints.txt -nt $stamp ]] || return
    { read -r host && read -r extras && read -r folder; } <"$stamp" || return
    [[ $folder == "$project" && ($1 == run || $extras == test) ]] || return
    # A folder is used by this call alone, as zonoplug.lirpa reads the variable; nothing is to be installed.
    [[ -z ${ZONOPLUG_LIRPA:-} || $ZONOPLUG_LIRPA == "$host" || -d $ZONOPLUG_LIRPA/auto_LiRPA ]]
}

set_up() {
    if ready "$1"; then return; fi
    if [[ $1 == test ]]; then "$project/vnncomp/setup.sh" test; else "$project/vnncomp/setup.sh"; fi || return
    start_clock # what set-up took does not count
}

# expect VERDICT SPEC: verify the bundled example, and compare.
expect() {
    local examples=$project/zonoplug/examples output
    echo "$ ./run_instance.sh zonoplug/examples/digits.onnx zonoplug/examples/$2"
    output=$("$python" -m zonoplug "$examples/digits.onnx" "$examples/$2") || exit
    echo "$output"
    echo
    if [[ ${output%%$'\n'*} != "$1" ]]; then
        echo "zonoplug: expected $1 here; something is wrong with this set-up." >&2
        exit 1
    fi
}

# A process for each core unless the caller says how many (-n); one of them runs all tests of a file.
run_tests() {
    local word parallel=(-n auto --dist loadfile)
    for word in "$@"; do
        if [[ $word == -n* || $word == --numprocesses* || $word == --pdb ]]; then parallel=(); fi
    done
    (cd "$project" && OMP_NUM_THREADS=1 "$python" -m pytest ${parallel[@]+"${parallel[@]}"} "$@")
}

if [[ -n ${ZONOPLUG_LIRPA:-} && -d $ZONOPLUG_LIRPA/auto_LiRPA ]]; then
    ZONOPLUG_LIRPA=$(cd "$ZONOPLUG_LIRPA" && pwd -P)
    export ZONOPLUG_LIRPA
fi
export PYTHONPATH=$project${PYTHONPATH:+:$PYTHONPATH}
export PYTHONSAFEPATH=1 # nothing in the current folder is taken for a module (Python >= 3.11)

case ${1:-} in
'')
    set_up run || exit
    expect unsat digits_holds.vnnlib
    expect sat digits_violated.vnnlib
    ;;
v1)
    if ! set_up run; then
        [[ -n ${5:-} ]] && echo error >"$5"
        exit 1
    fi
    exec "$python" -m vnncomp "$@"
    ;;
test)
    shift
    also=${ZONOPLUG_LIRPA_ALSO:-}
    if [[ -n $also && ! -d $also/auto_LiRPA ]]; then
        echo "zonoplug: ZONOPLUG_LIRPA_ALSO=$also: give a folder that contains the package auto_LiRPA." >&2
        exit 2
    fi
    [[ -n $also ]] && also=$(cd "$also" && pwd -P)
    set_up test || exit
    run_tests "$@" || exit
    if [[ -n $also ]]; then
        echo "Once more, with auto_LiRPA from $also:"
        ZONOPLUG_LIRPA=$also run_tests "$@"
    fi
    ;;
*)
    set_up run || exit
    exec "$python" -m zonoplug "$@"
    ;;
esac
