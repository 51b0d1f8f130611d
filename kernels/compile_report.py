"""Every kernel compiled ahead of time for GPUs that need not be there: python -m approxrt.kernels.compile_report.

For each case (a kernel with the tile sizes, types and alignments that the runtime launches it with) and each of sm_80
and sm_90: registers a thread, shared memory, bytes of spills, and the tensor-core instructions in its machine code.
A case fails when it spills, when shared memory is over the architecture's limit, or when the mma it is meant to use is
not there. Exit status 1 if any fails. Needs triton's wheel, which carries ptxas and the disassembler.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90)
# Shared memory that a block may ask for (CUDA C++ programming guide, compute capabilities).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024}

# Machine instructions of the tensor cores: Ampere's mma and Hopper's warp-group mma.
INT8_MMA = re.compile(r"\bI(?:G?)MMA\.")
HALF_MMA = re.compile(r"\bH(?:G?)MMA\.")
ANY_MMA = re.compile(r"\b([IHQD]G?MMA)\.[\w.]*")


@dataclass(frozen=True)
class Case:
    """One specialisation: `types` of the arguments in order, a constexpr's place holding its value."""

    name: str
    kernel: Any
    types: dict[str, str]  # argument -> "*fp16", "i32", "fp32"; those that are not here are in `constants`
    constants: dict[str, Any]
    num_warps: int = 4
    num_stages: int = 3
    mma: re.Pattern[str] | None = None
    unaligned: frozenset[str] = field(default_factory=frozenset)  # arguments that are no multiples of 16
    fusion: bool = True  # whether the compiler may contract to FMA


def integers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def floats(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "*fp32")


# What the integer GEMMs share: float16 in and out, as between the encoder's kernels.
EPILOGUE = floats("scale_ptr", "w_scale_ptr", "bias_ptr") | {"residual_ptr": "*fp16", "y_ptr": "*fp16"}
SUMS = {"sums_ptr": "*i32", "arrivals_ptr": "*i32"}


def gemm_cases() -> Iterator[Case]:
    """Products of int8 activations: dense, in blocks, with int4 weights, of one token."""
    from approxrt.kernels import gemm_bsr_int8, gemm_int4, gemm_int8, gemv, launch
    from approxrt.runtime.cuda.layout import BLOCKS

    def case(name: str, kernel: Any, types: dict[str, str], config: Any, constants: dict[str, Any], mma: bool) -> Case:
        return Case(
            name, kernel, EPILOGUE | types, constants | config.blocks, config.num_warps, config.num_stages,
            INT8_MMA if mma else None, frozenset({"M"}), fusion=False,
        )  # fmt: skip

    for m, n, k, activation in (
        (16, 768, 768, 0), (128, 3072, 768, 1), (128, 768, 3072, 0), (1024, 768, 768, 0), (2048, 768, 3072, 0),
        (4096, 3072, 768, 1),
    ):  # fmt: skip
        config = launch.gemm_int8_rule(m, n, k)
        yield case(
            f"gemm_int8 {m}x{n}x{k} {'gelu' if activation else 'residual'}",
            gemm_int8.gemm_int8_kernel,
            {"q_ptr": "*i8", "w_ptr": "*i8"} | SUMS | integers("M", "N", "K", "ldq", "ldw", "ldr", "ldy"),
            config,
            {"ACTIVATION": activation, "RESIDUAL": not activation},
            True,
        )
    for m in (128, 4096):
        for block_n, block_k in BLOCKS if m == 4096 else ((64, 64),):
            config = launch.gemm_bsr_rule(m, block_n, block_k)
            yield case(
                f"gemm_bsr_int8 m={m} {block_n}x{block_k}",
                gemm_bsr_int8.gemm_bsr_int8_kernel,
                {"q_ptr": "*i8", "blocks_ptr": "*i8", "columns_ptr": "*i32", "items_ptr": "*i32"}
                | SUMS | integers("M", "N", "ldq", "ldr", "ldy"),
                config,
                {"ACTIVATION": 1, "RESIDUAL": False, "SPLIT": m == 128, "BLOCK_N": block_n, "BLOCK_K": block_k},
                True,
            )  # fmt: skip
    for m in (16, 128):
        config = launch.gemm_int4_rule(m, 1536, 576)
        yield case(
            f"gemm_int4 m={m}",
            gemm_int4.gemm_int4_kernel,
            {"q_ptr": "*i8", "w_ptr": "*u8", "groups_ptr": "*u8"} | SUMS | integers("M", "N", "K", "ldq", "ldr", "ldy"),
            config,
            {"ACTIVATION": 0, "RESIDUAL": True},
            True,
        )
    for bits in (8, 4):
        config = launch.gemv_rule(1536, 640 if bits == 8 else 320)
        yield case(
            f"gemv int{bits}",
            gemv.gemv_kernel,
            {"q_ptr": "*i8", "w_ptr": "*i8" if bits == 8 else "*u8", "groups_ptr": "*u8"}
            | integers("N", "K", "ldq", "ldw", "ldr", "ldy"),
            config,
            {"INT4": bits == 4, "ACTIVATION": 0, "RESIDUAL": True},
            False,
        )


def sign_cases() -> Iterator[Case]:
    """Sign-matching attention of sequences of up to 16,384 tokens."""
    from approxrt.kernels import sign_attention

    table = {"tiles_ptr": "*i32"}
    heads = {"HEAD_DIM": 64, "BLOCK_D": 64, "HEADS": 12}
    yield Case(
        "sign_attention summarize",
        sign_attention.summarize_kernel,
        {"k_ptr": "*fp16", "ids_ptr": "*i32", "always_ptr": "*i32", "sums_ptr": "*i8", "forced_ptr": "*i32"}
        | table | integers("ldk"),
        heads | {"ALWAYS": 2},
        num_stages=1,
    )  # fmt: skip
    choice = {"GROUP": 1, "KV_HEADS": 12, "CAUSAL": False, "MAX_TILES": 256}
    lists = {"lists_ptr": "*i32", "counts_ptr": "*i32"}
    yield Case(
        "sign_attention select",
        sign_attention.select_kernel,
        {"q_ptr": "*fp16", "sums_ptr": "*i8", "forced_ptr": "*i32", "scores_ptr": "*i32"}
        | table | lists | integers("ldq", "keep", "dense_below"),
        heads | choice,
        num_stages=2,
        mma=INT8_MMA,
        unaligned=frozenset({"keep", "dense_below"}),
    )  # fmt: skip
    yield Case(
        "sign_attention d=64",
        sign_attention.sign_attention_kernel,
        dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), "*fp16") | table | lists
        | {"means_ptr": "*fp32", "sequences_ptr": "*i32", "scale_log2": "fp32"}
        | integers("ldq", "ldk", "ldv", "ldm", "ldo"),
        heads | choice | {"REST": True},
        num_stages=4,
        mma=HALF_MMA,
    )  # fmt: skip


def decoder_cases() -> Iterator[Case]:
    """What a decoder has besides, in the sizes of SmolLM2-135M."""
    from approxrt.kernels import cached_attention, gated, launch, rope

    yield Case(
        "rope",
        rope.rope_kernel,
        {"qkv_ptr": "*fp16", "cache_ptr": "*fp16", "positions_ptr": "*i32", "slots_ptr": "*i32"}
        | floats("cos_ptr", "sin_ptr") | integers("ldq", "ldc"),
        {"ROPE": True, "HEADS": 9, "KV_HEADS": 3, "HEAD_DIM": 64, "BLOCK_H": 16, "BLOCK_D": 32},
        num_stages=1,
    )  # fmt: skip
    for block in (0, 128):
        config = launch.gated_rule(1536, block)
        yield Case(
            f"gated 1536{' rotated' if block else ''}",
            gated.gated_kernel,
            {"x_ptr": "*fp16", "h_ptr": "*fp16", "q_ptr": "*i8", "scale_ptr": "*fp32", "root": "fp32"}
            | integers("M", "F", "ldx", "ldh", "ldq"),
            {"ACTIVATION": 5, "GATE": True, "HADAMARD": block, "WRITE_H": False, "WRITE_Q": True,
             **config.blocks},
            config.num_warps,
            config.num_stages,
            unaligned=frozenset({"M"}),
            fusion=False,
        )  # fmt: skip
    sizes = {"HEADS": 9, "HEAD_DIM": 64, "BLOCK_D": 64, "PARTS": 8}
    yield Case(
        "cached_attention",
        cached_attention.cached_attention_kernel,
        {"q_ptr": "*fp16", "cache_ptr": "*fp16", "table_ptr": "*i32"} | floats("parts_ptr", "stats_ptr")
        | integers("ldq", "ldc") | {"scale_log2": "fp32"},
        sizes | {"KV_HEADS": 3, "BLOCK_G": 16, "PART": cached_attention.PART},
        mma=HALF_MMA,
    )  # fmt: skip
    yield Case(
        "cached_attention combine",
        cached_attention.combine_kernel,
        {"table_ptr": "*i32", "out_ptr": "*fp16"} | floats("parts_ptr", "stats_ptr") | integers("ldo"),
        sizes,
        num_warps=1,
        num_stages=1,
    )


def cases() -> Iterator[Case]:
    """What the runtime launches for BERT-base, MiniLM and SmolLM2."""
    from approxrt.kernels import attention, embedding, gemm_f32, launch, layer_norm, pooling, quantize_rows

    yield from gemm_cases()
    for queries, head_dim, causal, dtype in (
        (128, 64, False, "fp16"), (4096, 32, False, "fp16"), (4096, 64, False, "fp16"), (4096, 64, True, "bf16"),
    ):  # fmt: skip
        config = launch.attention_rule(queries, head_dim)
        yield Case(
                f"attention {queries} queries d={head_dim}{' causal' if causal else ''} {dtype}",
                attention.attention_kernel,
                dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{dtype}")
                | {"tiles_ptr": "*i32"} | integers("ldq", "ldk", "ldv", "ldo") | {"scale_log2": "fp32"},
                {"GROUP": 3 if causal else 1, "HEAD_DIM": head_dim, "CAUSAL": causal, **config.blocks,
                 "BLOCK_D": head_dim, "KEYS": attention.KEYS},
                config.num_warps,
                config.num_stages,
                HALF_MMA,
            )  # fmt: skip
    yield from sign_cases()
    yield from decoder_cases()
    for width in (384, 768, 3072):
        config = launch.row_rule(width)
        yield Case(
            f"quantize_rows {width}",
            quantize_rows.quantize_rows_kernel,
            {"x_ptr": "*fp16", "q_ptr": "*i8", "scale_ptr": "*fp32"} | integers("M", "K", "ldx", "ldq"),
            dict(config.blocks),
            config.num_warps,
            config.num_stages,
            unaligned=frozenset({"M"}),
            fusion=False,
        )
    for width, rms in ((384, False), (768, False), (576, True)):
        config = launch.row_rule(width)
        yield Case(
            f"layer_norm {width}{' rms' if rms else ''}",
            layer_norm.layer_norm_kernel,
            {"x_ptr": "*fp16", "residual_ptr": "*fp16", "gamma_ptr": "*fp32", "beta_ptr": "*fp32", "z_ptr": "*fp32",
             "h_ptr": "*fp16", "q_ptr": "*i8", "scale_ptr": "*fp32"}
            | integers("M", "K", "ldx", "ldr", "ldz", "ldh", "ldq") | {"eps": "fp32"},
            {"RMS": rms, "RESIDUAL": True, "WRITE_Z": rms, "WRITE_H": not rms, "WRITE_Q": True, **config.blocks},
            config.num_warps,
            config.num_stages,
            unaligned=frozenset({"M"}),
            fusion=False,
        )  # fmt: skip
    for kind, word in ((0, "*fp32"), (1, "*i8"), (2, "*u8")):
        config = launch.row_rule(768)
        yield Case(
            f"embedding 768 {('f32', 'int8', 'int4')[kind]}",
            embedding.embedding_kernel,
            {"ids_ptr": "*i32", "positions_ptr": "*i32", "types_ptr": "*i32", "word_ptr": word, "group_ptr": "*u8",
             "scale_ptr": "*fp32", "position_ptr": "*fp32", "type_ptr": "*fp32", "gamma_ptr": "*fp32",
             "beta_ptr": "*fp32", "h_ptr": "*fp16", "q_ptr": "*i8", "q_scale_ptr": "*fp32"}
            | integers("M", "E", "ldw", "ldg", "ldh", "ldq") | {"eps": "fp32"},
            {"KIND": kind, "POSITION": True, "TYPES": True, "NORM": True, "WRITE_Q": True, **config.blocks},
            config.num_warps,
            config.num_stages,
            unaligned=frozenset({"M", "ldg"}),
            fusion=False,
        )  # fmt: skip
    config = launch.gemm_f32_rule(32)
    yield Case(
        "gemm_f32 head",
        gemm_f32.gemm_f32_kernel,
        dict.fromkeys(("x_ptr", "w_ptr", "bias_ptr", "residual_ptr", "y_ptr"), "*fp32")
        | integers("M", "N", "K", "ldx", "ldw", "ldr", "ldy"),
        {"ACTIVATION": 4, "RESIDUAL": False, **config.blocks},
        config.num_warps,
        config.num_stages,
        unaligned=frozenset({"M", "N"}),
    )
    yield Case(
        "pooling mean",
        pooling.pooling_kernel,
        {"x_ptr": "*fp16", "cu_seqlens_ptr": "*i32", "out_ptr": "*fp32"} | integers("H", "ldx", "ldo"),
        {"MEAN": True, "BLOCK": pooling._BLOCK},
        num_stages=1,
    )


def compile_case(case: Case, sm: int) -> dict[str, Any]:
    """One row of the table; `faults` is empty when the case is as it should be."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    missing = set(names) ^ (set(case.types) | set(case.constants))
    if missing:
        raise ValueError(f"{case.name}: arguments do not match the kernel's: {sorted(missing)}")
    signature = {name: case.types.get(name, "constexpr") for name in names}
    aligned = [n for n, t in case.types.items() if (t.startswith("*") or t == "i32") and n not in case.unaligned]
    attrs = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    source = ASTSource(case.kernel, signature, constexprs=case.constants, attrs=attrs)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": case.fusion}
    compiled = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    usage, sass = disassemble(compiled.asm["cubin"])
    row = {
        "kernel": case.name,
        "sm": sm,
        "warps": case.num_warps,
        "stages": case.num_stages,
        "registers": usage["REG"],
        "shared_bytes": compiled.metadata.shared,
        "spill_bytes": usage["STACK"] + usage["LOCAL"],
        "mma": sorted(set(ANY_MMA.findall(sass))),
    }
    faults = []
    if row["spill_bytes"]:
        faults.append(f"spills {row['spill_bytes']} bytes a thread")
    if row["shared_bytes"] > SHARED_LIMIT[sm]:
        faults.append(f"{row['shared_bytes']} bytes of shared memory; sm_{sm} has {SHARED_LIMIT[sm]}")
    if case.mma is not None and not case.mma.search(sass):
        faults.append(f"no instruction matches {case.mma.pattern}")
    return {**row, "faults": faults}


def disassemble(cubin: bytes) -> tuple[dict[str, int], str]:
    """(resource usage, machine code) of a cubin with one kernel, by the tools of triton's wheel."""
    import triton

    folder = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "kernel.cubin"
        path.write_bytes(cubin)
        usage = _run(folder / "cuobjdump", "--dump-resource-usage", path)
        sass = _run(folder / "nvdisasm", "-c", path)
    found = dict(re.findall(r"\b(REG|STACK|LOCAL|SHARED):(\d+)", usage))
    return {name: int(value) for name, value in found.items()}, sass


def _run(*command: object) -> str:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True).stdout


def report(pattern: str = "", architectures: tuple[int, ...] = ARCHITECTURES, jobs: int = 1) -> list[dict[str, Any]]:
    """Rows of all cases whose name matches the regular expression `pattern`."""
    todo = [(case, sm) for case in cases() if re.search(pattern, case.name) for sm in architectures]
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(lambda pair: compile_case(*pair), todo))


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["| kernel | sm | warps x stages | registers | shared, KB | spills | tensor cores |", "|---" * 7 + "|"]
    lines += [
        f"| {r['kernel']} | {r['sm']} | {r['warps']} x {r['stages']} | {r['registers']} "
        f"| {r['shared_bytes'] / 1024:.1f} | {r['spill_bytes']} | {', '.join(r['mma']) or '-'} |"
        for r in rows
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compile all kernels ahead of time and report what they use.")
    parser.add_argument("pattern", nargs="?", default="", help="only kernels whose name matches this")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--jobs", type=int, default=1, help="compilations at a time")
    arguments = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("compile_report compiles; TRITON_INTERPRET=1 interprets: unset it")
    import triton

    rows = report(arguments.pattern, jobs=arguments.jobs)
    print(json.dumps({"triton": triton.__version__, "rows": rows}, indent=1) if arguments.json else table(rows))
    faults = [f"{row['kernel']} sm_{row['sm']}: {fault}" for row in rows for fault in row["faults"]]
    print("\n".join(faults), file=sys.stderr, end="\n" if faults else "")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
