#!/bin/bash
# Everything that needs a GPU, in one go: build, tests, checks and all benchmarks, in 9 minutes at most.
#
#     bench/gpu/run.sh [OUT.json] [options of bench/gpu/run.py]
#
# From a bare checkout and the Python packages at hand (torch with CUDA and triton are needed; transformers, pytest,
# pybind11 and a C++ compiler if they are there). PYTHON names the interpreter. OUT (default: build/gpu/report.json) is
# written anew after every part, so that what was measured is there whatever happens next.
# Exit status: 0 all parts ran; 1 some failed or did not fit the time (the report says which); 3 there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$(command -v python3)}
OUT=build/gpu/report.json
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then OUT=$1; shift; fi

# `approxrt.kernels` lives in kernels/; an installation maps it, and here links do.
SITE=build/gpu/site
rm -rf "$SITE"
mkdir -p "$SITE/approxrt"
for path in approxrt/*; do
    case $path in *__pycache__ | *.so) ;; *) ln -s "$PWD/$path" "$SITE/$path" ;; esac
done
ln -s "$PWD/kernels" "$SITE/approxrt/kernels"
export PYTHONPATH="$PWD/$SITE:$PWD/tests/support${PYTHONPATH:+:$PYTHONPATH}"
export APPROXRT_CACHE=${APPROXRT_CACHE:-$PWD/build/gpu/cache}
exec "$PYTHON" bench/gpu/run.py --out "$OUT" --site "$SITE" "$@"
