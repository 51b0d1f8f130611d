"""Kernels beside torch's own: int8 products dense and in blocks, attention, norms, one token.

Peers: torch._int_mm (cuBLASLt int8, int32 out, nothing fused), bf16 products (cuBLAS), scaled_dot_product_attention
(flash), layer_norm. Times are of the device alone, out of CUDA graphs, interleaved.
"""

from __future__ import annotations

import math
from typing import Any

import common
import numpy as np


def products(setting: common.Setting, m: int, n: int, k: int, density: float) -> dict[str, Any]:
    """Dense and block-sparse int8 beside torch's int8 and bf16."""
    import torch
    from operands import Product, kept_blocks_mask

    from approxrt.artifact.storage.bsr import expand_mask
    from approxrt.kernels import launch
    from approxrt.kernels.epilogue import Workspace
    from approxrt.kernels.gemm_bsr_int8 import gemm_bsr_int8
    from approxrt.kernels.gemm_int8 import gemm_int8
    from approxrt.runtime.cuda.layout import longest_part, to_blocks, work_items

    p, workspace = Product.random(m, n, k, setting.device), Workspace(setting.device)
    y = p.room()
    activation = "gelu" if n > k else "identity"
    calls = {
        "gemm_int8": lambda: gemm_int8(p.q, p.scale, p.w, p.w_scale, p.bias, y, activation, workspace=workspace),
    }
    x16, w16 = p.q.bfloat16(), p.w.bfloat16()
    calls["torch bf16"] = lambda: torch.nn.functional.linear(x16, w16)
    if m > 16:  # a limit of torch._int_mm
        calls["torch._int_mm"] = lambda: torch._int_mm(p.q, p.w.T)
    for block in ((64, 64), (128, 64), (128, 128)):
        kept = kept_blocks_mask(n, k, block, density)
        blocks, columns, indptr = to_blocks(p.w.cpu().numpy() * expand_mask(kept, n, p.w.shape[1]), kept, block)
        config = launch.gemm_bsr_config(m, n, *block)
        longest = longest_part(np.diff(indptr).tolist(), launch.ceil_div(m, config["BLOCK_M"]), launch.SMS)
        stored = [torch.tensor(a, device=setting.device) for a in (blocks, columns, work_items(indptr, longest))]

        def sparse(stored: list[Any] = stored, longest: int | None = longest, config: Any = config) -> None:
            gemm_bsr_int8(
                p.q, p.scale, *stored, p.w_scale, p.bias, y, activation,
                workspace=None if longest is None else workspace, config=config,
            )  # fmt: skip

        calls[f"gemm_bsr_int8 {block[0]}x{block[1]}"] = sparse
    times = common.device_times(setting, calls)
    macs = m * n * p.w.shape[1]
    return {
        "density": density,
        "times": times,
        "tera_ops": {name: round(2e-9 * macs / t["ms"], 1) for name, t in times.items() if "bsr" not in name},
        "ratios to gemm_bsr_int8 64x64": common.ratios(times, "gemm_bsr_int8 64x64"),
        "ratios to gemm_int8": common.ratios(times, "gemm_int8"),
    }


def attention(setting: common.Setting, batch: int, n: int, heads: int, d: int, causal: bool) -> dict[str, Any]:
    """Equal lengths, which is SDPA's best case."""
    import torch

    from approxrt.kernels.attention import attention as ours
    from approxrt.kernels.launch import attention_rule
    from approxrt.runtime.cuda.plan import attention_tiles

    qkv = torch.randn(batch * n, 3 * heads * d, device=setting.device).half()
    q, k, v = qkv.split(heads * d, 1)
    out = torch.empty(batch * n, heads * d, device=setting.device).half()
    block_m = attention_rule(batch * n, d)["BLOCK_M"]
    tiles = torch.tensor(attention_tiles([n] * batch, block_m), device=setting.device)
    other = [x.reshape(batch, n, heads, d).transpose(1, 2).contiguous() for x in (q, k, v)]
    times = common.device_times(
        setting,
        {
            "attention": lambda: ours(q, k, v, out, tiles, block_m, d, 1 / math.sqrt(d), causal),
            "torch SDPA": lambda: torch.nn.functional.scaled_dot_product_attention(*other, is_causal=causal),
        },
    )
    return {"times": times, "ratios": common.ratios(times, "attention")}


def sign_attention(setting: common.Setting, n: int, heads: int, d: int, share: float) -> dict[str, Any]:
    """Sign matching over tiles of 64 keys, keeping a share of them, beside full attention of both kinds."""
    import torch

    from approxrt.kernels.launch import ceil_div, next_power_of_2
    from approxrt.kernels.sign_attention import TILE
    from approxrt.kernels.sign_attention import sign_attention as ours
    from approxrt.runtime.cuda.plan import attention_tiles

    qkv = torch.randn(n, 3 * heads * d, device=setting.device).half()
    q, k, v = qkv.split(heads * d, 1)
    out = torch.empty(n, heads * d, device=setting.device).half()
    tiles = torch.tensor(attention_tiles([n], TILE), device=setting.device)
    ids = torch.zeros(n, dtype=torch.int32, device=setting.device)
    count = ceil_div(n, TILE)
    keep, most = max(1, round(share * count)), next_power_of_2(count)
    other = [x.reshape(1, n, heads, d).transpose(1, 2).contiguous() for x in (q, k, v)]
    times = common.device_times(
        setting,
        {
            "sign_attention": lambda: ours(q, k, v, out, tiles, ids, d, 1 / math.sqrt(d), keep, most),
            "torch SDPA": lambda: torch.nn.functional.scaled_dot_product_attention(*other),
        },
        repeat=5,
    )
    return {"keep": keep, "of": count, "times": times, "ratios": common.ratios(times, "sign_attention")}


def norm(setting: common.Setting, m: int, width: int) -> dict[str, Any]:
    """Add, norm and quantise in one pass beside torch's add and layer_norm in bf16."""
    import torch

    from approxrt.kernels.layer_norm import layer_norm
    from approxrt.runtime.cuda.linear import quantized_like

    x, residual = torch.randn(2, m, width, device=setting.device).half()
    gamma, beta = torch.randn(2, width, device=setting.device)
    h, quantized = torch.empty_like(x), quantized_like(x)
    x16, r16, g16, b16 = (t.bfloat16() for t in (x, residual, gamma, beta))
    times = common.device_times(
        setting,
        {
            "layer_norm": lambda: layer_norm(x, gamma, beta, 1e-12, residual=residual, h=h, quantized=quantized),
            "torch add, layer_norm bf16": lambda: torch.nn.functional.layer_norm(x16 + r16, (width,), g16, b16),
        },
    )
    moved = m * width * (2 + 2 + 2 + 1)
    return {"times": times, "gigabytes_a_second": round(moved / times["layer_norm"]["ms"] / 1e6)}


def one_token(setting: common.Setting, n: int, k: int) -> dict[str, Any]:
    """A token's product in int8 and int4 beside bf16."""
    import torch
    from operands import Product

    from approxrt.kernels.gemm_int4 import pack_int4
    from approxrt.kernels.gemv import gemv

    p = Product.random(1, n, k, setting.device)
    rng = np.random.default_rng(0)
    q4 = rng.integers(-7, 8, p.w.shape, dtype=np.int8)
    groups = rng.integers(1, 19, (n, p.w.shape[1] // 32), dtype=np.uint8)
    packed, scales = (torch.tensor(a, device=setting.device) for a in pack_int4(q4, groups))
    x16, w16, y = p.q.bfloat16(), p.w.bfloat16(), p.room()
    times = common.device_times(
        setting,
        {
            "gemv int8": lambda: gemv(p.q, p.scale, p.w, p.w_scale, p.bias, y),
            "gemv int4": lambda: gemv(p.q, p.scale, packed, p.w_scale, p.bias, y, groups=scales),
            "torch bf16": lambda: torch.nn.functional.linear(x16, w16),
        },
    )
    return {"times": times, "ratios to gemv int8": common.ratios(times, "gemv int8")}


def main() -> None:
    setting = common.parse(__doc__ or "")
    rows = common.Rows(setting.out)
    smoke = setting.smoke
    shapes = (
        [(20, 128, 128)]
        if smoke
        else [(4096, 3072, 768), (4096, 768, 3072), (4096, 768, 768), (128, 768, 3072), (8192, 4096, 4096)]
    )
    for m, n, k in shapes:
        rows.attempt(f"product {m}x{n}x{k}", lambda m=m, n=n, k=k: products(setting, m, n, k, 0.25))
    for batch, n, heads, d, causal in [(2, 20, 2, 32, False)] if smoke else [
        (32, 128, 12, 64, False), (32, 128, 12, 32, False), (1, 128, 12, 64, False), (1, 4096, 12, 64, False),
        (1, 4096, 12, 64, True),
    ]:  # fmt: skip
        rows.attempt(
            f"attention {batch}x{n} heads={heads} d={d} causal={causal}",
            lambda a=(batch, n, heads, d, causal): attention(setting, *a),
        )
    for n, share in [(150, 0.3)] if smoke else [(4096, 0.25), (4096, 0.1), (16384, 0.1), (16384, 0.05)]:
        rows.attempt(f"sign attention n={n} keep={share}", lambda n=n, s=share: sign_attention(setting, n, 12, 64, s))
    for m, width in [(5, 64)] if smoke else [(4096, 768), (4096, 384), (128, 768)]:
        rows.attempt(f"norm {m}x{width}", lambda m=m, width=width: norm(setting, m, width))
    for n, k in [(40, 100)] if smoke else [(1536, 576), (576, 1536), (49152, 576)]:
        rows.attempt(f"one token {n}x{k}", lambda n=n, k=k: one_token(setting, n, k))
    rows.finish()


if __name__ == "__main__":
    main()
