"""Measure what a block costs on this machine: milliseconds by size, density and kind of weights, of the engine itself.

A probe is a model whose layers hold only blocks of one kind and shape, with random weights and random tiles; what it
takes beyond a model whose blocks are all removed, divided by its layers, is the cost of one block: its linears with
their quantisation, and attention itself. The workload is the task's: sequences of its own lengths. Grid points in
between are interpolated. Results are kept in a cache by machine, shape and workload, for times that matter (whole
models) are measured again anyway.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.memory import Memory
from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.artifact.spec.formats import LinearKind
from approxrt.cache import cache_file, read_cached, write_cached
from approxrt.progress import Progress
from approxrt.quantization.scheme import Scheme
from approxrt.significance.probes import random_linear
from approxrt.version import __version__

PROBE_LAYERS = 4
GRID_DENSITIES = (0.03, 0.1, 0.25, 0.5, 1.0)
GRID_SIZES = 5
VOCABULARY = 64
ROUNDS = 3
TYPICAL, STEP = 8, 4  # lengths that stand for a workload's, in tokens, and what they are multiples of


# (sizes [s], densities [d], milliseconds [s, d])
Grid = tuple[np.ndarray, np.ndarray, np.ndarray]


class MeasuredTable:
    """See the module's text. `points` maps (block, kind) to (sizes [s], densities [d], ms [s, d])."""

    def __init__(
        self, points: Mapping[tuple[str, LinearKind], tuple[np.ndarray, np.ndarray, np.ndarray]], base_ms: float
    ):
        self.points, self.base_ms = dict(points), base_ms

    def ms(self, block: str, size: int, density: float, kind: LinearKind) -> float:
        """Milliseconds of one block, linear between grid points; 0 for a removed one."""
        if size == 0:
            return 0.0
        sizes, densities, table = self.points[block, kind]
        by_size = np.array([np.interp(density, densities, row) for row in table])
        # Through the origin below the smallest size: a block of no heads costs nothing.
        return float(np.interp(size, np.concatenate([[0], sizes]), np.concatenate([[0.0], by_size])))

    def model_ms(self, spec: ModelSpec, lengths: Sequence[int], kind: LinearKind = "s8") -> float:
        """Return what a dense model of `spec`'s layers takes by this table."""
        total = self.base_ms
        for i, layer in enumerate(spec.layers):
            for block, size in (("attention", layer.num_heads), ("ffn", layer.intermediate_size)):
                total += self.ms(block, size, 1.0, kind) * block_share(spec, i, block, lengths)
        return total

    def scaled(self, factor: float) -> MeasuredTable:
        """All times times `factor`."""
        points = {key: (sizes, densities, ms * factor) for key, (sizes, densities, ms) in self.points.items()}
        return MeasuredTable(points, self.base_ms * factor)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for cache and report."""
        points = [
            {"block": b, "kind": k, "sizes": s.tolist(), "densities": d.tolist(), "ms": t.tolist()}
            for (b, k), (s, d, t) in self.points.items()
        ]
        return {"base_ms": self.base_ms, "points": points}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> MeasuredTable:
        """The inverse of `to_json`."""
        points = {
            (p["block"], p["kind"]): (np.array(p["sizes"]), np.array(p["densities"]), np.array(p["ms"]))
            for p in data["points"]
        }
        return MeasuredTable(points, data["base_ms"])


@dataclass(frozen=True)
class BlockTimes:
    """Say which times a table holds: of blocks of a model of `spec`'s sizes on texts of `lengths` tokens in one call.

    kinds     of weights
    threads   how many compute
    """

    spec: ModelSpec
    lengths: tuple[int, ...]
    kinds: tuple[LinearKind, ...]
    threads: int


def measure_table(
    wanted: BlockTimes, progress: Progress | None = None, fresh: bool = False, tokens: int | None = None
) -> MeasuredTable:
    """Measure a table, or read it from ~/.cache/approxrt (or $XDG_CACHE_HOME), where it is kept.

    fresh     measure again whatever the cache holds
    tokens    scale the times to so many, of a workload of which the lengths are typical
    """
    path = _cache_file(wanted)
    kept = None if fresh else read_cached(path)
    table = None
    if kept is not None:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # damaged: it is written anew
            table = MeasuredTable.from_json(json.loads(kept))
    if table is None:
        table = _measure(wanted, progress)
        write_cached(path, json.dumps(table.to_json()))
    return table if tokens is None else table.scaled(tokens / sum(wanted.lengths))


def typical_lengths(lengths: Sequence[int] | np.ndarray, tokens: int) -> list[int]:
    """Return about `tokens` tokens in texts whose lengths are spread as all of a task's are.

    Block times are kept by these: a run with another seed, which times another sample of the texts, finds them again.
    """
    quantiles = np.quantile(lengths, (np.arange(TYPICAL) + 0.5) / TYPICAL)
    rounded = [max(STEP, STEP * round(float(q) / STEP)) for q in quantiles]
    return rounded * max(1, round(tokens / sum(rounded)))


def block_share(spec: ModelSpec, layer: int, kind: str, lengths: Sequence[int]) -> float:
    """Share of a block's cost in the table that it really has: with first-token pooling the last one's is smaller.

    Its queries, output projection and FFN run for first tokens only; half of an attention's linears remain.
    """
    if spec.head.pooling != "cls" or layer != len(spec.layers) - 1:
        return 1.0
    first = len(lengths) / sum(lengths)
    return first if kind == "ffn" else 0.5 + 0.5 * first


def _runner(model: Memory, sequences: Sequence[Sequence[int] | np.ndarray], threads: int) -> Callable[[], None]:
    from approxrt.runtime.cpu.engine import CpuEngine, suitable_isa

    # What is planned with a table has tiles somewhere, and so runs whole at the level that suits them.
    engine = CpuEngine(model, threads, isa=suitable_isa(("bsr_s8",)))
    what = "logits" if model.spec.labels else "pooled"

    def run() -> None:
        engine.forward(list(sequences), None, what)

    return run


# -- the probes -------------------------------------------------------------------------------


def _measure(wanted: BlockTimes, progress: Progress | None) -> MeasuredTable:
    spec, kinds = wanted.spec, wanted.kinds
    heads, channels = max(l.num_heads for l in spec.layers), max(l.intermediate_size for l in spec.layers)
    sizes = {"attention": _sizes(heads, 1), "ffn": _sizes(channels, 16)}
    rng = np.random.default_rng(0)
    # Not 0, the probe's padding token, which some models refuse inside a text.
    sequences = [rng.integers(1, VOCABULARY, n) for n in wanted.lengths]
    jobs: list[tuple[str, int, LinearKind, float]] = [("none", 0, "s8", 1.0)]
    jobs += [
        (block, size, kind, density)
        for kind in kinds
        for block in ("attention", "ffn")
        for size in sizes[block]
        for density in GRID_DENSITIES
        if size
    ]
    found: dict[tuple[str, int, LinearKind, float], float] = {}
    for done, job in enumerate(jobs):
        block, size, kind, density = job
        probe = _probe(spec, block, size, Scheme(kind, density), rng)
        run = _runner(probe, sequences, wanted.threads)
        run()
        times = []
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            run()
            times.append((time.perf_counter() - begin) * 1e3)
        # The fastest: a probe is short, and whatever disturbs it only ever adds.
        found[job] = min(times)
        if progress:
            progress.count(done + 1, len(jobs), f"timing {block} {size} x {density} in {kind}")
    base = found[jobs[0]]
    points = {}
    for kind in kinds:
        for block in ("attention", "ffn"):
            rows = [[found[block, s, kind, d] - base for d in GRID_DENSITIES] for s in sizes[block] if s]
            table = np.maximum(np.array(rows) / PROBE_LAYERS, 1e-6)
            # More heads or tiles never cost less: what says so is noise.
            table = np.maximum.accumulate(np.maximum.accumulate(table, axis=0), axis=1)
            points[block, kind] = (np.array([s for s in sizes[block] if s]), np.array(GRID_DENSITIES), table)
    return MeasuredTable(points, base)


def _sizes(count: int, unit: int) -> list[int]:
    """About `GRID_SIZES` sizes up to `count`, multiples of `unit`."""
    steps = [round(count * i / GRID_SIZES / unit) * unit for i in range(1, GRID_SIZES)]
    return sorted({min(count, max(unit, s)) for s in steps} | {count})


def _probe(spec: ModelSpec, block: str, size: int, scheme: Scheme, rng: np.random.Generator) -> Memory:
    """A model of `PROBE_LAYERS` layers with one kind of block."""
    layer = dataclasses.replace(
        spec.layers[0],
        num_heads=size if block == "attention" else 0,
        head_dim=max(l.head_dim for l in spec.layers),
        intermediate_size=size if block == "ffn" else 0,
        query="f32",
        key="f32",
        value="f32",
        attention_output="f32",
        ffn_up="f32",
        ffn_down="f32",
    )
    plain = dataclasses.replace(
        spec,
        layers=(layer,) * PROBE_LAYERS,
        vocab_size=VOCABULARY,
        pad_token_id=0,
        embedding_kind="f32",
        projection_kind="f32",
        embedding_size=spec.hidden_size,
        # With first-token pooling, what follows the last attention would run for first tokens only.
        head=dataclasses.replace(spec.head, dense_features=None, pooling="mean"),
        labels=spec.labels[:1],
        task_type="regression" if spec.labels else "embedding",
    )
    kinds: dict[str, Any] = {}
    tensors: dict[str, np.ndarray] = {}
    first: dict[str, dict[str, np.ndarray]] = {}
    for name, linear in plain.linears():
        if name.startswith("head."):
            continue
        part = name.split(".", 2)[2]
        if part not in first:
            first[part] = random_linear(linear.out_features, linear.in_features, scheme, rng)
        kinds[name], arrays = scheme.stored, first[part]
        tensors |= {f"{name}.{key}": array for key, array in arrays.items()}
    quantised = plain.with_linear_kinds(kinds)
    for name, dtype, shape in quantised.dense_tensors():
        if name not in tensors:
            assert dtype == "F32", name
            tensors[name] = (rng.standard_normal(shape) * 0.1).astype(np.float32)
    return Memory(quantised, tensors)


# -- the cache --------------------------------------------------------------------------------


def _cache_file(wanted: BlockTimes) -> Path | None:
    from approxrt.runtime.cpu.engine import suitable_isa

    spec = wanted.spec
    layers = sorted({(l.num_heads, l.head_dim, l.intermediate_size) for l in spec.layers})
    key = {
        "version": __version__,
        "cpu": cpu_name(),
        "isa": suitable_isa(("bsr_s8",)),
        "threads": wanted.threads,
        "hidden": spec.hidden_size,
        "layers": layers,
        "activation": spec.activation,
        "lengths": list(map(int, wanted.lengths)),
        "kinds": list(wanted.kinds),
        "grid": [GRID_DENSITIES, GRID_SIZES, PROBE_LAYERS, 2],
    }
    if spec.relative_buckets:  # a bias costs time; keys of models without one stay as they are
        key["relative_buckets"] = spec.relative_buckets
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return cache_file(f"latency-{digest}.json")


def cpu_name() -> str:
    """The processor as it calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
