#!/bin/sh
# Install what tests compare with and what does not go with the packages of constraints.txt:
# Triton's own client and protobuf schema, which want older packages, in .venv/triton; pytorch-ood,
# which asks for a torchvision that its detectors do not need, without its dependencies.
set -eu
cd "$(dirname "$0")/.."

client="tritonclient[http,grpc]==2.73.0"
detectors="pytorch-ood==0.4.0"
ready=.venv/triton/.ready
if [ -f "$ready" ] && [ "$(cat "$ready")" = "$client $detectors" ] &&
    [ -d "$(echo .venv/lib/python3.*/site-packages/pytorch_ood)" ]; then
    exit 0
fi
echo "installing what the tests compare with …"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$detectors"
.venv/bin/python -m venv .venv/triton
if ! .venv/triton/bin/python -m pip install --quiet --disable-pip-version-check "$client"; then
    rm -rf .venv/triton  # half of it would fail tests that are skipped without it
    exit 1
fi
echo "$client $detectors" >"$ready"
