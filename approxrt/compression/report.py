"""Report what a compression found: the candidates, the one that was chosen, what was promised and what falls short."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from approxrt.compression.family import Family
from approxrt.compression.options import CompressOptions
from approxrt.compression.records import Candidate
from approxrt.significance.latency import cpu_name
from approxrt.version import __version__

SLACK = 0.97  # a measured time within 3 % of what was asked is that time: the machine's own drift is larger


@dataclass(frozen=True)
class Report:
    """The result of `approxrt.compress`.

    artifact     folder that was written
    met          every constraint holds, as measured on the artifact
    shortfalls   one sentence for each that does not, with both numbers
    dense        the float32 checkpoint: metrics on validation (and on dev), fastest engine and its time, bytes
    chosen       the candidate at `artifact`; `pareto` has the others that nothing beats
    dev          metrics and flip rate of the dense model and of the artifact on dev: reported, never used
    finished     false where a larger budget has something left to try, from what `OUT.work` holds
    """

    artifact: str
    task: str
    met: bool
    shortfalls: tuple[str, ...]
    options: dict[str, Any]
    dense: dict[str, Any]
    chosen: dict[str, Any]
    pareto: tuple[dict[str, Any], ...]
    dev: dict[str, Any] | None
    notes: tuple[str, ...]
    seconds: float
    finished: bool = True

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json` and the card."""
        return asdict(self)


def report_of(
    family: Family, candidates: Sequence[Candidate], best: Candidate, dev: dict[str, Any] | None, seconds: float
) -> Report:
    """Return what a compression found, the constraints checked.

    Validation is no test of a checkpoint that has learnt from it. The choice is made; what is promised is checked on
    the only data that neither model has seen, where there is some with labels.
    """
    job, baseline, notes = family.job, family.baseline(), family.notes(best)
    metric = next(iter(baseline.metrics))
    missed = shortfalls(best, job.options, metric)
    if baseline.seen and dev is not None:
        before, after = dev["before"][metric], dev["after"][metric]
        drop = (before - after) / abs(before) if before else 0.0
        missed = shortfalls(dataclasses.replace(best, drop=drop), job.options, metric, dev["file"])
        notes.append(f"the limit on the drop was checked on {dev['file']}, after everything was decided")
    return Report(
        artifact=str(job.out),
        task=family.task,
        met=not missed,
        shortfalls=tuple(missed),
        options=job.options.identity() | {"budget": job.options.budget, "threads": job.threads},
        dense=baseline.to_report(),
        chosen=best.to_report() | {"path": str(job.out)},
        pareto=tuple(candidate.to_report() for candidate in pareto(candidates)),
        dev=dev,
        notes=tuple(notes),
        seconds=round(seconds, 1),
        finished=job.work.finished,
    )


def artifact_card(report: Report, source: Mapping[str, Any], threads: int) -> dict[str, Any]:
    """Return the artifact's card.json: the checkpoint's `source`, the machine that timed it, and what was found."""
    chosen, dense = report.chosen, report.dense
    return {
        "approxrt_version": __version__,
        "task": report.task,
        "accuracy": {
            "validation": {"before": dense["metrics"], "after": chosen["metrics"]},
            "dev": report.dev,
            "flip_rate": chosen["flip_rate"],
        },
        "latency": {
            "ms": chosen["ms"],
            "float32_ms": dense["ms"],
            "float32_engine": dense["fastest"],
            "speedup": chosen["speedup"],
            "workload": chosen["about"].get("workload"),
        },
        "source": dict(source),
        "method": {"recipe": report.options["recipe"], "plan": chosen["about"], "options": report.options},
        "sizes": {
            "checkpoint_weight_bytes": source["weight_bytes"],
            "f32_weight_bytes": dense["f32_bytes"],
            "artifact_weight_bytes": chosen["bytes"],
        },
        "machine": {"cpu": cpu_name(), "threads": threads},
    }


def shortfalls(candidate: Candidate, options: CompressOptions, metric: str, where: str = "validation") -> list[str]:
    """Return what a candidate misses, in words; empty when it meets every constraint."""
    out = []
    wanted = options.wanted_speedup
    if wanted is not None and candidate.speedup < wanted * SLACK:
        out.append(
            f"{candidate.speedup:.2f}x faster than the fastest float32 engine; {wanted:g}x was asked "
            f"({100 * (1 - candidate.speedup / wanted):.0f} % short)"
        )
    shrink = options.wanted_shrink
    if shrink is not None and candidate.shrink < shrink:
        out.append(f"{candidate.shrink:.2f}x smaller than float32; {shrink:g}x was asked")
    limit = 0.0 if "accuracy" in options.objective else options.max_drop
    if candidate.drop > limit:
        out.append(
            f"{metric} on {where} {'rises' if metric == 'perplexity' else 'falls'} by {100 * candidate.drop:.2f} % of "
            "the dense model's; "
            f"{100 * limit:.2f} % was allowed"
        )
    return out


def violation(candidate: Candidate, options: CompressOptions) -> float:
    """Return how far a candidate is from what was asked: 0 when it is met, else the sum of relative misses."""
    total = 0.0
    if options.wanted_speedup is not None:
        total += max(0.0, 1 - candidate.speedup / (options.wanted_speedup * SLACK))
    if options.wanted_shrink is not None:
        total += max(0.0, 1 - candidate.shrink / options.wanted_shrink)
    limit = 0.0 if "accuracy" in options.objective else options.max_drop
    # A share of the metric weighs like ten of time: nobody trades a point of accuracy for a percent of speed.
    return total + 10 * max(0.0, candidate.drop - limit)


def choose(candidates: Sequence[Candidate], options: CompressOptions) -> Candidate:
    """The best: of those that meet all, the one that exceeds the objective most; else the nearest miss."""

    def order(candidate: Candidate) -> tuple[float, float]:
        miss = violation(candidate, options)
        if miss > 0:
            return (miss, candidate.drop)
        gain = {"speed": candidate.speedup, "size": candidate.shrink, "accuracy": -candidate.drop}
        return (0.0, -gain[options.objective[0]])

    return min(candidates, key=order)


def pareto(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that no other beats in drop, speed and size alike."""

    def beats(a: Candidate, b: Candidate) -> bool:
        ours, theirs = (a.drop, -a.speedup, a.bytes), (b.drop, -b.speedup, b.bytes)
        return all(x <= y for x, y in zip(ours, theirs, strict=True)) and ours != theirs

    return [c for c in candidates if not any(beats(other, c) for other in candidates)]
