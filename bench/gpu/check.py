"""Are the kernels right on this GPU, at the sizes of real models, where tests on the CPU cannot go?

Integer sums exactly, cut products again and again (a race would show as a difference now and then), attention against
torch, an encoder against the float64 reference, its graphs against its plain launches.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import common
import numpy as np


def equal(got: Any, want: Any, what: str) -> None:
    import torch

    if not torch.equal(got, want):
        wrong = (got != want).sum().item()
        raise AssertionError(f"{what}: {wrong} of {got.numel()} values differ")


def check_gemm(setting: common.Setting, m: int, n: int, k: int) -> dict[str, Any]:
    """Sums by the dense, cut, int4 and one-token kernels."""
    import torch
    from operands import Product

    from approxrt.kernels.epilogue import Workspace
    from approxrt.kernels.gemm_int8 import gemm_int8
    from approxrt.kernels.gemv import gemv

    p = Product.random(m, n, k, setting.device)
    want = p.sums()
    y = p.room(torch.int32)
    gemm_int8(p.q, p.scale, p.w, p.w_scale, p.bias, y)
    equal(y.long(), want, "gemm_int8")
    workspace = Workspace(y.device)
    first = p.room()
    gemm_int8(p.q, p.scale, p.w, p.w_scale, p.bias, first, "gelu")
    for turn in range(setting.size(50, 2)):
        y.fill_(77)
        gemm_int8(p.q, p.scale, p.w, p.w_scale, p.bias, y, workspace=workspace)
        equal(y.long(), want, f"gemm_int8, cut, turn {turn}")
    again = p.room()
    gemm_int8(p.q, p.scale, p.w, p.w_scale, p.bias, again, "gelu", workspace=workspace)
    equal(again, first, "gemm_int8: cut or whole")
    y.fill_(77)
    gemv(p.q[:2], p.scale[:2], p.w, p.w_scale, p.bias, y[:2])
    equal(y[:2].long(), want[:2], "gemv")
    return {"ok": True}


def check_bsr(setting: common.Setting, m: int, n: int, k: int, block: tuple[int, int]) -> dict[str, Any]:
    """Blocks against the dense kernel, whole rows and cut ones."""
    import torch
    from operands import Product, kept_blocks_mask

    from approxrt.artifact.storage.bsr import expand_mask
    from approxrt.kernels.epilogue import Workspace
    from approxrt.kernels.gemm_bsr_int8 import gemm_bsr_int8
    from approxrt.kernels.gemm_int8 import gemm_int8
    from approxrt.runtime.cuda.layout import to_blocks, work_items

    p = Product.random(m, n, k, setting.device)
    k = p.w.shape[1]
    kept = kept_blocks_mask(n, k, block, 0.25)
    w = p.w.cpu().numpy() * expand_mask(kept, n, k)
    p = dataclasses.replace(p, w=torch.tensor(w, device=setting.device))
    blocks, columns, indptr = to_blocks(w, kept, block)
    want, y = p.room(), p.room()
    gemm_int8(p.q, p.scale, p.w, p.w_scale, p.bias, want, "gelu")
    workspace = Workspace(y.device)
    device = [torch.tensor(a, device=setting.device) for a in (blocks, columns)]
    for longest in (None, 4, 2):
        items = torch.tensor(work_items(indptr, longest), device=setting.device)
        for turn in range(setting.size(50, 2) if longest else 1):
            y.fill_(77)
            gemm_bsr_int8(
                p.q, p.scale, *device, items, p.w_scale, p.bias, y, "gelu",
                workspace=workspace if longest else None,
            )  # fmt: skip
            equal(y, want, f"gemm_bsr_int8 {block}, parts of {longest}, turn {turn}")
    return {"ok": True, "blocks": len(blocks), "row_lengths": [int(np.diff(indptr).min()), int(np.diff(indptr).max())]}


def check_int4(setting: common.Setting, m: int, n: int, k: int) -> dict[str, Any]:
    import torch
    from operands import Product

    from approxrt.kernels.gemm_int4 import gemm_int4, pack_int4
    from approxrt.kernels.gemv import gemv

    p = Product.random(m, n, k, setting.device)
    rng = np.random.default_rng(1)
    q4 = rng.integers(-7, 8, p.w.shape, dtype=np.int8)
    groups = rng.integers(1, 19, (n, p.w.shape[1] // 32), dtype=np.uint8)
    p = dataclasses.replace(
        p, w=torch.tensor(q4 * np.repeat(groups, 32, axis=1).astype(np.int8), device=setting.device)
    )
    packed, scales = (torch.tensor(a, device=setting.device) for a in pack_int4(q4, groups))
    y, want = p.room(torch.int32), p.sums()
    gemm_int4(p.q, p.scale, packed, scales, p.w_scale, p.bias, y)
    equal(y.long(), want, "gemm_int4")
    y.fill_(77)
    gemv(p.q[:1], p.scale[:1], packed, p.w_scale, p.bias, y[:1], groups=scales)
    equal(y[:1].long(), want[:1], "gemv int4")
    return {"ok": True}


def check_attention(setting: common.Setting, lengths: list[int], heads: int, d: int, causal: bool) -> dict[str, Any]:
    import torch

    from approxrt.kernels.attention import attention
    from approxrt.kernels.launch import attention_rule
    from approxrt.runtime.cuda.plan import attention_tiles

    generator = torch.Generator(setting.device).manual_seed(0)
    total = sum(lengths)
    qkv = torch.randn(total, 3 * heads * d, generator=generator, device=setting.device).half()
    q, k, v = qkv.split(heads * d, 1)
    out = torch.full((total, heads * d), 77.0, device=setting.device).half()
    block_m = attention_rule(total, d)["BLOCK_M"]
    tiles = torch.tensor(attention_tiles(lengths, block_m), device=setting.device)
    attention(q, k, v, out, tiles, block_m, d, 1 / math.sqrt(d), causal)
    worst, start = 0.0, 0
    for n in lengths:
        part = (x[start : start + n].reshape(n, heads, d).transpose(0, 1).float() for x in (q, k, v))
        want = torch.nn.functional.scaled_dot_product_attention(*part, is_causal=causal).transpose(0, 1)
        worst = max(worst, (out[start : start + n].float() - want.reshape(n, -1)).abs().max().item())
        start += n
    # float16 weights and result, values below 6
    if not worst <= 6 * 2**-10:
        raise AssertionError(f"attention is off by {worst}")
    return {"ok": True, "worst": worst}


def check_sign_attention(setting: common.Setting, lengths: list[int], heads: int, d: int, keep: int) -> dict[str, Any]:
    """The kept tiles' number and the output, against the reference."""
    import torch

    from approxrt.kernels.launch import ceil_div, next_power_of_2
    from approxrt.kernels.sign_attention import TILE, sign_attention
    from approxrt.runtime.cuda.plan import attention_tiles
    from approxrt.runtime.reference.encoder import kept_keys_by_tiles
    from approxrt.runtime.reference.encoder import sign_attention as formula

    generator = torch.Generator(setting.device).manual_seed(0)
    total = sum(lengths)
    qkv = torch.randn(total, 3 * heads * d, generator=generator, device=setting.device).half()
    q, k, v = qkv.split(heads * d, 1)
    out = torch.full((total, heads * d), 77.0, device=setting.device).half()
    tiles = torch.tensor(attention_tiles(lengths, TILE), device=setting.device)
    ids = torch.zeros(total, dtype=torch.int32, device=setting.device)
    most = next_power_of_2(max(ceil_div(n, TILE) for n in lengths))
    sign_attention(q, k, v, out, tiles, ids, d, 1 / math.sqrt(d), keep, most)
    worst, start = 0.0, 0
    for n in lengths:
        part = [x[start : start + n].cpu().double().reshape(n, heads, d).transpose(0, 1) for x in (q, k, v)]
        want = formula(*part, 1 / math.sqrt(d), kept_keys_by_tiles(part[0], part[1], keep)).transpose(0, 1)
        worst = max(worst, (out[start : start + n].cpu().double() - want.reshape(n, -1)).abs().max().item())
        start += n
    if not worst <= 6 * 2**-10:
        raise AssertionError(f"sign_attention is off by {worst}: other tiles were kept, or it is wrong")
    return {"ok": True, "worst": worst}


def check_encoder(setting: common.Setting, hidden: int, ffn: int, layers: int, density: float) -> dict[str, Any]:
    """Logits against the reference; graphs against launches; a sequence alone and in a batch, bit for bit."""
    from subjects import random_encoder

    from approxrt.runtime.cuda.engine import CudaEngine
    from approxrt.runtime.reference.encoder import reference_logits

    subject = random_encoder(hidden, ffn, layers, hidden // 64, density)
    engine = CudaEngine(subject, setting.device)
    rng = np.random.default_rng(0)
    ids = [
        rng.integers(0, subject.spec.vocab_size, n).tolist()
        for n in ((5, 64, 130, 17) if not setting.smoke else (3, 9))
    ]
    passes = [engine.forward(ids, None, "logits") for _ in range(4)]  # launches, capture and replay, replay, replay
    for other in passes[1:]:
        np.testing.assert_array_equal(passes[0], other)
    for i, sequence in enumerate(ids):
        np.testing.assert_array_equal(engine.forward([sequence], None, "logits")[0], passes[0][i])
    want = reference_logits(subject.spec, subject.tensors, ids)
    error = float(np.sqrt(np.mean((passes[0] - want) ** 2)) / np.sqrt(np.mean(want**2)))
    if not error <= 0.03:
        raise AssertionError(f"logits are off by {error:.4f} of their size")
    return {
        "ok": True,
        "relative_rms": error,
        "kernels": sorted({x["kernel"] for x in engine.info()["kernels"].values()}),
    }


def check_decoder(setting: common.Setting, bits: int) -> dict[str, Any]:
    """Steps and prompts against the reference without a cache; replays against launches, bit for bit."""
    from subjects import random_decoder

    from approxrt.runtime.cuda.decoder_engine import CudaDecoderEngine
    from approxrt.runtime.reference.decoder import DecoderReference

    subject = random_decoder(bits, small=True)
    engine = CudaDecoderEngine(subject, setting.device, 1024)
    prompt = np.random.default_rng(0).integers(0, 64, setting.size(330, 12)).tolist()
    want = DecoderReference(subject.decoder_spec, subject.tensors).next_logits(prompt)
    cache = engine.cache(400)
    rows = [engine.prefill(cache, prompt[:-2]), engine.step([cache], [prompt[-2:-1]])[0]]
    for _ in range(4):  # launches, capture and replay, replay, replay
        rows.append(engine.step([cache], [prompt[-1:]])[0])
        cache.truncate(len(prompt) - 1)
    for other in rows[3:]:
        np.testing.assert_array_equal(rows[2], other)
    error = max(
        float(np.sqrt(np.mean((row - w) ** 2)) / np.sqrt(np.mean(w**2)))
        for row, w in zip(rows[:3], want[-3:], strict=True)
    )
    if not error <= 0.05:
        raise AssertionError(f"logits are off by {error:.4f} of their size")
    return {"ok": True, "relative_rms": error}


def main() -> None:
    setting = common.parse(__doc__ or "")
    rows = common.Rows(setting.out)
    shapes = (
        [(20, 40, 256)] if setting.smoke else [(4096, 3072, 768), (128, 768, 3072), (1, 768, 768), (300, 2304, 384)]
    )
    for m, n, k in shapes:
        m2 = max(m, 2)
        rows.attempt(f"gemm {m2}x{n}x{k}", lambda m=m2, n=n, k=k: check_gemm(setting, m, n, k))
        rows.attempt(f"int4 {m}x{n}x{k}", lambda m=m, n=n, k=k: check_int4(setting, m, n, k))
    blocks = [(32, 64)] if setting.smoke else [(128, 128), (128, 64), (64, 128), (64, 64), (32, 64)]
    for block in blocks:
        for m in (20,) if setting.smoke else (128, 4096):
            n, k = (64, 256) if setting.smoke else (768, 3072)
            rows.attempt(f"bsr {block} m={m}", lambda m=m, n=n, k=k, block=block: check_bsr(setting, m, n, k, block))
    for d in (32, 64):
        for causal in (False, True):
            lengths = [5, 70] if setting.smoke else [128] * 7 + [1, 500, 63, 65]
            rows.attempt(
                f"attention d={d} causal={causal}",
                lambda d=d, causal=causal, lengths=lengths: check_attention(setting, lengths, 2, d, causal),
            )
    lengths = [200] if setting.smoke else [2000, 100, 700]
    rows.attempt("sign attention", lambda: check_sign_attention(setting, lengths, 2, 64, 1 if setting.smoke else 5))
    for density in (1.0, 0.25):
        sizes = (128, 128, 1) if setting.smoke else (384, 1536, 6)
        rows.attempt(
            f"encoder density {density}", lambda density=density, sizes=sizes: check_encoder(setting, *sizes, density)
        )
    for bits in (8,) if setting.smoke else (8, 4):
        rows.attempt(f"decoder int{bits}", lambda bits=bits: check_decoder(setting, bits))
    rows.finish()


if __name__ == "__main__":
    main()
