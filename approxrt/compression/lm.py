"""`compress` for decoders: blocks, heads, units, tiles and bits by what each costs and brings, then distillation.

A decoder that writes one token after the other reads every weight for each, so its time follows the bytes of its
weights. What a part may become is in `approxrt.analysis.decoder_options`, with its loss and its measured time; a plan
takes what brings most time for a loss,

  - with `speedup` (or `shrink`), just enough for it;
  - else as much as `max_drop` allows, the relative increase of perplexity on validation text.

Plans are built, measured, and planned again with what was learnt of the predictions. Where a plan costs more than is
allowed, or a bolder one may come within it, the student learns from the dense model for the time that is left
(`approxrt.approx.decoder_recover`). Perplexities are the engine's, of the artifact.

Every step ends with a candidate's artifact in `OUT.work`, the first of them after a minute: whatever happens later, the
best so far is there. The budget bounds every step; an interrupted run goes on from its candidates and its training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from approxrt.analysis.decoder_latency import DecoderLatency, InMemory, decode_run, measure_latency, steps_of
from approxrt.analysis.decoder_options import KINDS, Choices, Kind, Plan, block_options, with_measured_blocks
from approxrt.analysis.decoder_removal import DecoderElement, measure_removals
from approxrt.analysis.latency import cpu_name
from approxrt.analysis.workload import take_turns
from approxrt.approx.build import folder_bytes
from approxrt.approx.decoder_recover import DecoderRecovery, DecoderRecoveryOptions, on_grid
from approxrt.approx.decoder_round import calibration, statistics
from approxrt.approx.quantize import quantize_model
from approxrt.approx.rotate import can_rotate, rotate
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import write_artifact
from approxrt.compression.lm_build import (
    Builder,
    Cut,
    build_in_sequence,
    cut_without_statistics,
    refitted,
    with_int8_words,
)
from approxrt.compression.options import CompressOptions
from approxrt.compression.report import SLACK
from approxrt.compression.work import Candidate, Work
from approxrt.errors import DataError
from approxrt.models.decoder import is_gguf, load_any_decoder, load_decoder
from approxrt.runtime.decoder_cpu import DecoderEngine
from approxrt.runtime.threads import resolve_threads
from approxrt.tasks.lm import engine_score, perplexity, read_text
from approxrt.tasks.readers import TEXT_SUFFIXES, find_split
from approxrt.training import has_bf16

Progress = Callable[[float, str], None]

SEQUENCE = 512  # tokens of a piece of text, and of a window of validation text
STATISTICS_SEQUENCES, ROUNDING_SEQUENCES, REMOVAL_SEQUENCES = 8, 12, 2
VALIDATION_TOKENS = 8192
OWN_F32 = "approxrt-f32"
# Shares of the budget that steps may take at most, where they have a choice.
SHARES = {"statistics": 0.12, "removal": 0.08, "tiles": 0.2, "rounding": 0.12}
TRIES_UNTIL = 0.45  # of the budget, where training follows
TRIES = 3
# Before anything is measured: what is really lost, as a share of what is predicted.
FIRST_SCALE = 1.0
# A plan that is trained may lose so many times what is allowed before.
BEFORE_TRAINING = 3.0
LEAST_STEPS = 8  # of training, to be worth it
MOST_EPOCHS = 8.0  # of training, whatever the budget
LOOKS = 3  # at validation, in training
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
        self.checkpoint = load_decoder(model, None, True) if is_gguf(model) else load_any_decoder(model)
        self.spec, self.tensors = self.checkpoint.spec, dict(self.checkpoint.tensors)
        self.sequence = min(SEQUENCE, self.spec.max_positions)
        ids = token_ids(self.checkpoint.tokenizer_json, text_file(data))
        self.calibrating, self.validating = split(ids, self.sequence)
        self.notes: list[str] = []
        identity = options.identity() | {
            "task": "lm",
            "checkpoint": self.checkpoint.source["name"],
            "tokens": [len(self.calibrating), len(self.validating)],
        }
        self.work = Work(out, identity)
        clock = self.work.read("clock") or {"seconds": 0.0, "check": 0.0}
        self.spent = float(clock["seconds"])
        self.cost = "bytes" if options.objective == ("size",) else "seconds"
        self.allowed = math.log1p(options.max_drop)
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

    def _within(self, step: str) -> Callable[[], bool]:
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
        metrics = self._metrics(self.dense_engine)
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

    def _metrics(self, engine: DecoderEngine) -> dict[str, float]:
        # Windows that do not overlap: half the work of the ones of `eval`, and the same tokens for every candidate.
        found = perplexity(engine_score(engine), self.validating, self.sequence, self.sequence)
        return {"perplexity": found["perplexity"]}

    def _timed(self, engines: dict[str, DecoderEngine]) -> dict[str, dict[str, float]]:
        """Milliseconds a token, one after the other, of engines in turns."""
        times = take_turns({name: decode_run(engine) for name, engine in engines.items()}, TIMING_SECONDS, 3)
        steps = steps_of(self.spec)
        return {
            name: {key: value / steps if key.endswith("_ms") else value for key, value in time.items()}
            for name, time in times.items()
        }

    # -- the run -------------------------------------------------------------------

    def run(self) -> list[Candidate]:
        """Candidates, in the order in which they were made; at least one."""
        if self.work.read("done") is not None:
            return self.work.candidates()
        with _torch_threads(self.threads):
            self.baseline()
            spec, tensors = self.spec, self.tensors
            if can_rotate(spec):
                self.say("rotating")
                spec, tensors = rotate(spec, tensors)
            else:
                self.note("layer norms: activations are not rotated, so their outliers cost some accuracy")
            if not self.work.candidates():
                self.say("int8")
                self._add(InMemory(*quantize_model(spec, tensors, 8)), {"plan": "int8, rounded to nearest"})
            if self.checkpoint.grouped and len(self.work.candidates()) == 1:
                # What rounding made of a file with grids of its own cannot be closer to it than those.
                kept = quantize_model(self.spec, self.tensors, 5, grouped=self.checkpoint.grouped)
                self._add(InMemory(*kept), {"plan": "int4 and int8 as in the file"})
            state = self.work.load_state()
            if state is None and self.left() > 0:
                state = self._search(spec, tensors)
                if state is not None:
                    self.work.save_state(state)
                    self._save_clock()
            if state is not None:
                self._train(spec, tensors, state)
        self.work.write("done", True)
        return self.work.candidates()

    def note(self, text: str) -> None:
        """Something for the log now and for the report."""
        self.log(text)
        self.notes.append(text)

    def _search(self, spec: Any, tensors: dict[str, np.ndarray]) -> dict[str, Any] | None:
        """Candidates without training; what training starts from, or None where there is none."""
        builder, choices = self._choices(spec, tensors)
        tries: list[dict[str, float]] = list(self.work.read("tries") or [])
        plan: Plan | None = None
        trains = self.options.recipe == "train"
        while len(tries) < TRIES and self.left() > self.last_check:
            if trains and tries and self.elapsed() > TRIES_UNTIL * self.options.budget:
                break
            new = self._plan(choices, tries, self.allowed)
            if plan is not None and new.kinds == plan.kinds and _same(new, plan):
                break
            plan = new
            candidate = self._add(builder.build(plan), {"plan": plan.to_json(), "trained": 0})
            tries.append(self._learnt(plan, candidate))
            self.work.write("tries", tries)
            if self._good_enough(candidate, tries[-1]):
                break
        best = self._best_plan()
        again = any("rounded" in candidate.about for candidate in self.work.candidates())
        if best is not None and not again and self.left() > 2 * self.last_check:
            self.say("rounding in sequence")
            batch = calibration(self.calibrating, ROUNDING_SEQUENCES, self.sequence)
            cut = builder.cut(best)
            built = build_in_sequence(cut.spec, refitted(cut), cut.masks, best, batch, self.say)
            self._add(built, {"plan": best.to_json(), "trained": 0, "rounded": "in sequence"})
        if not trains or not tries:
            return None
        if self._target() is not None:
            if self._met():
                return None
            wanted = self._best_plan() or plan
        else:
            wanted = self._plan(choices, tries, BEFORE_TRAINING * self.allowed)
        if wanted is None or self.left() < 2 * self.last_check:
            return None
        return self._start(builder.cut(wanted), wanted)

    def _choices(self, spec: Any, tensors: dict[str, np.ndarray]) -> tuple[Builder, Choices]:
        """Statistics, measured times, losses of removal, scores of tiles: the options."""
        batch = calibration(self.calibrating, STATISTICS_SEQUENCES, self.sequence)
        stats = statistics(spec, tensors, batch, self.say, self._within("statistics"))
        latency = self._latency(spec)
        builder = Builder(spec, tensors, stats)
        begun, allowed = self.elapsed(), SHARES["tiles"] * self.options.budget

        def afford(share: float) -> bool:
            spent = self.elapsed() - begun
            return share < 0.02 or spent / share <= allowed

        if not builder.score(afford, self.say):
            self.note("sparse tiles were left out: scoring them would take more than a fifth of the budget")
        choices = builder.choices(latency, self.say, self._within("rounding"))
        blocks = block_options(spec, tensors, stats)
        measured = self._removals(spec, tensors, blocks, {name: found.mean for name, found in stats.items()})
        # What nobody has measured stays in part.
        choices.blocks = {
            name: options if name in measured else options[:-1]
            for name, options in with_measured_blocks(blocks, measured).items()
        }
        return builder, choices

    def _latency(self, spec: Any) -> DecoderLatency:
        known = self.work.read("latency")
        named = {kind.name: kind for kind in KINDS}
        if known is None:
            found = measure_latency(spec, KINDS, self.threads, progress=self.say)
            known = {
                part: {kind.name: value for kind, value in table.items()}
                for part, table in (("per_byte", found.per_byte), ("head", found.head))
            }
            self.work.write("latency", known)
        tables: list[dict[Kind, float]] = [
            {named[name]: value for name, value in known[part].items()} for part in ("per_byte", "head")
        ]
        return DecoderLatency(*tables)

    def _removals(self, spec: Any, tensors: Any, blocks: Any, means: Any) -> dict[str, float]:
        """Measured nats of removing whole blocks, those of the least predicted loss first, as far as time goes."""
        known = self.work.read("removals")
        if known is not None:
            return dict(known)
        elements = {f"layers.{i}.{kind}": DecoderElement(i, kind) for i in range(len(spec.layers))
                    for kind in ("attention", "ffn")}  # fmt: skip
        order = sorted(blocks, key=lambda name: blocks[name][-1].loss)
        # Other tokens than those of the statistics, where there are as many.
        text = self.calibrating[self.sequence :] if len(self.calibrating) >= 2 * self.sequence else self.calibrating
        batch = calibration(text, REMOVAL_SEQUENCES, self.sequence)
        _, found = measure_removals(
            spec, tensors, batch, means, [elements[name] for name in order],
            lambda done, total, text: self.say(text), self._within("removal"),
        )  # fmt: skip
        measured = {removal.element.name: removal.change for removal in found}
        self.work.write("removals", measured)
        return measured

    # -- plans ---------------------------------------------------------------------

    def _target(self) -> float | None:
        """Seconds a token, or bytes of linears, that are asked for; None: as good as max_drop allows."""
        baseline = self.baseline()
        if self.cost == "bytes":
            if self.options.shrink is None or self.options.shrink <= 1:
                return None
            first = self.work.candidates()[0]
            linears = sum(KINDS[0].bytes(l.out_features, l.in_features) for _, l in self.rotated().linears())
            return max(1.0, baseline["f32_bytes"] / self.options.shrink - (first.bytes - linears))
        wanted = self.options.speedup
        return None if wanted is None or wanted <= 1 else baseline["ms"] / 1e3 / wanted

    def rotated(self) -> Any:
        """The spec that plans are made for: with a head of its own where the model is rotated."""
        import dataclasses

        return dataclasses.replace(self.spec, tied_embeddings=False) if can_rotate(self.spec) else self.spec

    def _plan(self, choices: Choices, tries: list[dict[str, float]], allowed: float) -> Plan:
        """By what was learnt: the least loss within the target, or the least time within `allowed` nats."""
        target = self._target()
        if target is not None:
            factor = tries[-1]["cost"] / tries[-1]["predicted_cost"] if tries else self._first_factor(choices)
            return choices.within(lambda plan: getattr(plan, self.cost) * factor <= target, self.cost, cheapest=True)
        scale = tries[-1]["scale"] if tries else FIRST_SCALE
        return choices.within(lambda plan: scale * plan.loss <= allowed, self.cost)

    def _learnt(self, plan: Plan, candidate: Candidate) -> dict[str, float]:
        """What a built plan says of the predictions."""
        loss = math.log1p(candidate.drop)
        # All of the loss may be due to activations, so never below a tenth.
        scale = max(0.1, loss / plan.loss) if plan.loss > 0 else FIRST_SCALE
        if self.cost == "bytes":
            return {"scale": scale, "cost": 1.0, "predicted_cost": 1.0, "loss": loss}
        return {"scale": scale, "cost": self._seconds(candidate), "predicted_cost": plan.seconds, "loss": loss}

    def _seconds(self, candidate: Candidate) -> float:
        """A token's, as they would have been beside the baseline: the machine's own speed drifts."""
        return float(self.baseline()["ms"]) / 1e3 / candidate.speedup

    def _first_factor(self, choices: Choices) -> float:
        """Measured over predicted cost of int8, the first candidate."""
        if self.cost == "bytes":
            return 1.0
        predicted = sum(options[0].seconds for options in choices.linears.values())
        return self._seconds(self.work.candidates()[0]) / predicted

    def _good_enough(self, candidate: Candidate, learnt: dict[str, float]) -> bool:
        target = self._target()
        if target is None:
            return 0.7 * self.allowed < learnt["loss"] <= self.allowed
        return self.cost == "bytes" or SLACK <= target / learnt["cost"] <= 1 / SLACK

    def _best_plan(self) -> Plan | None:
        """Of the best candidate that has one and was not trained."""
        from approxrt.compression.report import choose

        planned = [c for c in self.work.candidates() if isinstance(c.about["plan"], dict) and not c.about["trained"]]
        return Plan.from_json(choose(planned, self.options).about["plan"]) if planned else None

    def _met(self) -> bool:
        from approxrt.compression.report import violation

        return any(violation(c, self.options) == 0 for c in self.work.candidates())

    # -- training --------------------------------------------------------------------

    def _start(self, cut: Cut, plan: Plan) -> dict[str, Any]:
        """The state of a training that has not begun."""
        weights = {name: array for name, array in refitted(cut).items() if name.startswith("layers.")}
        return {
            "plan": plan.to_json(),
            "masks": {name: torch.from_numpy(mask) for name, mask in cut.masks.items()},
            "weights": {name: torch.from_numpy(np.array(array)) for name, array in weights.items()},
            "recovery": None,
            "best": None,
        }

    def _train(self, spec: Any, tensors: dict[str, np.ndarray], state: dict[str, Any]) -> None:
        """Distil for the time that is left; two candidates, on the training's grids and rounded in sequence."""
        plan = Plan.from_json(state["plan"])
        masks = {name: mask.numpy() for name, mask in state["masks"].items()}
        bits = {name: kind.bits for name, kind in plan.kinds.items()}
        start = {name: value.numpy() for name, value in state["weights"].items()}
        cut_spec, cut_tensors = cut_without_statistics(spec, tensors, plan.keep, start)
        count = len(self.calibrating) // self.sequence
        pieces = torch.tensor(self.calibrating[: count * self.sequence]).reshape(count, self.sequence)
        options = DecoderRecoveryOptions(lr=self.lr(), seed=self.options.seed, bf16=has_bf16())
        recovery = DecoderRecovery(cut_spec, cut_tensors, masks, bits, pieces, self._teach, options)
        best: tuple[float, int, dict[str, np.ndarray]] | None = None  # perplexity, step, weights
        if state["recovery"] is not None:
            recovery.restore(state["recovery"])
            if (kept := state["best"]) is not None:
                best = kept["perplexity"], kept["step"], {n: v.numpy() for n, v in kept["weights"].items()}
        limit = (self.options.epochs or MOST_EPOCHS) * recovery.steps_per_epoch

        def build(weights: dict[str, np.ndarray]) -> InMemory:
            _, whole = cut_without_statistics(spec, tensors, plan.keep, weights)
            return with_int8_words(*on_grid(cut_spec, whole, masks, bits))

        def save() -> None:
            kept = None
            if best is not None:
                weights = {name: torch.from_numpy(value) for name, value in best[2].items()}
                kept = {"perplexity": best[0], "step": best[1], "weights": weights}
            self.work.save_state(state | {"recovery": recovery.state(), "best": kept})
            self._save_clock()

        def look() -> None:
            nonlocal best
            weights = recovery.weights()
            engine = DecoderEngine(build(weights), self.threads)
            found = self._metrics(engine)["perplexity"]
            self.log(f"step {recovery.step}: loss {recovery.loss:.4f}, validation perplexity {found:.3f}")
            if best is None or found < best[0]:
                best = found, recovery.step, weights

        begun, taken, saved, looked = self.elapsed(), 0, self.elapsed(), 0
        look_seconds = self.last_check
        # What follows: looks, a plain and a sequential rounding with their checks.
        allowed = self.left() - (LOOKS + 3) * look_seconds
        done = 0.0
        while done < 1:
            recovery.advance(done)
            taken += 1
            spent = self.elapsed() - begun
            each = max(spent / taken, 1e-6)
            if taken == 1 and min(allowed / each, limit) < LEAST_STEPS and self.options.epochs is None:
                self.note(f"no time for distillation: a step takes {each:.0f} s")
                return
            done = max(recovery.step / limit, (spent + each) / max(allowed, 1e-9))
            self.say(f"distilling, step {recovery.step}, loss {recovery.loss:.3f}")
            if done >= 1 or done >= (looked + 1) / LOOKS:
                looked += 1
                look()
            if self.elapsed() - saved > self.options.save_seconds and done < 1:
                save()
                saved = self.elapsed()
        assert best is not None
        about = {"plan": plan.to_json(), "trained": best[1]}
        self._add(build(best[2]), about)
        if self.left() > 2 * self.last_check:
            self.say("rounding in sequence")
            _, whole = cut_without_statistics(spec, tensors, plan.keep, best[2])
            batch = calibration(self.calibrating, ROUNDING_SEQUENCES, self.sequence)
            built = build_in_sequence(cut_spec, whole, masks, plan, batch, self.say)
            self._add(built, about | {"rounded": "in sequence"})

    def lr(self) -> float:
        """The highest learning rate: half of an encoder's by default, since there is little text."""
        return 0.5 * self.options.lr

    def _teach(self, ids: list[int]) -> np.ndarray:
        return engine_score(self.dense_engine)(ids, 0)

    # -- candidates -----------------------------------------------------------------

    def _add(self, built: InMemory, about: dict[str, Any]) -> Candidate:
        """Write, load and measure an artifact; note it as the next candidate."""
        begun = time.monotonic()
        baseline, index = self.baseline(), len(self.work.candidates())
        path = self.work.candidate_path(index)
        self.say("checking a candidate")
        write_artifact(
            path, built.decoder_spec, built.tensors, self.checkpoint.tokenizer_json, {"approxrt": "candidate"}, True
        )
        engine = DecoderEngine(read_artifact(path), self.threads)
        metrics = self._metrics(engine)
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
        self._save_clock()
        return candidate

    def _save_clock(self) -> None:
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


def _same(a: Plan, b: Plan) -> bool:
    return all(
        np.array_equal(x, y)
        for mine, theirs in ((a.keep.heads, b.keep.heads), (a.keep.units, b.keep.units))
        for x, y in zip(mine, theirs, strict=True)
    )


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def text_file(data: Any) -> Path:
    """The text itself, or a folder's train file. Raises DataError."""
    path = Path(data)
    if not path.is_dir():
        return path
    found = find_split(path, "train", TEXT_SUFFIXES)
    if found is None:
        raise DataError(f"{path} has no train{'|'.join(TEXT_SUFFIXES)}: give a folder with one, or the file itself")
    return found


def token_ids(tokenizer_json: bytes, path: Path) -> list[int]:
    """A plain text in the model's tokens."""
    from tokenizers import Tokenizer

    ids: list[int] = Tokenizer.from_str(tokenizer_json.decode("utf-8")).encode(read_text(path)).ids
    return ids


def split(ids: list[int], sequence: int) -> tuple[list[int], list[int]]:
    """(calibration, validation): the last fifth validates, at most VALIDATION_TOKENS of it."""
    cut = len(ids) - len(ids) // 5
    if cut < sequence or len(ids) - cut < 2:
        raise DataError(
            f"the text has {len(ids)} tokens; at least {sequence + sequence // 4 + 1} are needed to calibrate and "
            "validate"
        )
    return ids[:cut], ids[cut : cut + VALIDATION_TOKENS]
