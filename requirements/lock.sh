#!/bin/bash
# requirements/lock.sh UV: write serve.txt and test.txt anew, every version with the hashes of its files.
#
# torch's CPU wheel has a version of its own (+cpu), which the usual registry does not have: UV_FIND_LINKS or
# PIP_FIND_LINKS names the folder or page where it lies.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=$1
export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}
torch=$(sed -n 's/^torch==\(.*\)$/\1/p' constraints.txt)
kept=$(mktemp)
trap 'rm -f "$kept"' EXIT

# lock NAME HEADER ARGUMENTS...: versions that NAME has already stay, unless UPGRADE=1.
lock() {
    local file=requirements/$1 header=$2
    shift 2
    { [[ ${UPGRADE:-} || ! -e $file ]] || grep -v '^#' "$file"; } > "$kept"
    "$uv" pip compile --quiet --generate-hashes --no-header --no-annotate -o "$kept" "$@" pyproject.toml requirements/build.in
    { echo "# $header"; echo "# Written by \`make lock\`; used with pip's --require-hashes (SECURITY.md)."; cat "$kept"; } > "$file"
}

lock serve.txt "What a server installs beside approxrt, and what builds it: any Python from 3.10 on." \
    --universal --python-version 3.10 --extra serve --extra chat
lock test.txt "What the tests install: Python 3.11 on Linux, x86-64, torch for CPUs." \
    --python-version 3.11 --python-platform x86_64-manylinux_2_28 -c constraints.txt -c <(echo "torch==$torch+cpu") \
    --extra test --extra compress --extra serve --extra clients --extra chat --extra gguf
