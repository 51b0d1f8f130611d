#!/bin/bash
# bench/sanitize.sh SANITIZERS RUNTIME PYTHON TESTS...: build the extension with sanitizers and run tests with it.
#
# For example: bench/sanitize.sh address,undefined libasan.so .venv/bin/python tests/kernels/test_gemm_int8.py
# Works on a copy in build/sanitize-*, whose objects are kept, so that a second run compiles only what changed.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
sanitizers=$1 runtime=$2 python=$(cd "$(dirname "$3")" && pwd)/$(basename "$3")
shift 3
tree=$ROOT/build/sanitize-${sanitizers//,/-}
mkdir -p "$tree"
# Times of files are kept, so ninja sees what changed.
(cd "$ROOT" && tar -cf - --exclude='*.so' --exclude=__pycache__ --exclude=emulated \
    approxrt kernels csrc tests setup.py pyproject.toml README.md LICENSE) | tar -C "$tree" -xf -
cd "$tree"
APPROXRT_SANITIZE=$sanitizers "$python" setup.py -q build_ext --inplace
library=$(${CXX:-g++} -print-file-name="$runtime")
case $library in /*) ;; *) echo "sanitize.sh: ${CXX:-g++} has no $runtime" >&2; exit 1 ;; esac
# Python itself leaks on purpose; libstdc++ comes first so that exceptions meet their interceptor.
export LD_PRELOAD="$library $(${CXX:-g++} -print-file-name=libstdc++.so.6)"
export ASAN_OPTIONS=detect_leaks=0:strict_init_order=1 UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS=halt_on_error=1:die_after_fork=0
export PYTHONPATH=$tree OPENBLAS_NUM_THREADS=1 PYTHONMALLOC=malloc
exec "$python" -m pytest -q -p no:cacheprovider "$@"
