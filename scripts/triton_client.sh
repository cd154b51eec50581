#!/bin/sh
# Make .venv/triton with Triton's own client and protobuf schema, for the tests that use them.
# It wants older packages than .venv has, so it gets an environment of its own.
set -eu
cd "$(dirname "$0")/.."

wanted="tritonclient[http,grpc]==2.73.0"
ready=.venv/triton/.ready
if [ -f "$ready" ] && [ "$(cat "$ready")" = "$wanted" ]; then
    exit 0
fi
.venv/bin/python -m venv .venv/triton
.venv/triton/bin/python -m pip install --quiet --disable-pip-version-check "$wanted"
echo "$wanted" >"$ready"
