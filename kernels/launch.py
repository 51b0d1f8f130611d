"""Launch policy: which tile sizes a kernel runs with. The only file that decides it.

`config(kernel, key)` answers from the tuned table of this device if it has the key, else from the rules below. `tune`
measures the candidates and adds the fastest to the table, a JSON file at `cache_path()`:

    {"NVIDIA H200": {"gemm_int8 m=4096 n=768 k=3072": {"BLOCK_M": 128, ...}, ...}}

Tile sizes decide speed only. Integer sums are exact in any order, and the kernels whose float sums depend on a tile
size (attention's keys) do not have that size here. A key holds sizes rounded as `size_bucket` does, never a batch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from approxrt.cache import cache_file, read_cached, write_cached

TABLE_VERSION = 1


@dataclass(frozen=True)
class Config:
    """Tile sizes as the kernel names them, and how it is compiled."""

    blocks: Mapping[str, int]
    num_warps: int = 4
    num_stages: int = 3

    def kwargs(self) -> dict[str, int]:
        """For `kernel[grid](..., **config.kwargs())`."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}

    def with_blocks(self, **changes: int) -> Config:
        """A copy with other block sizes."""
        return replace(self, blocks={**self.blocks, **changes})

    def __getitem__(self, name: str) -> int:
        return self.blocks[name]


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(value: int, multiple: int) -> int:
    return ceil_div(value, multiple) * multiple


def next_power_of_2(value: int) -> int:
    return 1 << max(0, value - 1).bit_length()


def size_bucket(value: int) -> int:
    """The power of two at or above `value`: tunings are shared by sizes that differ by less."""
    return next_power_of_2(value)


# Up to so many tokens a product is a GEMV.
GEMV_TOKENS = 4

# -- rules, where nothing was measured -----------------------------------------------------------------------------

# Loads of a row of int8 activations go by 16 bytes and whole K-blocks: rows are stored padded with zeros.
K_MULTIPLE = 128
# Streaming multiprocessors of an H100 or H200; the rules aim at one tile for each at least.
SMS = 132


def gemm_int8_rule(m: int, n: int, k: int) -> Config:
    """Large tiles where there are enough of them to fill the device, else smaller ones.

    wgmma wants 64 rows a warp group; 128 x 256 with 8 warps holds 128 int32 accumulators a thread, which is what
    fits beside the operands' addresses without spills. With few tokens the product waits for the weights: 16 rows are
    the least an mma has, and long K-blocks keep more bytes in flight.
    """
    block_k = 128 if k % 128 == 0 else 64
    shapes = ((128, 256, 8, 3), (128, 128, 8, 4), (64, 128, 4, 4), (64, 64, 4, 4))
    for block_m, block_n, warps, stages in shapes if m > 32 else ():
        if ceil_div(m, block_m) * ceil_div(n, block_n) >= SMS:
            blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8, "SPLIT_K": 1}
            return Config(blocks, warps, stages)
    block_m = 16 if m <= 16 else 32
    block_n = 32 if m <= 32 else 64
    # Parts of at least four K-blocks: starting a program and adding its sums cost as much as two or three.
    tiles = ceil_div(m, block_m) * ceil_div(n, block_n)
    split = max(1, min(SMS // tiles, k // block_k // 4))
    return Config({"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8, "SPLIT_K": split}, 4, 4)


def gemm_int8_candidates(m: int, n: int, k: int) -> list[Config]:
    """What `tune` tries: tiles that compile without spills, deep and shallow rings, the rule itself."""
    block_k = 128 if k % 128 == 0 else 64
    shapes = (
        [(128, 256, 8, 3), (256, 128, 8, 3), (128, 256, 8, 4), (128, 128, 8, 4), (128, 128, 4, 3), (64, 256, 4, 3),
         (64, 128, 4, 4)]
        if m > 512
        else [(64, 64, 4, 4), (64, 32, 4, 5), (32, 64, 4, 5), (32, 32, 4, 5), (16, 64, 4, 5)]
    )  # fmt: skip
    out = [gemm_int8_rule(m, n, k)]
    for block_m, block_n, warps, stages in shapes:
        tiles = ceil_div(m, block_m) * ceil_div(n, block_n)
        for split in (1,) if m > 512 else {1, max(1, min(SMS // tiles, k // block_k // 4))}:
            blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k, "GROUP_M": 8, "SPLIT_K": split}
            out.append(Config(blocks, warps, stages))
    return [config for i, config in enumerate(out) if config not in out[:i]]


def gemm_bsr_candidates(m: int, block_n: int, block_k: int) -> list[Config]:
    """What `tune` tries."""
    out = [gemm_bsr_rule(m, block_n, block_k)]
    for block_m, warps in ((256, 8), (128, 8), (128, 4), (64, 4)) if m > 512 else ((64, 4), (32, 4), (16, 4)):
        for stages in (5, 7):
            if stages // 2 * (block_m + block_n) * block_k <= 150 * 1024:
                out.append(Config({"BLOCK_M": block_m}, warps, stages))
    return [config for i, config in enumerate(out) if config not in out[:i]]


def gemm_bsr_rule(m: int, block_n: int, block_k: int) -> Config:
    """BLOCK_N and BLOCK_K are the stored blocks'. Tall tiles of tokens where there are many: weights are read once a
    tile. A block's address comes from a load itself, so of the stages every second holds data: 7 are 4 buffers."""
    block_m = 16 if m <= 16 else 32 if m <= 128 else 64 if m <= 512 else 128
    wide = block_m * block_n >= 128 * 128
    return Config({"BLOCK_M": block_m}, 8 if wide else 4, 5 if wide and block_k == 128 else 7)


def gemm_bsr_config(m: int, n: int, block_n: int, block_k: int) -> Config:
    """The tuned or ruled configuration of a block-sparse product."""
    key = key_of("gemm_bsr_int8", m=size_bucket(m), n=n, block_n=block_n, block_k=block_k)
    return config(key, gemm_bsr_rule(m, block_n, block_k))


def gemm_int4_rule(m: int, n: int, k: int) -> Config:
    """64 outputs are a warp group's; tokens are the mma's narrow side."""
    block_m = min(128, max(16, next_power_of_2(m)))
    tiles = ceil_div(m, block_m) * ceil_div(n, 64)
    split = max(1, min(SMS // tiles, k // 128 // 4))
    return Config({"BLOCK_M": block_m, "BLOCK_N": 64, "SPLIT_K": split}, 4, 4)


def gemv_rule(n: int, row_bytes: int) -> Config:
    """Rows a program: enough programs to fill the device several times over, which hides the loads' latency."""
    return Config({"BLOCK_N": 4 if n <= 4096 else 16, "BLOCK_K": min(512, next_power_of_2(row_bytes))}, 4, 2)


def gemm_f32_rule(m: int) -> Config:
    """BLOCK_K is no tuning parameter: it decides the order of a float sum."""
    return Config({"BLOCK_M": 16 if m <= 64 else 64, "BLOCK_N": 64, "BLOCK_K": 32}, 4, 3)


def row_rule(width: int) -> Config:
    """Kernels that hold whole rows: narrow rows share a program, 4 to 16 elements a thread."""
    block = next_power_of_2(width)
    rows = max(1, 1024 // block)
    warps = min(8, max(1, rows * block // 512))
    return Config({"ROWS": rows, "BLOCK": block}, warps, 1)


def gated_rule(width: int, hadamard: int) -> Config:
    """Rows as in `row_rule`, and at least the 16 blocks that a product with a Hadamard matrix takes."""
    config = row_rule(width)
    return config.with_blocks(ROWS=max(config["ROWS"], 16 * hadamard // config["BLOCK"]))


def attention_rule(queries: int, head_dim: int) -> Config:
    """Keys come by 64, fixed, because their order decides the float sums; only the queries' tile may change.

    16 queries a warp: with more, scores and sums of a 64-wide head do not fit in registers.
    """
    block_m = 64 if queries <= 256 or head_dim > 64 else 128
    return Config({"BLOCK_M": block_m}, block_m // 16, 3)


# -- the tuned table ---------------------------------------------------------------------------------------------------


def cache_path() -> Path | None:
    """triton-tuned.json in approxrt's cache; None for a user without one, whose table lasts as long as the process."""
    return cache_file("triton-tuned.json")


@cache
def device_name() -> str:
    """The GPU's name, or "none"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


class TunedTable:
    """Configurations measured on devices of one name. A file that cannot be read or parsed counts as empty."""

    def __init__(self, path: Path | None, device: str) -> None:
        self.path, self.device = path, device
        self.configs = {key: parsed for key, raw in self._read().get(device, {}).items() if (parsed := _parse(raw))}

    def get(self, key: str) -> Config | None:
        return self.configs.get(key)

    def put(self, key: str, config: Config) -> None:
        """Remember and write; the file is replaced whole, so that a reader never sees half of it."""
        self.configs[key] = config
        everything = self._read()
        everything.setdefault(self.device, {})[key] = asdict(config)
        document = {"version": TABLE_VERSION, "devices": everything}
        write_cached(self.path, json.dumps(document, indent=1, sort_keys=True))

    def _read(self) -> dict[str, Any]:
        try:
            data = json.loads(read_cached(self.path) or "null")
        except ValueError:
            return {}
        if not isinstance(data, dict) or data.get("version") != TABLE_VERSION:
            return {}
        devices = data.get("devices")
        return {k: v for k, v in devices.items() if isinstance(v, dict)} if isinstance(devices, dict) else {}


def _parse(raw: Any) -> Config | None:
    """A config of the file; None for anything that no kernel could be launched with."""
    if not isinstance(raw, dict) or set(raw) != {"blocks", "num_warps", "num_stages"}:
        return None
    blocks = raw["blocks"]
    if not isinstance(blocks, dict) or not all(type(v) is int and 0 < v <= 1 << 16 for v in blocks.values()):
        return None
    if raw["num_warps"] not in (1, 2, 4, 8, 16) or raw["num_stages"] not in range(1, 9):
        return None
    return Config(blocks, raw["num_warps"], raw["num_stages"])


@cache
def _table() -> TunedTable:
    return TunedTable(cache_path(), device_name())


def key_of(kernel: str, **sizes: int) -> str:
    """A table's key: the kernel's name and its sizes."""
    return " ".join([kernel, *(f"{name}={value}" for name, value in sizes.items())])


def config(key: str, rule: Config) -> Config:
    """The tuned configuration of `key` if it names the blocks that the rule's does, else the rule's."""
    tuned = _table().get(key)
    return tuned if tuned is not None and set(tuned.blocks) == set(rule.blocks) else rule


def device_ms(call: Callable[[], object]) -> float:
    """Milliseconds of a call on the GPU."""
    import triton.testing

    return float(triton.testing.do_bench(call, warmup=5, rep=20))


def tune(
    key: str,
    candidates: Iterable[Config],
    run: Callable[[Config], object],
    measure: Callable[[Callable[[], object]], float] = device_ms,
) -> dict[str, Any]:
    """Measure `run` with each candidate, keep the fastest under `key`.

    A candidate that does not compile or does not fit (shared memory) is left out. Returns {"key", "config", "ms",
    "tried", "failed"}; raises RuntimeError when none ran.
    """
    timed: list[tuple[float, Config]] = []
    failed: list[str] = []
    for candidate in candidates:
        try:
            timed.append((measure(lambda c=candidate: run(c)), candidate))
        except Exception as error:  # triton raises many kinds: out of resources, compiler passes, ptxas
            failed.append(f"{candidate}: {type(error).__name__}")
    if not timed:
        raise RuntimeError(f"{key}: none of {len(failed)} configurations ran: {failed[:3]}")
    ms, best = min(timed, key=lambda pair: pair[0])
    _table().put(key, best)
    return {"key": key, "config": asdict(best), "ms": ms, "tried": len(timed), "failed": failed}
