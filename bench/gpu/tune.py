"""Measures tile sizes for the products of BERT-base and MiniLM and keeps the fastest in the tuned table.

The table (`kernels/launch.py`, $APPROXRT_CACHE) is what the later parts run with. Shapes come in the order of their
share of the time, and tuning ends after `SECONDS`, whatever is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import common

SECONDS = 50.0
# (tokens, outputs, inputs): query-key-value, output, up and down of BERT-base
SHAPES = [
    (4096, 3072, 768), (4096, 768, 3072), (4096, 2304, 768), (4096, 768, 768),
    (128, 3072, 768), (128, 768, 3072), (128, 2304, 768), (128, 768, 768),
]  # fmt: skip


def timer(setting: common.Setting) -> Callable[[Callable[[], object]], float]:
    """Milliseconds of a call."""
    from approxrt.kernels.launch import device_ms

    return (lambda call: common.host_times({"": call}, 0.0, 1)[""]["ms"]) if setting.smoke else device_ms


def tune_dense(setting: common.Setting, m: int, n: int, k: int) -> dict[str, Any]:
    from operands import Product

    from approxrt.kernels import launch
    from approxrt.kernels.epilogue import Workspace
    from approxrt.kernels.gemm_int8 import gemm_int8

    p, workspace = Product.random(m, n, k, setting.device), Workspace(setting.device)
    y = p.room()

    def run(config: launch.Config) -> None:
        gemm_int8(
            p.q, p.scale, p.w, p.w_scale, p.bias, y, "gelu" if n > k else "identity", workspace=workspace, config=config
        )

    key = launch.key_of("gemm_int8", m=launch.size_bucket(m), n=n, k=k)
    return launch.tune(key, launch.gemm_int8_candidates(m, n, k), run, timer(setting))


def tune_bsr(setting: common.Setting, m: int, n: int, k: int, block: tuple[int, int]) -> dict[str, Any]:
    import numpy as np
    import torch
    from operands import Product, kept_blocks_mask

    from approxrt.artifact.storage.bsr import expand_mask
    from approxrt.kernels import launch
    from approxrt.kernels.epilogue import Workspace
    from approxrt.kernels.gemm_bsr_int8 import gemm_bsr_int8
    from approxrt.runtime.cuda.layout import longest_part, to_blocks, work_items

    p, workspace = Product.random(m, n, k, setting.device), Workspace(setting.device)
    kept, y = kept_blocks_mask(n, k, block, 0.25), p.room()
    blocks, columns, indptr = to_blocks(p.w.cpu().numpy() * expand_mask(kept, n, k), kept, block)
    stored = [torch.tensor(a, device=setting.device) for a in (blocks, columns)]
    cuts: dict[int, tuple[torch.Tensor, Workspace | None]] = {}

    def run(config: launch.Config) -> None:
        block_m = config["BLOCK_M"]
        if block_m not in cuts:
            longest = longest_part(np.diff(indptr).tolist(), launch.ceil_div(m, block_m), launch.SMS)
            items = torch.tensor(work_items(indptr, longest), device=setting.device)
            cuts[block_m] = items, None if longest is None else workspace
        items, room = cuts[block_m]
        gemm_bsr_int8(p.q, p.scale, *stored, items, p.w_scale, p.bias, y, workspace=room, config=config)

    key = launch.key_of("gemm_bsr_int8", m=launch.size_bucket(m), n=n, block_n=block[0], block_k=block[1])
    return launch.tune(key, launch.gemm_bsr_candidates(m, *block), run, timer(setting))


def main() -> None:
    setting = common.parse(__doc__ or "")
    rows = common.Rows(setting.out)
    begin = time.monotonic()
    shapes = [(20, 40, 256)] if setting.smoke else SHAPES
    # The keys of blocks do not hold the inputs: the shapes with most of them decide.
    todo: list[tuple[str, Any]] = []
    for m, n, k in shapes:
        todo.append((f"gemm_int8 {m}x{n}x{k}", lambda m=m, n=n, k=k: tune_dense(setting, m, n, k)))
        if k >= n or n > 2 * k:
            todo.append((f"bsr 64x64 {m}x{n}x{k}", lambda m=m, n=n, k=k: tune_bsr(setting, m, n, k, (64, 64))))
    for name, measure in todo:
        if time.monotonic() - begin > SECONDS:
            rows.add({"what": name, "skipped": "out of time"})
        else:
            rows.attempt(name, measure)
    rows.finish()


if __name__ == "__main__":
    main()
