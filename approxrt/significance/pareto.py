"""Predict what each block costs on this machine, and the choices that lose least for a speedup; nothing is built.

The scores are those of an analysis; the choice is `approxrt.planning.allocate`'s, for one time budget after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.spec.formats import TILE_K, TILE_N
from approxrt.planning.allocate import allocate
from approxrt.planning.encoder_options import Block, BlockPart, BlockScores, blocks_of
from approxrt.planning.plan import Limits
from approxrt.progress import Progress
from approxrt.quantization.build import quantized
from approxrt.significance.latency import BlockTimes, MeasuredTable, cpu_name, measure_table, typical_lengths
from approxrt.significance.workload import SAMPLE_TOKENS, engine_run, sample_texts, take_turns
from approxrt.torch_models.encoder import TorchEncoder

WORKLOAD_TEXTS = 128
SPEEDUPS = (1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
ROUNDING = 1e-3  # of a budget: the dense model takes its own time to the last digit


@dataclass(frozen=True)
class Timed:
    """Texts of the task, as token ids, of which some (drawn with `seed`) are timed on so many threads."""

    ids: Sequence[Sequence[int]]
    threads: int
    seed: int = 0


def costs(
    model: TorchEncoder, scores: Mapping[str, np.ndarray], timed: Timed, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return (latency, front) of an analysis document; see `approxrt.significance.analyze.analyze`.

    scores    by linear of the layers, f64[N, K]: what the loss of a text gains without each weight
    """
    spec, threads = model.spec, timed.threads
    texts = sample_texts(timed.ids, WORKLOAD_TEXTS, timed.seed)
    lengths = [len(text) for text in texts]
    # The measurements are four fifths of the work here.
    typical = tuple(typical_lengths([len(text) for text in timed.ids], SAMPLE_TOKENS))
    wanted = BlockTimes(spec, typical, ("s8",), threads)
    table = measure_table(wanted, progress.part(0.0, 0.8), tokens=sum(lengths))
    progress(0.8, "timing the whole model")
    times = take_turns(
        {
            "f32": engine_run(spec, model.tensors(), texts, threads),
            "int8": engine_run(*quantized(model, {}, None, clip_ratios=(1.0,)), texts, threads),
        },
        seconds=2.0,
    )
    f32, int8 = times["f32"].median_ms, times["int8"].median_ms
    scored = {block: BlockScores(spec, block, scores) for block in blocks_of(spec)}
    dense = sum(table.ms(block.kind, full_size(spec, block), 1.0, "s8") for block in scored)
    correction = int8 / (dense + table.base_ms)
    latency: dict[str, Any] = {
        "cpu": cpu_name(),
        "threads": threads,
        "texts": len(texts),
        "tokens": sum(lengths),
        "f32_ms": f32,
        "int8_ms": int8,
        "base_ms": table.base_ms,
        "correction": correction,
    }
    for (kind, _), (sizes, densities, ms) in table.points.items():
        latency[kind] = {"sizes": sizes.tolist(), "densities": densities.tolist(), "ms": ms.tolist()}
    progress(0.9, "looking for the best choices")
    front = predicted_pareto(spec, scored, table, int8, correction)
    progress(1.0, "done")
    return latency, [point | {"speedup_f32": f32 / point["ms"]} for point in front]


def predicted_pareto(
    spec: ModelSpec, scored: Mapping[Block, BlockScores], table: MeasuredTable, int8: float, correction: float
) -> list[dict[str, Any]]:
    """[{speedup, ms, loss, blocks}] for `SPEEDUPS` over the dense model's `int8` ms, as far as they can be reached.

    correction   measured over predicted time of the dense model, taken to hold for the others, too
    """
    parts = [BlockPart(scores, scores.options(table, ("s8",), {})) for scores in scored.values()]
    out: list[dict[str, Any]] = []
    for speedup in SPEEDUPS:
        budget = int8 / speedup / correction - table.base_ms
        plan = allocate(spec, parts, Limits(ms=budget * (1 + ROUNDING))) if budget > 0 else None
        if plan is None:
            break
        ms = (plan.ms + table.base_ms) * correction
        blocks = {}
        for block in scored:
            scheme = plan.schemes.get(block.linears[0])
            kept = (plan.keep.heads if block.kind == "attention" else plan.keep.channels)[block.layer]
            density = 0.0 if scheme is None else scheme.density
            blocks[block.name] = {"size": len(kept), "of": full_size(spec, block), "density": density}
        out.append({"speedup": int8 / ms, "ms": ms, "loss": plan.loss, "blocks": blocks})
    return out


def full_size(spec: ModelSpec, block: Block) -> int:
    """Heads or neurons of a block."""
    layer = spec.layers[block.layer]
    return layer.num_heads if block.kind == "attention" else layer.intermediate_size


def spread(scores: np.ndarray, n: int, k: int) -> np.ndarray:
    """f64[n, k] over weights whose sums by tile are `scores`: a tile's is dealt out evenly over what it holds."""
    heights, widths = np.bincount(np.arange(n) // TILE_N), np.bincount(np.arange(k) // TILE_K)
    each = scores / np.outer(heights, widths)
    result: np.ndarray = np.repeat(np.repeat(each, heights, axis=0), widths, axis=1)
    return result
