"""Measure the float32 model, and every built artifact beside it: metric, bytes and time are what is promised."""

from __future__ import annotations

from approxrt.compression.family import Family
from approxrt.compression.records import Baseline, Candidate, Provenance
from approxrt.quantization.build import folder_bytes
from approxrt.tasks.metrics import primary

ARTIFACT = "artifact"


def baseline_of(family: Family) -> Baseline:
    """Return metrics and times of the float32 model; measured once in a run."""
    work = family.job.work
    known = work.load("baseline", Baseline)
    if known is not None:
        return known
    family.job.progress(0.0, "measuring the float32 model")
    metrics = family.evaluate_baseline()
    times = family.timed(family.baseline_runs())
    fastest = family.fastest(times)
    found = Baseline(metrics, times, fastest, times[fastest].median_ms, 4 * family.parameters, family.seen)
    work.save("baseline", found)
    return found


def candidate_of(family: Family, index: int, provenance: Provenance) -> Candidate:
    """Measure the artifact that was built at the work folder's place for candidate `index`."""
    baseline, path = family.baseline(), family.job.work.candidate_path(index)
    opened = family.open(path)
    times = family.timed({**family.baseline_runs((baseline.fastest,)), ARTIFACT: opened.run})
    size = folder_bytes(path)
    return Candidate(
        path=str(path),
        metrics=opened.metrics,
        drop=_drop(primary(baseline.metrics), primary(opened.metrics), family.rises),
        flip_rate=opened.flip_rate,
        bytes=size,
        shrink=baseline.f32_bytes / size,
        ms=times[ARTIFACT].median_ms,
        speedup=times[baseline.fastest].median_ms / times[ARTIFACT].median_ms,
        times=times,
        provenance=provenance,
    )


def _drop(before: float, after: float, rises: bool) -> float:
    """The relative loss; of a metric that rises as models get worse, its relative rise."""
    if rises:
        return after / before - 1
    return (before - after) / abs(before) if before else 0.0
