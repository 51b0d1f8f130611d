#!/bin/bash
# Runs a program on an emulated CPU with AVX-512 and VNNI, or with AVX-VNNI, on a machine that has neither.
#
#   tests/emulated/run.sh EXECUTABLE [ARGS...]      an x86-64 Linux program (its shared libraries come along)
#   tests/emulated/run.sh --python COMMAND...       python -m COMMAND... in a copy of this repository, for example
#   tests/emulated/run.sh --python pytest -x -q tests/test_gemm_s8.py
#
# The program's stdout and stderr are ours and so is its exit code; 125 says that the emulator did not
# get as far as running it. Bochs interprets every instruction: reckon with a slowdown of 100 to 1000,
# and half a minute for Linux to boot. It proves results, never speed.
#
# It works by booting Debian's cloud kernel in Bochs from a CD image (isolinux, kernel, an initramfs with
# busybox) with the program on an ext4 disk. Serial ports: ttyS0 stdout, ttyS1 kernel and exit code, ttyS2 stderr.
#
# Needs (Debian 12, no root after that):
#   apt-get install bochs busybox-static isolinux syslinux-common xorriso cpio e2fsprogs    (bochs for its BIOS)
#   tests/emulated/build_bochs.sh                                                           (for a Bochs that is fast)
# and the kernel package, which is downloaded (not installed) by `apt-get download` on first use.
#
# Environment:
#   BOCHS             the emulator (default: what build_bochs.sh built)
#   EMULATED_CPU      Bochs CPU model: corei7_skylake_x (default), corei7_haswell_4770 (AVX2),
#                     corei7_ivy_bridge_3770k (no AVX2)
#   EMULATED_FEATURES added to the model: avx512vnni (default with corei7_skylake_x); empty for AVX-512 without VNNI;
#                     avx_vnni (with corei7_haswell_4770 an AVX2 CPU with AVX-VNNI)
#   EMULATED_MB       guest memory in MiB (default 1024)
#   EMULATED_TIMEOUT  seconds before the emulator is stopped (default 3600)
#   PYTHON            the interpreter whose standard library and packages --python copies (default: python3)
#   PASS_ENV          names of environment variables to hand to the program (APPROXRT_* always go along)
set -euo pipefail

HERE=$(cd "$(dirname "$0")" && pwd)
ROOT=$(cd "$HERE/../.." && pwd)
CACHE=${EMULATED_CACHE:-$ROOT/build/emulated}
CPU=${EMULATED_CPU:-corei7_skylake_x}
[ "$CPU" = corei7_skylake_x ] && vnni=avx512vnni || vnni=
FEATURES=${EMULATED_FEATURES-$vnni}
MEGS=${EMULATED_MB:-1024}
BOCHS=${BOCHS:-$CACHE/bochs/bochs}
BIOS=${EMULATED_BIOS:-/usr/share/bochs}
TIMEOUT=${EMULATED_TIMEOUT:-3600}
PYTHON=${PYTHON:-python3}
PY_PACKAGES="numpy numpy.libs pytest _pytest pluggy iniconfig packaging pygments py.py hypothesis _hypothesis_globals.py
  sortedcontainers typer rich click shellingham markdown_it mdurl annotated_doc attr attrs typing_extensions.py safetensors tokenizers tokenizers.libs"

die() { echo "run.sh: $*" >&2; exit 125; }

[ $# -gt 0 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2; exit 125; }
for tool in "$BOCHS" busybox xorriso cpio mke2fs; do
    PATH=$PATH:/usr/sbin command -v "$tool" >/dev/null || die "$tool is missing; the top of this script lists what to install"
done
export PATH=$PATH:/usr/sbin
mkdir -p "$CACHE"

# ---- kernel, initramfs and boot CD: once -------------------------------------------------------------------
build_boot_cd() {
    local work=$CACHE/boot.tmp
    rm -rf "$work" && mkdir -p "$work/deb" "$work/init/bin" "$work/init/lib" "$work/cd"
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*-amd64\)$/\1/p' | head -1)
    [ -n "$package" ] || die "apt knows no linux-image-cloud-amd64: run apt-get update"
    (cd "$work/deb" && apt-get download -q "$package" >/dev/null 2>&1) || die "apt-get download $package failed"
    dpkg -x "$work"/deb/*.deb "$work/kernel"
    cp "$work"/kernel/boot/vmlinuz-* "$work/cd/vmlinuz"
    local module
    for module in scsi/scsi_common scsi/scsi_mod scsi/sd_mod ata/libata ata/ata_piix; do
        cp "$work"/kernel/lib/modules/*/kernel/drivers/$module.ko "$work/init/lib/"
    done
    cp "$(command -v busybox)" "$work/init/bin/busybox"
    cat >"$work/init/init" <<'INIT'
#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /dev /proc /sys /disk
$b mount -t devtmpfs none /dev
$b mount -t proc none /proc
for m in scsi_common scsi_mod libata ata_piix sd_mod; do $b insmod /lib/$m.ko; done
n=0
while [ ! -b /dev/sda ] && [ $n -lt 100 ]; do $b usleep 100000; n=$((n + 1)); done
for port in 0 2; do $b stty -F /dev/ttyS$port raw 4000000 2>/dev/null || $b stty -F /dev/ttyS$port raw 115200; done
code=125
if $b mount -t ext4 /dev/sda /disk; then
    $b mount -o bind /dev /disk/dev
    $b mount -t proc none /disk/proc
    $b mount -t sysfs none /disk/sys
    $b mount -t tmpfs none /disk/tmp
    $b mkdir -p /disk/dev/shm
    $b mount -t tmpfs none /disk/dev/shm
    echo "guest: ready, $($b cut -d' ' -f1 /proc/uptime) s" >/dev/ttyS1
    $b chroot /disk /bin/busybox sh /payload >/dev/ttyS0 2>/dev/ttyS2 </dev/null
    code=$?
fi
# A port accepts bytes faster than it sends them: wait until both are drained.
for port in 0 2; do $b stty -F /dev/ttyS$port >/dev/null; done
$b sleep 1
echo "guest: exit $code" >/dev/ttyS1
$b sleep 1
$b poweroff -f
INIT
    chmod +x "$work/init/init"
    (cd "$work/init" && find . | cpio -o -H newc --quiet) >"$work/cd/initrd"
    cp /usr/lib/ISOLINUX/isolinux.bin /usr/lib/syslinux/modules/bios/ldlinux.c32 "$work/cd/"
    cat >"$work/cd/isolinux.cfg" <<'CFG'
default linux
prompt 0
timeout 0
label linux
  kernel vmlinuz
  append initrd=initrd console=ttyS1 earlyprintk=serial,ttyS1,115200 idle=halt lsm=capability mitigations=off nokaslr norandmaps tsc=reliable random.trust_cpu=on panic=1 audit=0
CFG
    xorriso -as mkisofs -quiet -o "$work/boot.iso" -b isolinux.bin -c boot.cat -no-emul-boot -boot-load-size 4 \
        -boot-info-table "$work/cd" >/dev/null 2>&1 || die "xorriso could not write the boot CD"
    mv "$work/boot.iso" "$CACHE/boot.iso"
    rm -rf "$work"
}
# The CD depends on this file alone.
if [ ! -f "$CACHE/boot.iso" ] || [ "$0" -nt "$CACHE/boot.iso" ]; then build_boot_cd; fi

# ---- the disk: the program and everything it loads ---------------------------------------------------------
RUN=$(mktemp -d "$CACHE/run.XXXXXX")
bochs_pid=""
cleanup() {
    [ -z "$bochs_pid" ] || kill "$bochs_pid" 2>/dev/null || true
    [ -n "${EMULATED_KEEP:-}" ] && echo "run.sh: kept $RUN" >&2 || rm -rf "$RUN"
}
trap cleanup EXIT
DISK=$RUN/disk
mkdir -p "$DISK"/{bin,dev,proc,sys,tmp,etc,root}
cp "$(command -v busybox)" "$DISK/bin/busybox"
ln -s busybox "$DISK/bin/sh"
echo 'root:x:0:0:root:/root:/bin/sh' >"$DISK/etc/passwd"

# Copies the shared libraries of the given files to where the loader looks for them.
copy_libraries() {
    # ldd fails on a static program and grep finds nothing then; that is no fault.
    { ldd "$@" 2>/dev/null || true; } | { grep -oE '/[^ ():]+\.so[^ ():]*' || true; } | sort -u | while read -r library; do
        [ -e "$DISK$library" ] || { mkdir -p "$DISK$(dirname "$library")" && cp -L "$library" "$DISK$library"; }
    done
}

quoted() { printf '%q ' "$@"; }

if [ "$1" = --python ]; then
    shift
    [ $# -gt 0 ] || die "--python needs a module and its arguments, e.g. --python pytest tests/test_gemm_s8.py"
    ls "$ROOT"/approxrt/_C*.so >/dev/null 2>&1 || die "no approxrt/_C*.so: python setup.py build_ext --inplace"
    read -r prefix stdlib executable <<<"$("$PYTHON" -c 'import sys, sysconfig
print(sys.base_prefix, sysconfig.get_paths()["stdlib"], sys._base_executable)')"
    mkdir -p "$DISK$stdlib" "$DISK$prefix/bin" "$DISK/site" "$DISK/repo"
    tar -C "$stdlib" -cf - --exclude=./site-packages --exclude=./test --exclude=./idlelib --exclude=./tkinter \
        --exclude=./lib2to3 --exclude=./ensurepip --exclude='./config-*' . | tar -C "$DISK$stdlib" -xf -
    cp -L "$executable" "$DISK$prefix/bin/python3"
    # A Python module's own place: found by importing nothing, in the order of sys.path.
    "$PYTHON" - "$DISK/site" $PY_PACKAGES <<'PY'
import shutil, sys
from pathlib import Path
target, names = Path(sys.argv[1]), sys.argv[2:]
for name in names:
    for folder in map(Path, sys.path):
        found = folder / name
        if found.is_dir():
            ignore = shutil.ignore_patterns("tests", "f2py", "*.pyi", "*.a")
            shutil.copytree(found, target / name, ignore=ignore)
            break
        if found.is_file():
            shutil.copy2(found, target / name)
            break
PY
    (cd "$ROOT" && tar -cf - --exclude=__pycache__ --exclude=emulated approxrt kernels csrc pyproject.toml \
        $(ls -d tests bench 2>/dev/null)) | tar -C "$DISK/repo" -xf -
    find "$DISK/site" "$DISK/repo" "$DISK$stdlib" -name '*.so*' -type f -print0 | xargs -0 -n 200 ldd 2>/dev/null |
        grep -oE '=> /[^ ]+' | cut -c4- | sort -u | grep -v "^$DISK" | while read -r library; do
        [ -e "$DISK$library" ] || { mkdir -p "$DISK$(dirname "$library")" && cp -L "$library" "$DISK$library"; }
    done
    copy_libraries "$executable"
    # Byte code made here saves the guest from compiling.
    "$PYTHON" -m compileall -q -j 2 --invalidation-mode unchecked-hash -s "$DISK" "$DISK/site" "$DISK/repo/approxrt" \
        >/dev/null 2>&1 || true
    command="cd /repo && exec env -i HOME=/root PATH=/bin:$prefix/bin PYTHONPATH=/site:/repo PYTHONHOME=$prefix \
PYTHONUNBUFFERED=1 LD_LIBRARY_PATH=$prefix/lib OPENBLAS_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1"
    program="$prefix/bin/python3 -m $(quoted "$@")"
else
    [ -x "$1" ] || die "$1 is no executable file"
    copy_libraries "$1"
    cp -L "$1" "$DISK/program"
    shift
    command="cd /root && exec env -i HOME=/root PATH=/bin"
    program="/program $(quoted "$@")"
fi
for name in $(compgen -e | grep '^APPROXRT_' || true) ${PASS_ENV:-}; do
    command+=" $name=$(quoted "${!name-}")"
done
echo "$command $program" >"$DISK/payload"
size=$(($(du -sm "$DISK" | cut -f1) * 5 / 4 + 64))
mke2fs -q -t ext4 -O ^has_journal -m 0 -E root_owner=0:0 -d "$DISK" "$RUN/disk.img" "${size}M" >/dev/null || die "mke2fs failed"
rm -rf "$DISK"

# ---- boot --------------------------------------------------------------------------------------------------
cat >"$RUN/bochsrc" <<EOF2
config_interface: textconfig
display_library: nogui
romimage: file=$BIOS/BIOS-bochs-latest
vgaromimage: file=$BIOS/VGABIOS-lgpl-latest
megs: $MEGS
cpu: model=$CPU,${FEATURES:+ add_features="$FEATURES",} count=1, ips=${EMULATED_IPS:-200000000}, reset_on_triple_fault=0
clock: sync=none
ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14
ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15
ata0-master: type=disk, path="$RUN/disk.img", mode=flat
ata1-master: type=cdrom, path="$CACHE/boot.iso", status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev="$RUN/stdout"
com2: enabled=1, mode=file, dev="$RUN/console"
com3: enabled=1, mode=file, dev="$RUN/stderr"
log: $RUN/bochs.log
panic: action=fatal
error: action=report
info: action=report
vga: update_freq=1
EOF2
: >"$RUN/stdout"; : >"$RUN/stderr"; : >"$RUN/console"
timeout -k 5 "$TIMEOUT" "$BOCHS" -q -f "$RUN/bochsrc" >"$RUN/screen" 2>&1 </dev/null &
bochs_pid=$!
tail -q -c +1 --pid="$bochs_pid" -s 0.2 -f "$RUN/stdout" &
out_pid=$!
tail -q -c +1 --pid="$bochs_pid" -s 0.2 -f "$RUN/stderr" >&2 &
err_pid=$!
# The guest powers off after its last word, which Bochs does not take as its own end.
while kill -0 "$bochs_pid" 2>/dev/null && ! grep -q '^guest: exit' "$RUN/console"; do sleep 0.2; done
kill "$bochs_pid" 2>/dev/null || true
wait "$bochs_pid" 2>/dev/null || true
bochs_pid=""
wait "$out_pid" "$err_pid" || true
code=$(tr -d '\r' <"$RUN/console" | sed -n 's/^guest: exit \([0-9]*\)$/\1/p' | tail -1)
if [ -z "$code" ]; then
    echo "run.sh: the guest ended without an exit code (timeout $TIMEOUT s?); its console:" >&2
    tail -n 20 "$RUN/console" >&2
    grep -iE 'panic|fatal' "$RUN/bochs.log" 2>/dev/null | tail -5 >&2 || true
    exit 125
fi
exit "$code"
