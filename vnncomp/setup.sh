#!/usr/bin/env bash
# Set zonoplug up in the project's folder: the one place where this happens.
#
#   vnncomp/setup.sh [test]      "test" adds what the tests, lint and types need
#
# Makes .venv, installs the versions of vnncomp/constraints.txt, zonoplug itself (editable) and auto_LiRPA, and writes
# .venv/zonoplug-ready last, so that an interrupted set-up is done again. Does nothing where all is in place. Two
# set-ups at the same time wait for one another. Says what it does on stderr; the details go to a log file.
#
# Environment:
#   ZONOPLUG_PYTHON  the Python (>= 3.10) to use. Otherwise the first that works of python3.12, python3.11, python3.10
#                    and python3, one that has torch with a working GPU first, then one that has torch. A torch >= 2.4
#                    that is there is used, together with its numpy, and not replaced.
#   ZONOPLUG_LIRPA   0.3, 0.7.1, or a folder that contains the package auto_LiRPA. Otherwise 0.7.1 if GitHub answers
#                    within 5 seconds, else 0.3 from the package registry.
set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$project/.venv
python=$venv/bin/python
stamp=$venv/zonoplug-ready
log=$venv/zonoplug-setup.log
constraints=$venv/zonoplug-constraints.txt
host_link=zonoplug-auto-lirpa.pth

lirpa_repository=https://github.com/Verified-Intelligence/auto_LiRPA
lirpa_commit=a050a3d61f4cb68b108fa7f07dcb3e4d7ef304df # 0.7.1

PATH=${PATH//"$venv/bin:"/} # an activated .venv is not the Python to build .venv from
export GIT_TERMINAL_PROMPT=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PIP_USER=0

say() { echo "zonoplug: $*" >&2; }

# One line, and the end. What was ready before is so still: pip undoes what it cannot finish.
die() {
    say "$*"
    if [[ -f $stamp.before ]]; then mv "$stamp.before" "$stamp"; fi
    exit 1
}

# step "installing x" command...: run the command with its output in the log; on failure, one line, and the end.
step() {
    local what=$1
    shift
    echo "== $what: $*" >>"$log"
    "$@" >>"$log" 2>&1 || die "set-up failed while $what ($(reason)). Log: $log. Check the network and the log, then start again."
}

# The line of the log that says most about the failure of its last step.
reason() {
    awk '/^== / { bad = "" }
         { gsub(/^ +/, ""); last = $0 }
         /^(ERROR|error|fatal|[A-Za-z]+Error)/ && !/subprocess-exited|did not run successfully/ { bad = $0 }
         END { print substr(bad == "" ? last : bad, 1, 200) }' "$log"
}

pip_install() { "$python" -m pip install --no-input -c "$constraints" "$@"; }

# Prints "RANK TORCH EXECUTABLE" for a Python that will do; RANK is 2 with torch and a GPU, 1 with torch, else 0.
probe() {
    "$1" - <<'PY' 2>/dev/null
import sys

if sys.version_info < (3, 10):
    sys.exit(1)
import ensurepip, importlib.util, venv

rank, version = 0, "-"
if importlib.util.find_spec("torch"):
    try:
        import torch

        if tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 4):
            rank, version = 1 + torch.cuda.is_available(), torch.__version__
    except Exception:
        pass
print(rank, version, sys.executable)
PY
}

find_python() {
    local candidate answer best=-1
    if [[ -n ${ZONOPLUG_PYTHON:-} ]]; then
        answer=$(probe "$ZONOPLUG_PYTHON") ||
            die "ZONOPLUG_PYTHON=$ZONOPLUG_PYTHON is not a Python >= 3.10 with the modules venv and ensurepip."
        read -r rank torch base <<<"$answer"
        return
    fi
    for candidate in python3.12 python3.11 python3.10 python3; do
        answer=$(probe "$candidate") || continue
        if ((${answer%% *} > best)); then
            best=${answer%% *}
            read -r rank torch base <<<"$answer"
        fi
    done
    ((best >= 0)) ||
        die "no Python >= 3.10 with the modules venv and ensurepip was found (on Debian: apt-get install python3-venv)." \
            "Install one, or name it in ZONOPLUG_PYTHON."
}

# Locks file descriptor 9 for as long as this script runs.
lock() {
    mkdir -p "$venv" || die "cannot write to $project."
    exec 9>"$venv/zonoplug-lock"
    "$base" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
    say "another set-up is under way; waiting for it."
    "$base" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)' || die "cannot lock $venv/zonoplug-lock."
}

fingerprint() {
    "$base" -c 'import hashlib, sys
print(hashlib.sha256(b"".join(open(path, "rb").read() for path in sys.argv[1:])).hexdigest())' \
        "$project/pyproject.toml" "$project/vnncomp/constraints.txt"
}

make_venv() {
    local options=()
    find "$venv" -mindepth 1 -maxdepth 1 ! -name zonoplug-lock -exec rm -rf {} +
    : >"$log"
    if ((rank > 0)); then
        say "using the torch $torch that is there."
        options=(--system-site-packages)
    fi
    step "making a virtual environment" "$base" -m venv ${options[@]+"${options[@]}"} "$venv"
    # If that Python is itself one of a virtual environment, its packages are not the system's: link them.
    if ((rank > 0)) && ! "$python" -c 'import torch' 2>/dev/null; then
        "$base" -c 'import site; print("\n".join(site.getsitepackages()))' >"$(site_packages)/zonoplug-torch.pth"
        step "linking to the torch that is there" "$python" -c 'import torch'
    fi
}

site_packages() { "$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])'; }

# Does .venv take its torch from outside?
torch_is_outside() {
    "$python" -c 'import importlib.util, sys
spec = importlib.util.find_spec("torch")
sys.exit(spec is None or spec.origin.startswith(sys.prefix))' 2>/dev/null
}

# The tested versions; but a torch that is there stays, and so does its numpy, and what torch needs is left to torch.
write_constraints() {
    local outside=False
    if torch_is_outside; then outside=True; fi
    "$python" - "$project/vnncomp/constraints.txt" >"$constraints" <<PY
import importlib.metadata as metadata
import re
import sys

def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()

def installed(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

kept, waiting = {}, ["torch", "numpy"] if $outside else []
while waiting:
    name = normal(waiting.pop())
    if name not in kept and installed(name):
        kept[name] = installed(name)
        needs = [need for need in metadata.requires(name) or [] if "extra ==" not in need]
        waiting += [re.match(r"[A-Za-z0-9._-]+", need)[0] for need in needs]
for line in open(sys.argv[1]):
    if normal(re.match(r"[A-Za-z0-9._-]*", line)[0]) not in kept:
        print(line, end="")
for name in ("torch", "numpy"):
    if name in kept:
        print(f"{name}=={kept[name]}")
PY
}

install_packages() {
    local target=$project pin
    if [[ $extras == test ]]; then target="${project}[test]"; fi
    say "installing packages (log: $log)."
    # As a requirement, not a constraint: pip then names it where it cannot be had.
    pin=$(sed -n 's/^setuptools==/,==/p' "$constraints")
    step "installing setuptools" "$python" -m pip install --no-input "setuptools>=70.1$pin"
    echo "== installing zonoplug and what it needs" >>"$log"
    if ! pip_install --no-build-isolation -e "$target" >>"$log" 2>&1; then
        if ! torch_is_outside && "$python" -c 'import sys; sys.exit(sys.version_info >= (3, 13))'; then
            die "set-up failed while installing packages ($(reason)). Log: $log. Check the network and the log, then start again."
        fi
        say "the tested versions do not fit this Python and torch; taking the newest that do."
        grep -E '^(torch|numpy)==[^;]*$' "$constraints" >"$constraints.new" || true
        mv "$constraints.new" "$constraints"
        step "installing packages" pip_install --no-build-isolation -e "$target"
    fi
    step "installing onnx2torch" pip_install --no-deps onnx2torch # it would bring torchvision, which is not needed
}

# Does GitHub answer within 5 seconds?
github_answers() {
    "$python" -c 'import subprocess, sys
subprocess.run(["git", "ls-remote", sys.argv[1], "HEAD"], check=True, timeout=5, stdin=subprocess.DEVNULL)' \
        "$lirpa_repository" >>"$log" 2>&1
}

install_host() {
    local choice=$wanted from_registry="auto_LiRPA==0.3" from_github="auto_LiRPA @ git+$lirpa_repository@$lirpa_commit"
    local options=(--no-deps --no-build-isolation --use-pep517 --force-reinstall)
    if [[ -z $choice ]]; then
        choice=0.3
        if ! github_answers; then
            say "auto_LiRPA: GitHub does not answer; taking 0.3 from the package registry."
        elif echo "== installing auto_LiRPA 0.7.1" >>"$log" && pip_install "${options[@]}" "$from_github" >>"$log" 2>&1; then
            say "auto_LiRPA: 0.7.1 from GitHub, commit ${lirpa_commit:0:7}."
            rm -f "$(site_packages)/$host_link"
            host=0.7.1
            return
        else
            say "auto_LiRPA: 0.7.1 cannot be installed ($(reason)); taking 0.3 from the package registry."
        fi
    else
        say "auto_LiRPA: $choice, as ZONOPLUG_LIRPA says."
    fi
    case $choice in
    0.3) step "installing auto_LiRPA 0.3" pip_install "${options[@]}" "$from_registry" ;;
    0.7.1) step "installing auto_LiRPA 0.7.1" pip_install "${options[@]}" "$from_github" ;;
    *)
        step "removing auto_LiRPA" "$python" -m pip uninstall --yes auto_LiRPA
        echo "$choice" >"$(site_packages)/$host_link"
        ;;
    esac
    [[ $choice == */* ]] || rm -f "$(site_packages)/$host_link"
    host=$choice
}

main() {
    local seconds=$SECONDS hash known_hash='' known_host='' known_extras='' known_project=''
    wanted=${ZONOPLUG_LIRPA:-}
    case $wanted in
    '' | 0.3 | 0.7.1) ;;
    *)
        [[ -d $wanted/auto_LiRPA ]] ||
            die "ZONOPLUG_LIRPA=$wanted: give 0.3, 0.7.1, or a folder that contains the package auto_LiRPA."
        wanted=$(cd "$wanted" && pwd -P)
        ;;
    esac
    [[ ${1:-} == '' || $1 == test ]] || die "usage: vnncomp/setup.sh [test]"
    extras=${1:-run}
    find_python
    lock
    hash=$(fingerprint)
    if [[ -f $stamp ]]; then
        { read -r known_host && read -r known_extras && read -r known_project && read -r known_hash; } <"$stamp" || true
    fi
    if [[ $known_extras == test ]]; then extras="test"; fi
    if [[ $known_project != "$project" ]] || ! "$python" -c 'import pip' 2>/dev/null; then
        say "setting up in $venv with Python $("$base" -c 'import platform; print(platform.python_version())')."
        make_venv
        known_hash='' known_host=''
    elif [[ $known_hash == "$hash" && $known_extras == "$extras" && (-z $wanted || $wanted == "$known_host") ]]; then
        touch "$stamp"
        return
    else
        : >"$log"
    fi
    if [[ -f $stamp ]]; then mv "$stamp" "$stamp.before"; fi
    if [[ $known_hash != "$hash" || $known_extras != "$extras" ]]; then
        write_constraints
        install_packages
    fi
    host=$known_host
    if [[ -z $known_host || (-n $wanted && $wanted != "$known_host") ]]; then
        install_host
    fi
    step "checking the packages" "$python" -c 'import importlib.util, sys
import appdirs, graphviz, numpy, onnx, onnxruntime, packaging, torch, tqdm, vnnlib, yaml
missing = [name for name in ("auto_LiRPA", "onnx2torch") if importlib.util.find_spec(name) is None]
sys.exit(f"{missing} cannot be imported" if missing else 0)'
    printf '%s\n' "$host" "$extras" "$project" "$hash" >"$stamp.new"
    mv "$stamp.new" "$stamp"
    rm -f "$stamp.before"
    say "ready after $((SECONDS - seconds)) seconds."
}

main "$@"
