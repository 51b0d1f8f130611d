"""Decoders in a compression: their baseline, text that calibrates and validates, and artifacts built and measured.

A decoder that writes one token after the other reads every weight for each, so its time follows the bytes of its
weights. Perplexities are the engine's, of the artifact.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.memory import InMemory
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import write_artifact
from approxrt.compression.families.decoder_build import Own
from approxrt.compression.family import OWN_F32, Opened
from approxrt.compression.job import Job
from approxrt.compression.measure import baseline_of, candidate_of
from approxrt.compression.options import CompressOptions
from approxrt.compression.records import Baseline, Candidate, Clock, Origin, Preview, Provenance, about
from approxrt.models.decoder import DecoderCheckpoint, load_any_decoder
from approxrt.planning.decoder_options import HEAD
from approxrt.planning.plan import Cost
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.significance.decoder_latency import decode_run, steps_of
from approxrt.significance.workload import Run, Timing, take_turns
from approxrt.tasks.lm import engine_score, perplexity
from approxrt.tasks.text import SEQUENCE, split, text_file, token_ids

TIMING_SECONDS = 3.0  # of a candidate beside float32
REPORTED_TOKENS = 10_000  # of another text, for the report
# What the end of a run takes, of the time that checking a candidate took.
END_CHECKS = 1.2


@dataclass(frozen=True)
class DecoderInputs:
    """The checkpoint, and the user's text as its tokens: what calibrates and is learnt from, and what validates."""

    checkpoint: DecoderCheckpoint
    calibrating: list[int]
    validating: list[int]
    sequence: int


def read_inputs(model: str | os.PathLike[str], data: str | os.PathLike[str]) -> DecoderInputs:
    """Read the checkpoint and the text."""
    checkpoint = load_any_decoder(model, grouped=True)
    sequence = min(SEQUENCE, checkpoint.spec.max_positions)
    calibrating, validating = split(token_ids(checkpoint.tokenizer_json, text_file(data)), sequence)
    return DecoderInputs(checkpoint, calibrating, validating, sequence)


class DecoderFamily:
    """See the module's text and `Family`.

    cost      what a plan saves: "ms" or "bytes"
    allowed   nats a token that may be lost
    own       the checkpoint's own grids, where most of the weights in layers have some
    preview   a candidate whose head is previewed, and whose preview others take, too
    """

    rises = True
    task = "lm"
    seen: bool | None = None

    def __init__(self, job: Job, inputs: DecoderInputs) -> None:
        self.job, self.inputs = job, inputs
        self.cost: Cost = "bytes" if job.options.objective == ("size",) else "ms"
        self.allowed = math.log1p(job.options.max_drop)
        self.own = _own_grids(inputs.checkpoint, self.cost)
        self.preview: InMemory | None = None
        self.baseline_engine = DecoderEngine(InMemory(inputs.checkpoint.spec, inputs.checkpoint.tensors), job.threads)
        clock = job.work.load("clock", Clock) or Clock(0.0, 0.0)
        job.budget.resume(clock.seconds)
        self._checked(clock.check)

    @property
    def parameters(self) -> int:
        return int(self.inputs.checkpoint.source["parameters"])

    @property
    def source(self) -> Mapping[str, Any]:
        return self.inputs.checkpoint.source

    # -- the baseline ------------------------------------------------------------

    def baseline(self) -> Baseline:
        """See `Family`."""
        return baseline_of(self)

    def evaluate_baseline(self) -> dict[str, float]:
        """See `Family`."""
        return self.metrics(self.baseline_engine)

    def metrics(self, engine: DecoderEngine) -> dict[str, float]:
        """Return the perplexity of validation text."""
        # Windows that do not overlap: half the work of the ones of `eval`, and the same tokens for every candidate.
        sequence = self.inputs.sequence
        found = perplexity(engine_score(engine), self.inputs.validating, sequence, sequence)
        return {"perplexity": found["perplexity"]}

    def baseline_runs(self, names: tuple[str, ...] | None = None) -> dict[str, Run]:
        """See `Family`: the float32 model in our engine."""
        return {OWN_F32: decode_run(self.baseline_engine, self.inputs.validating)}

    def timed(self, runs: Mapping[str, Run]) -> dict[str, Timing]:
        """See `Family`: milliseconds a token, one after the other."""
        steps = steps_of(self.inputs.checkpoint.spec)
        return {name: timing.over(steps) for name, timing in take_turns(runs, TIMING_SECONDS, 3).items()}

    def fastest(self, times: Mapping[str, Timing]) -> str:
        """See `Family`."""
        return OWN_F32

    def teach(self, ids: list[int]) -> np.ndarray:
        """Return the float32 model's logits f32[tokens, vocab]."""
        return engine_score(self.baseline_engine)(ids, 0)

    # -- candidates -----------------------------------------------------------------

    @property
    def last_check(self) -> float:
        """Seconds that checking a candidate took, at most."""
        return self._check

    def build(self, built: InMemory, provenance: Provenance) -> Candidate:
        """Write, load and measure an artifact; note it as the next candidate."""
        job, begun = self.job, time.monotonic()
        built = self._previewed(built)
        index = len(job.work.candidates())
        job.say("checking a candidate")
        write_artifact(
            job.work.candidate_path(index),
            built.decoder_spec,
            built.tensors,
            self.inputs.checkpoint.tokenizer_json,
            {"approxrt": "candidate"},
            True,
        )
        candidate = candidate_of(self, index, provenance)
        job.work.add(candidate)
        job.log(
            f"candidate {index}: {describe(provenance)}: perplexity {candidate.metrics['perplexity']:.3f} "
            f"({100 * candidate.drop:+.2f} %), {candidate.speedup:.2f}x the tokens/s of float32, "
            f"{candidate.bytes / 1e6:.0f} MB"
        )
        self._checked(max(self._check, time.monotonic() - begun))
        job.save_clock(self._check)
        return candidate

    def open(self, artifact: Path) -> Opened:
        """See `Family`."""
        engine = DecoderEngine(read_artifact(artifact), self.job.threads)
        return Opened(self.metrics(engine), None, decode_run(engine, self.inputs.validating))

    def evaluate(self, artifact: Path, file: Path | None) -> dict[str, Any] | None:
        """See `Family`: perplexities of another text."""
        if file is None:
            return None
        ids = token_ids(self.inputs.checkpoint.tokenizer_json, file)[:REPORTED_TOKENS]
        engine, sequence = DecoderEngine(read_artifact(artifact), self.job.threads), self.inputs.sequence
        before, after = (
            perplexity(engine_score(e), ids, sequence, max(1, sequence // 2)) for e in (self.baseline_engine, engine)
        )
        return {
            "file": file.name,
            "examples": before["tokens"],
            "before": {"perplexity": before["perplexity"]},
            "after": {"perplexity": after["perplexity"]},
        }

    def notes(self, best: Candidate) -> list[str]:
        """See `Family`."""
        return self.job.notes.all

    # -- a previewed head ---------------------------------------------------------------

    def take_preview(self, artifact: Path) -> None:
        """Let later candidates, whose head is the same table, be previewed as this one is."""
        found = read_artifact(artifact)
        self.preview = InMemory(found.decoder_spec, found.tensors)

    def preview_facts(self) -> Preview | None:
        """Return what the previewed head costs, where there is one."""
        found = (c.provenance for c in self.job.work.candidates() if c.provenance.origin is Origin.PREVIEWED)
        return next((provenance.preview for provenance in found), None)

    def _previewed(self, built: InMemory) -> InMemory:
        """Return it with the preview, where the head still is the embedding table that it was fitted to."""
        spec = built.decoder_spec
        if self.preview is None or spec.head_preview is not None or not spec.tied_embeddings:
            return built
        names = [name for name in self.preview.tensors if name.startswith(("embeddings.word.", "head.preview."))]
        words = [name for name in names if name.startswith("embeddings.word.")]
        if any(not np.array_equal(built.tensors.get(name, ()), self.preview.tensors[name]) for name in words):
            return built
        tensors = dict(built.tensors) | {name: self.preview.tensors[name] for name in names}
        return InMemory(replace(spec, head_preview=self.preview.decoder_spec.head_preview), tensors)

    def _checked(self, seconds: float) -> None:
        self._check = seconds
        self.job.budget.reserve = END_CHECKS * seconds


def within_reach(options: CompressOptions) -> CompressOptions:
    """Return the options of a decoder; without a number: as far as max_drop allows."""
    return replace(
        options,
        speedup=options.speedup or (1.0 if options.objective == ("speed",) else None),
        shrink=options.shrink or (1.0 if options.objective == ("size",) else None),
    )


def describe(provenance: Provenance) -> str:
    """Return a plan in a line: how many linears of each kind, what was removed."""
    plan = about(provenance)["plan"]
    if isinstance(plan, str):
        return plan
    names = list(plan["kinds"].values())
    parts = [f"{names.count(kind)} {kind}" for kind in dict.fromkeys(names)]
    gone = [sum(not kept for kept in plan[part]) for part in ("heads", "units")]
    parts += [f"{count} {name} blocks removed" for count, name in zip(gone, ("attention", "FFN"), strict=True) if count]
    trained = f", {provenance.steps} steps of distillation" if provenance.steps else ""
    return ", ".join(parts) + trained


def _own_grids(checkpoint: DecoderCheckpoint, cost: Cost) -> Own | None:
    grouped, spec = checkpoint.grouped, checkpoint.spec
    sizes = {name: linear.out_features * linear.in_features for name, linear in spec.linears()}
    if 2 * sum(size for name, size in sizes.items() if name in grouped) < sum(sizes.values()):
        return None
    tied = spec.tied_embeddings
    head = {HEAD: grouped["embeddings.word"]} if tied and "embeddings.word" in grouped else {}
    return Own({**grouped, **head}, tied, cost == "ms")
