#!/bin/bash
# Builds the Bochs that run.sh uses, into build/emulated/bochs (five minutes on two cores, once).
#
#   tests/emulated/build_bochs.sh bochs_3.0+dfsg.orig.tar.xz      the upstream tarball of Debian's source package
#
# Debian 12's own package (2.7) is no use here: its debugger is compiled in, which makes it 20 times slower.
# This takes the 3.0 sources and changes one thing: the Skylake-X and Haswell models, which Linux 6.1 boots on without
# trouble, say in CPUID leaf 7 that they have AVX512_VNNI and AVX_VNNI when `add_features=avx512vnni` (Skylake-X) or
# `avx_vnni` asks for it (the instructions themselves are enabled by that option alone). The models that have them
# by nature are no use: on Ice Lake and Arrow Lake the kernel crawls, on Sapphire Rapids Bochs panics.
#
# Needs: g++, make, perl, xz-utils
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
CACHE=${EMULATED_CACHE:-$ROOT/build/emulated}
TARBALL=$(realpath "${1:?usage: build_bochs.sh bochs_3.0+dfsg.orig.tar.xz}")
SHA256=78f6c73d4a6472d5130a87ab9dc306d02c7c71ed8e25b3a8ef642e2a7acd282b

mkdir -p "$CACHE"
work=$CACHE/bochs.tmp
rm -rf "$work" && mkdir "$work" && cd "$work"
echo "$SHA256  $TARBALL" | sha256sum -c --quiet
tar -xf "$TARBALL" --strip-components=1
perl -0pi -e 's/(get_std_cpuid_leaf_7\(Bit32u.*?leaf->ecx = )0;/$1is_cpu_extension_supported(BX_ISA_AVX512_VNNI) ? 1u << 11 : 0;/s' \
    cpu/cpudb/intel/corei7_skylake-x.cc
for model in skylake-x haswell_4770; do
    # Subleaf 0 says in eax that there is a subleaf 1, whose eax has the bit; the default case clears all registers.
    perl -0pi -e 's/(get_std_cpuid_leaf_7\(Bit32u.*?leaf->eax = )0(;.*?default:\s*leaf->eax = )0;/$1is_cpu_extension_supported(BX_ISA_AVX_VNNI)$2subfunction == 1 && is_cpu_extension_supported(BX_ISA_AVX_VNNI) ? BX_CPUID_STD7_SUBLEAF1_EAX_AVX_VNNI : 0;/s' \
        cpu/cpudb/intel/corei7_$model.cc
    grep -q BX_ISA_AVX_VNNI cpu/cpudb/intel/corei7_$model.cc || { echo "the patch did not apply to $model" >&2; exit 1; }
done
grep -q AVX512_VNNI cpu/cpudb/intel/corei7_skylake-x.cc || { echo "the patch did not apply" >&2; exit 1; }
./configure --enable-cpu-level=6 --enable-x86-64 --enable-avx --enable-evex --enable-pci --enable-all-optimizations \
    --enable-repeat-speedups --enable-fast-function-calls --enable-handlers-chaining --disable-debugger \
    --disable-docbook --with-nogui --without-x --without-x11 CXXFLAGS="-O2 -march=native" CFLAGS=-O2 >configure.log 2>&1
make -j"${MAX_JOBS:-$(nproc)}" >make.log 2>&1 || { tail -20 make.log >&2; exit 1; }
mkdir -p "$CACHE/bochs"
cp bochs "$CACHE/bochs/bochs"
cd / && rm -rf "$work"
echo "built $CACHE/bochs/bochs"
