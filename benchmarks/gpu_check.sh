#!/usr/bin/env bash
# Checks a clone on a machine with a GPU, in about five minutes and without a network:
#
#     benchmarks/gpu_check.sh gpu.json [options of python -m benchmarks.gpu_check]
#
# PYTHON names the Python that has torch, triton and jax. What it lacks comes from the wheels in
# benchmarks/wheels and is installed into it. On a machine with a network, this makes that folder
# for Python 3.12 on Linux; optax without its dependencies, because jax is there already:
#
#     get() { python -m pip download --only-binary :all: --python-version 3.12 \
#         --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
#         --dest benchmarks/wheels "$@"; }
#     get array-api-compat 'click>=8.2' hypothesis 'numpy>=2.1' pytest rich
#     get --no-deps absl-py optax
set -euo pipefail
if [ $# -eq 0 ]; then
    echo "usage: $0 FILE.json [options]" >&2
    exit 2
fi
json=$1
shift
case $json in /*) ;; *) json=$PWD/$json ;; esac
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
if [ -d benchmarks/wheels ]; then
    install() { "$python" -m pip install --quiet --no-index --find-links benchmarks/wheels "$@"; }
    install array-api-compat 'click>=8.2' hypothesis 'numpy>=2.1' pytest rich || exit 2
    install optax || echo "without optax the part of JAX cannot run" >&2
fi
export PYTHONPATH="$PWD:$PWD/adapters${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m benchmarks.gpu_check --json "$json" "$@"
