#!/bin/sh
# Runs the tests of another toolchain: Python's grpcio against a real daemon, and the program on an S3 server that
# somebody else wrote (moto), which checks signatures.
# Usage: tests/python/run.sh [path of the everwhen binary]      (default: target/debug/everwhen, built if missing)
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv="$here/.venv"
generated="$venv/generated"

binary=${1:-}
if [ -z "$binary" ]; then
    cargo build --quiet --manifest-path "$root/Cargo.toml" -p everwhen
    binary="${CARGO_TARGET_DIR:-$root/target}/debug/everwhen"
fi
if ! cmp -s "$here/requirements.txt" "$venv/installed.txt"; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet -r "$here/requirements.txt"
    cp "$here/requirements.txt" "$venv/installed.txt"
fi
mkdir -p "$generated"
"$venv/bin/python" -m grpc_tools.protoc -I "$root/proto" --python_out="$generated" --grpc_python_out="$generated" \
    "$root/proto/everwhen/v1/everwhen.proto"
PYTHONPATH="$generated" "$venv/bin/python" "$here/grpc_client.py" "$binary"
exec "$venv/bin/python" "$here/s3_server.py" "$binary"
