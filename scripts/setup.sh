#!/bin/sh
# Make .venv with everything the project needs, at the versions of constraints.txt.
# PYTHON=python3.12 chooses an interpreter; INDEX=URL adds a package index.
set -eu
cd "$(dirname "$0")/.."

missing() {
    echo "make setup: $1" >&2
    exit 2
}

works() {
    command -v "$1" >/dev/null 2>&1 &&
        "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

python=${PYTHON:-}
if [ -n "$python" ]; then
    works "$python" || missing "PYTHON=$python is not a Python of version 3.11 or later"
else
    for python in python3 python3.13 python3.12 python3.11 none; do
        if works "$python"; then break; fi
    done
    [ "$python" != none ] || missing "Python 3.11 or later is missing: apt-get install python3 python3-venv"
fi
command -v git >/dev/null 2>&1 || missing "git is missing: apt-get install git"
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    missing "python3-venv is missing: apt-get install python3-venv"

# Where, with what and from where: a virtual environment can neither move nor change its Python.
state=$({ pwd -P; "$python" -V; echo "${INDEX:-}"; cat pyproject.toml constraints.txt scripts/setup.sh; } | sha256sum)
ready=.venv/.ready
if [ -f "$ready" ] && [ "$(cat "$ready")" = "$state" ]; then
    exit 0
fi

rm -f "$ready"
if ! .venv/bin/python -c "import sys; sys.exit(sys.prefix != '$(pwd -P)/.venv')" 2>/dev/null; then
    echo "making .venv …"
    rm -rf .venv
    "$python" -m venv .venv
fi
echo "installing the packages of constraints.txt (minutes the first time) …"
.venv/bin/python -m pip install --quiet --disable-pip-version-check \
    ${INDEX:+--extra-index-url "$INDEX"} --constraint constraints.txt --editable '.[dev]'
echo "$state" >"$ready"
