"""Times engines in turns on the same inputs.

Absolute times drift with the machine's temper, so engines take turns: every round gives
each of them one block of repetitions. A block opens with a pause, in which the engine before
it can put its spinning threads to sleep, and with untimed runs that bring its own data back
into the caches. What is reported are quantiles over all repetitions and ratios of medians
within one run.
"""

from __future__ import annotations

import contextlib
import gc
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.benchmark.limits import limit_ms, peak_gmacs, products
from approxrt.benchmark.ratios import ratios
from approxrt.benchmark.results import Contestant, Result, Row
from approxrt.benchmark.workloads import (
    BEST_BATCH,
    OURS,
    Workload,
    best_batch_workload,
    data_workloads,
    full_workloads,
)
from approxrt.errors import InputError
from approxrt.models.sample_texts import SAMPLE_TEXTS
from approxrt.peers.engines import Peer, family_module, missing_packages
from approxrt.peers.source import Source
from approxrt.runtime.inputs import padding_in_texts

if TYPE_CHECKING:
    from approxrt.peers.approxrt_engine import ApproxrtEngine

BLOCK_S = 0.05
SETTLE_S = 0.02
WARM_S = 0.005
MIN_ROUNDS = 3
PROBE_TIMEOUT_S = 300

Log = Callable[[str], None]


def measure(
    artifacts: Sequence[Path],
    peers: Sequence[Peer] = (),
    checkpoint: Path | None = None,
    batches: Sequence[int] = (1, 8, 32),
    seqs: Sequence[int] = (16, 32, 128),
    texts: Sequence[list[int]] | None = None,
    threads: int | None = None,
    budget: float = 60.0,
    pairs: Sequence[tuple[int, int]] | None = None,
    calibration: Sequence[str] = SAMPLE_TEXTS,
    log: Log = lambda message: None,
) -> Result:
    """Run the benchmark.

    artifacts    ours; the first is the one that others are compared with, but every ratio is given
    peers        whom to compare with (`engines.parse_peers`), made from `checkpoint`
    batches, seqs   workloads: every pair, full sequences
    pairs        workloads one by one instead: (sequences, tokens of each)
    texts        token ids of real texts instead: one workload per batch size, lengths as they come;
                 peers get length-sorted, padded batches, ours gets the packed run; then all engines
                 once more, each at the batch size that was its best
    budget       seconds of timing in all, shared equally among workloads

    A peer that cannot be built or run is left out and named in `left_out`; ours raises.
    """
    from approxrt.runtime.threads import resolve_threads

    count = resolve_threads(threads)
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="approxrt-bench-") as folder:
        contestants = [_open_ours(path, count, artifacts) for path in artifacts]
        if peers:
            if checkpoint is None:
                raise InputError("peers are built from the original checkpoint: give its folder")
            source = Source(checkpoint, tuple(calibration))
            contestants += _open_peers(peers, source, Path(folder), count, left_out, log)
            _check_answers(contestants, source, left_out, log)
        for contestant in contestants:
            log(f"{contestant.name}: load time and memory in a fresh process")
            contestant.load = _probe(contestant, count)
        if texts is None:
            pairs = pairs or [(batch, seq) for batch in batches for seq in seqs]
            workloads = full_workloads(pairs, _vocabulary(contestants), _paddings(contestants))
        else:
            workloads = data_workloads(texts, batches)
        # Each engine's best batch size is known only after the others: one more turn of all, side by side.
        again = texts is not None and len(workloads) > 1
        share = budget / (len(workloads) + again)
        rows: list[Row] = []
        for workload in workloads:
            log(f"timing {workload.name}")
            rows += _time_workload(workload, contestants, share, left_out, count)
        if texts is not None and again:
            log(f"timing {BEST_BATCH}")
            timed = _best_batches(rows)
            able = [contestant for contestant in contestants if contestant.name in timed]
            rows += _time_workload(best_batch_workload(texts, timed), able, share, left_out, count)
    engines = [
        {
            "name": c.name,
            "family": c.family,
            "variant": c.variant,
            **c.load,
            "max_deviation": c.max_deviation,
            "agreement": c.agreement,
            **c.info,
        }
        for c in contestants
    ]
    return Result(engines, rows, ratios(rows, [c.name for c in contestants if c.family == OURS]), left_out, count)


# -- building -----------------------------------------------------------------------------------


def _open_ours(path: Path, threads: int, all_paths: Sequence[Path]) -> Contestant:
    engine: ApproxrtEngine = family_module(OURS).open_engine(path.name, path, threads)
    name = OURS if len(all_paths) == 1 else f"{OURS}:{path.name}"
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    info = {"path": str(path), "size_mb": size / 1e6, "model": _plain(engine.model.info)}
    return Contestant(name, OURS, path.name, path, engine, info=info)


def _open_peers(
    peers: Sequence[Peer], source: Source, work: Path, threads: int, left_out: dict[str, str], log: Log
) -> list[Contestant]:
    contestants = []
    for peer in peers:
        missing = missing_packages(peer.family)
        if missing:
            left_out[peer.family] = f"not installed: {', '.join(missing)} (pip install 'approxrt[bench]')"
            continue
        log(f"{peer.name}: building from {source.checkpoint}")
        try:
            module = family_module(peer.family)
            # Exporters and quantisers talk on stdout, which belongs to the command's answer.
            with contextlib.redirect_stdout(sys.stderr):
                path = module.prepare(peer.variant, source, work)
                engine = module.open_engine(peer.variant, path, threads)
            info = {"size_mb": _size_mb(path)}
            contestants.append(Contestant(peer.name, peer.family, peer.variant, path, engine, info=info))
        except Exception as error:
            left_out[peer.name] = _reason(error)
    return contestants


def _check_answers(contestants: list[Contestant], source: Source, left_out: dict[str, str], log: Log) -> None:
    """Each engine against torch's f32 on the source's texts: the largest difference, and equal winners."""
    log("comparing answers with PyTorch's f32")
    for contestant in list(contestants):
        try:
            answers = [contestant.engine.run(np.array([ids]))[0] for ids in source.sample_ids]
        except Exception as error:
            if contestant.family == OURS:
                raise
            left_out[contestant.name] = _reason(error)
            contestants.remove(contestant)
            continue
        pairs = list(zip(answers, source.reference, strict=True))
        if any(a.shape != r.shape for a, r in pairs):
            raise InputError(
                f"{contestant.name} answers with {answers[0].shape[-1]} values a text and the checkpoint with "
                f"{source.reference[0].shape[-1]}: --checkpoint must be what the artifact was made from"
            )
        contestant.max_deviation = max(float(np.abs(a - r).max()) for a, r in pairs)
        if answers[0].shape[-1] > 1:
            contestant.agreement = float(np.mean([int(a.argmax()) == int(r.argmax()) for a, r in pairs]))


def _probe(contestant: Contestant, threads: int) -> dict[str, float]:
    """Load time and resident memory in a fresh process; empty when that fails."""
    command = [sys.executable, "-m", "approxrt.benchmark.probe"]
    command += [contestant.family, contestant.variant, str(contestant.path), str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True)
        values: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
        return values
    except (subprocess.SubprocessError, ValueError, IndexError):
        return {}


# -- workloads ----------------------------------------------------------------------------------


def _vocabulary(contestants: Sequence[Contestant]) -> int:
    sizes = [c.engine.model.spec.vocab_size for c in contestants if hasattr(c.engine, "model")]
    return min(sizes) if sizes else 1000


def _paddings(contestants: Sequence[Contestant]) -> set[int]:
    specs = [c.engine.model.spec for c in contestants if hasattr(c.engine, "model")]
    return {padding for spec in specs if (padding := padding_in_texts(spec)) is not None}


def _best_batches(rows: Sequence[Row]) -> dict[str, int]:
    """The batch size of each engine's least median."""
    best: dict[str, Row] = {}
    for row in rows:
        if row.engine not in best or row.median_ms < best[row.engine].median_ms:
            best[row.engine] = row
    return {name: row.batch for name, row in best.items()}


# -- timing -------------------------------------------------------------------------------------


def _time_workload(
    workload: Workload, contestants: Sequence[Contestant], budget: float, left_out: dict[str, str], threads: int
) -> list[Row]:
    peaks = peak_gmacs(threads, _isa(contestants))
    calls: dict[str, Callable[[], object]] = {}
    repetitions: dict[str, int] = {}
    for contestant in contestants:
        call = workload.calls(contestant)
        try:
            # Compilers and allocators settle in the first runs; the last of them sizes the block.
            for _ in range(3):
                begin = time.perf_counter()
                call()
                once = time.perf_counter() - begin
        except Exception as error:
            if contestant.family == OURS:
                raise
            left_out[f"{contestant.name} at {workload.name}"] = _reason(error)
            continue
        calls[contestant.name] = call
        repetitions[contestant.name] = max(1, min(200, int(BLOCK_S / max(once, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        end, rounds = time.perf_counter() + budget, 0
        while rounds < MIN_ROUNDS or time.perf_counter() < end:
            for name, call in calls.items():
                time.sleep(SETTLE_S)
                warm = time.perf_counter() + WARM_S
                call()
                while time.perf_counter() < warm:
                    call()
                for _ in range(repetitions[name]):
                    begin = time.perf_counter()
                    call()
                    times[name].append(time.perf_counter() - begin)
            rounds += 1
    finally:
        gc.enable()
    rows = [_row(name, workload, np.array(values) * 1e3) for name, values in times.items()]
    after = peak_gmacs(threads, _isa(contestants))
    peaks = {kind: max(peaks[kind], after[kind]) for kind in peaks}
    ours = [contestant for contestant in contestants if contestant.family == OURS]
    for row in rows:
        for contestant in ours:
            median = next(other.median_ms for other in rows if other.engine == contestant.name)
            row.speedup_of[contestant.name] = row.median_ms / median
            if contestant.name == row.engine:
                row.limit_ms, row.peak_gmacs = limit_ms(_products(contestant, workload.lengths), peaks), peaks
    return rows


def _row(name: str, workload: Workload, ms: np.ndarray) -> Row:
    p20, median, p80 = (float(v) for v in np.percentile(ms, (20, 50, 80)))
    rate = len(workload.lengths) / median * 1e3
    return Row(name, workload.name, workload.batch_of(name), workload.seq, len(ms), median, p20, p80, rate)


def _isa(contestants: Sequence[Contestant]) -> str:
    return next((str(c.info["model"]["isa"]) for c in contestants if c.family == OURS), "")


def _products(contestant: Contestant, lengths: Sequence[int]) -> dict[str, float]:
    engine: Any = contestant.engine
    spec = engine.model.spec
    widths = [layer.num_heads * layer.head_dim for layer in spec.layers]
    return products(contestant.info["model"], spec.head.pooling == "cls", widths, lengths)


def _size_mb(path: Path) -> float | None:
    """MB of a peer's model: the file, with OpenVINO's weights beside it, or a checkpoint's weights."""
    files = [path, path.with_suffix(".bin")] if path.is_file() else sorted(path.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6 or None


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {text[0][:300] if text else ''} ({Path(where.filename).name}:{where.lineno})"
