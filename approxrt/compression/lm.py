"""`compress` for decoders: blocks, heads, units, tiles and bits by what each costs and brings, then distillation.

A decoder that writes one token after the other reads every weight for each, so its time follows the bytes of its
weights. What a part may become is in `approxrt.planning.decoder_options`, with its loss and its measured time; a plan
takes what brings most time for a loss,

  - with `speedup` (or `shrink`), just enough for it;
  - else as much as `max_drop` allows, the relative increase of perplexity on validation text.

Plans are built, measured, and planned again with what was learnt of the predictions. Where a plan costs more than is
allowed, or a bolder one may come within it, the student learns from the dense model for the time that is left
(`approxrt.training.decoder_recovery`). Perplexities are the engine's, of the artifact.

Every step ends with a candidate's artifact in `OUT.work`, the first of them after a minute: whatever happens later, the
best so far is there. The budget bounds every step; an interrupted run goes on from its candidates and its training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from approxrt.artifact.memory import InMemory
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.writer import write_artifact
from approxrt.compression.lm_build import Own, untied
from approxrt.compression.lm_search import BudgetSpent, Search
from approxrt.compression.lm_train import starting_state, train
from approxrt.compression.options import CompressOptions
from approxrt.compression.state import Candidate, Work
from approxrt.errors import InputError
from approxrt.models.decoder import load_any_decoder
from approxrt.planning.decoder_options import HEAD
from approxrt.quantization.build import folder_bytes
from approxrt.quantization.rotation import can_rotate, rotate
from approxrt.quantization.rtn import quantize_model
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.threads import resolve_threads
from approxrt.significance.decoder_latency import decode_run, steps_of
from approxrt.significance.latency import cpu_name
from approxrt.significance.workload import take_turns
from approxrt.tasks.lm import engine_score, perplexity
from approxrt.tasks.text import SEQUENCE, split, text_file, token_ids

Progress = Callable[[float, str], None]

OWN_F32 = "approxrt-f32"
AS_IN_THE_FILE, PREVIEWED = "as in the file", "as in the file, the head previewed"
# Of the allowed increase, what a head's preview may cost on text like that it is fitted to, and the most of it in nats;
# on other text it is up to twice as much. The head is a third of what a token reads.
PREVIEW_SHARE, PREVIEW_KL = 0.3, 0.01
# Shares of the budget that steps may take at most, where they have a choice.
SHARES = {"statistics": 0.12, "removal": 0.08, "rounding": 0.12}
TIMING_SECONDS = 3.0  # of a candidate beside float32


class LmCompression:
    """One compression of a decoder; see the module's text."""

    def __init__(
        self,
        model: Any,
        data: Any,
        out: Path,
        options: CompressOptions,
        progress: Progress | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.options = options
        self.progress, self.log = progress or (lambda share, text: None), log or (lambda text: None)
        self.started = time.monotonic()
        self.threads = resolve_threads(options.threads)
        self.checkpoint = load_any_decoder(model, grouped=True)
        self.spec, self.tensors = self.checkpoint.spec, dict(self.checkpoint.tensors)
        self.sequence = min(SEQUENCE, self.spec.max_positions)
        ids = token_ids(self.checkpoint.tokenizer_json, text_file(data))
        self.calibrating, self.validating = split(ids, self.sequence)
        identity = options.identity() | {
            "task": "lm",
            "checkpoint": self.checkpoint.source["name"],
            "tokens": [len(self.calibrating), len(self.validating)],
        }
        self.work = Work(out, identity)
        self.notes: list[str] = list(self.work.read("notes") or [])
        clock = self.work.read("clock") or {"seconds": 0.0, "check": 0.0}
        self.spent = float(clock["seconds"])
        self.cost = "bytes" if options.objective == ("size",) else "seconds"
        self.allowed = math.log1p(options.max_drop)
        self.own = self._own()
        self.preview: InMemory | None = None  # whose tensors of a preview others take, too
        self.dense_engine = DecoderEngine(InMemory(self.spec, self.tensors), self.threads)
        self.last_check = float(clock["check"])  # seconds that checking a candidate took, at most

    # -- time -------------------------------------------------------------------

    def elapsed(self) -> float:
        """Seconds that the run has taken, those before an interrupt included."""
        return self.spent + time.monotonic() - self.started

    def left(self) -> float:
        """Seconds of the budget, less what the end takes."""
        return self.options.budget - self.elapsed() - 1.2 * self.last_check

    def say(self, text: str) -> None:
        """What is going on, with the time left."""
        left = max(0.0, self.options.budget - self.elapsed())
        self.progress(min(1.0, self.elapsed() / self.options.budget), f"{text} (at most {left / 60:.0f} min left)")

    def tick(self, text: str) -> None:
        """`say`, amid a step that may be left. Raises BudgetSpent."""
        if self.elapsed() > self.options.budget:
            raise BudgetSpent
        self.say(text)

    def within_share(self, step: str) -> Callable[[], bool]:
        """A function that is true once the step's share of the budget is spent."""
        begun, share = self.elapsed(), SHARES[step] * self.options.budget
        return lambda: self.elapsed() - begun > share or self.left() < 0

    # -- the dense model ------------------------------------------------------------

    def baseline(self) -> dict[str, Any]:
        """Perplexity and time of the float32 model in our engine; measured once."""
        known = self.work.read("baseline")
        if known is not None:
            return dict(known)
        self.say("measuring the dense model")
        metrics = self.metrics(self.dense_engine)
        times = self._timed({OWN_F32: self.dense_engine})
        found = {
            "metrics": metrics,
            "times": times,
            "fastest": OWN_F32,
            "ms": times[OWN_F32]["median_ms"],
            "f32_bytes": 4 * self.checkpoint.source["parameters"],
        }
        self.work.write("baseline", found)
        self.log(f"float32: perplexity {metrics['perplexity']:.3f}, {1e3 / found['ms']:.1f} tokens/s")
        return found

    def metrics(self, engine: DecoderEngine) -> dict[str, float]:
        # Windows that do not overlap: half the work of the ones of `eval`, and the same tokens for every candidate.
        found = perplexity(engine_score(engine), self.validating, self.sequence, self.sequence)
        return {"perplexity": found["perplexity"]}

    def _timed(self, engines: dict[str, DecoderEngine]) -> dict[str, dict[str, float]]:
        """Milliseconds a token, one after the other, of engines in turns."""
        times = take_turns(
            {name: decode_run(engine, self.validating) for name, engine in engines.items()}, TIMING_SECONDS, 3
        )
        steps = steps_of(self.spec)
        return {
            name: {key: value / steps if key.endswith("_ms") else value for key, value in time.items()}
            for name, time in times.items()
        }

    # -- the run -------------------------------------------------------------------

    def run(self) -> list[Candidate]:
        """Candidates, in the order in which they were made; at least one."""
        if self.work.read("done") is not None and (candidates := self.work.candidates()):
            return candidates
        with _torch_threads(self.threads):
            self.baseline()
            spec, tensors = self.spec, self.tensors
            if self.own is not None:
                # What a rotation and rounding make of a file with grids of its own cannot be closer to it than those.
                if not self.work.candidates():
                    self.say("as in the file")
                    kept = InMemory(*quantize_model(spec, tensors, 5, grouped=self.checkpoint.grouped))
                    self.add(kept, {"plan": AS_IN_THE_FILE})
                self._preview_head()
                spec, tensors = untied(spec, tensors)
            else:
                if can_rotate(spec):
                    self.say("rotating")
                    spec, tensors = rotate(spec, tensors)
                else:
                    self.note("layer norms: activations are not rotated, so their outliers cost some accuracy")
                if not self.work.candidates():
                    self.say("int8")
                    self.add(InMemory(*quantize_model(spec, tensors, 8)), {"plan": "int8, rounded to nearest"})
            try:
                self._improve(spec, tensors)
                self.work.write("done", True)
            except BudgetSpent:
                self.save_clock()
                self.note("the budget ended before the search did; the same command with more of it goes on", False)
        return self.work.candidates()

    @property
    def finished(self) -> bool:
        """Whether more budget would change nothing."""
        return self.work.read("done") is not None

    def _own(self) -> Own | None:
        """The checkpoint's own grids, where most of the weights in layers have some."""
        grouped = self.checkpoint.grouped
        sizes = {name: linear.out_features * linear.in_features for name, linear in self.spec.linears()}
        if 2 * sum(size for name, size in sizes.items() if name in grouped) < sum(sizes.values()):
            return None
        tied = self.spec.tied_embeddings
        head = {HEAD: grouped["embeddings.word"]} if tied and "embeddings.word" in grouped else {}
        return Own({**grouped, **head}, tied, self.cost == "seconds")

    def _preview_head(self) -> None:
        """A candidate whose head is previewed, and what the others' heads are previewed with."""
        from approxrt.quantization.low_rank_head import with_preview

        if self.cost != "seconds":
            return
        done = next((c for c in self.work.candidates() if c.about["plan"] == PREVIEWED), None)
        if done is not None:
            artifact = read_artifact(Path(done.path))
            self.preview = InMemory(artifact.decoder_spec, artifact.tensors)
            return
        self.say("fitting a preview of the head")
        try:
            most = min(PREVIEW_KL, PREVIEW_SHARE * self.allowed)
            kept = read_artifact(Path(self.work.candidates()[0].path))
            spec, tensors, found = with_preview(kept, self.calibrating, most, self.threads)
        except InputError as error:
            self.note(f"the head is not previewed: {error}")
            return
        about = {
            "kl": found.kl,
            "rows": found.rows,
            "bytes": found.bytes,
            "cost": found.cost,
            "agreement": found.agreement,
        }
        built = InMemory(spec, tensors)
        self.add(built, {"plan": PREVIEWED, "preview": about})
        self.preview = built

    def preview_cost(self) -> tuple[float, float] | None:
        """(nats a token, bytes of a stream that takes as long as reading it) of the previewed head."""
        about = next((c.about["preview"] for c in self.work.candidates() if c.about["plan"] == PREVIEWED), None)
        return None if about is None else (about["kl"], about["cost"])

    def _previewed(self, built: InMemory) -> InMemory:
        """With the preview, where the head still is the word table that it was fitted to."""
        spec = built.decoder_spec
        if self.preview is None or spec.head_preview is not None or not spec.tied_embeddings:
            return built
        names = [name for name in self.preview.tensors if name.startswith(("embeddings.word.", "head.preview."))]
        words = [name for name in names if name.startswith("embeddings.word.")]
        if any(not np.array_equal(built.tensors.get(name, ()), self.preview.tensors[name]) for name in words):
            return built
        tensors = dict(built.tensors) | {name: self.preview.tensors[name] for name in names}
        return InMemory(replace(spec, head_preview=self.preview.decoder_spec.head_preview), tensors)

    def _improve(self, spec: DecoderSpec, tensors: dict[str, np.ndarray]) -> None:
        state = self.work.load_state()
        if state is None:
            if self.left() <= 0:
                raise BudgetSpent
            found = Search(self, spec, tensors).run()
            if found is not None:
                self.say("preparing distillation")
                state = starting_state(*found)
                self.work.save_state(state)
                self.save_clock()
        if state is not None:
            train(self, spec, tensors, state)

    def note(self, text: str, lasting: bool = True) -> None:
        """Something for the log now and for the report: of a run that goes on after this one, too, if it is lasting."""
        self.log(text)
        if text in self.notes:
            return
        self.notes.append(text)
        if lasting:
            self.work.write("notes", [*(self.work.read("notes") or []), text])

    def teach(self, ids: list[int]) -> np.ndarray:
        """The dense model's logits f32[tokens, vocab]."""
        return engine_score(self.dense_engine)(ids, 0)

    # -- candidates -----------------------------------------------------------------

    def add(self, built: InMemory, about: dict[str, Any]) -> Candidate:
        """Write, load and measure an artifact; note it as the next candidate."""
        begun = time.monotonic()
        built = self._previewed(built)
        baseline, index = self.baseline(), len(self.work.candidates())
        path = self.work.candidate_path(index)
        self.say("checking a candidate")
        write_artifact(
            path, built.decoder_spec, built.tensors, self.checkpoint.tokenizer_json, {"approxrt": "candidate"}, True
        )
        engine = DecoderEngine(read_artifact(path), self.threads)
        metrics = self.metrics(engine)
        times, size = self._timed({OWN_F32: self.dense_engine, "artifact": engine}), folder_bytes(path)
        candidate = Candidate(
            path=str(path),
            metrics=metrics,
            drop=metrics["perplexity"] / baseline["metrics"]["perplexity"] - 1,
            flip_rate=None,
            bytes=size,
            shrink=baseline["f32_bytes"] / size,
            ms=times["artifact"]["median_ms"],
            speedup=times[OWN_F32]["median_ms"] / times["artifact"]["median_ms"],
            times=times,
            about=about,
        )
        self.work.add(candidate)
        self.log(
            f"candidate {index}: {describe(about)}: perplexity {metrics['perplexity']:.3f} "
            f"({100 * candidate.drop:+.2f} %), {candidate.speedup:.2f}x the tokens/s of float32, {size / 1e6:.0f} MB"
        )
        self.last_check = max(self.last_check, time.monotonic() - begun)
        self.save_clock()
        return candidate

    def save_clock(self) -> None:
        self.work.write("clock", {"seconds": self.elapsed(), "check": self.last_check})

    def evaluate(self, artifact: Path, file: Path | None) -> dict[str, Any] | None:
        """Perplexity of the dense model and of an artifact on another text, for the report."""
        if file is None:
            return None
        ids = token_ids(self.checkpoint.tokenizer_json, file)[:10_000]
        engine = DecoderEngine(read_artifact(artifact), self.threads)
        before, after = (
            perplexity(engine_score(e), ids, self.sequence, max(1, self.sequence // 2))
            for e in (self.dense_engine, engine)
        )
        return {
            "file": file.name,
            "examples": before["tokens"],
            "before": {"perplexity": before["perplexity"]},
            "after": {"perplexity": after["perplexity"]},
        }

    def machine(self) -> dict[str, Any]:
        """For the card."""
        return {"cpu": cpu_name(), "threads": self.threads}


def describe(about: dict[str, Any]) -> str:
    """A plan in a line: how many linears of each kind, what was removed."""
    plan = about["plan"]
    if isinstance(plan, str):
        return plan
    names = list(plan["kinds"].values())
    parts = [f"{names.count(kind)} {kind}" for kind in dict.fromkeys(names)]
    gone = [sum(not kept for kept in plan[part]) for part in ("heads", "units")]
    parts += [f"{count} {name} blocks removed" for count, name in zip(gone, ("attention", "FFN"), strict=True) if count]
    trained = f", {about['trained']} steps of distillation" if about.get("trained") else ""
    return ", ".join(parts) + trained


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
