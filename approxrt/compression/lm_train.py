"""Distillation within what is left of the budget: `approxrt.approx.decoder_recover` with a clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from approxrt.analysis.decoder_latency import InMemory
from approxrt.analysis.decoder_options import Plan
from approxrt.approx.decoder_recover import DecoderRecovery, DecoderRecoveryOptions, on_grid
from approxrt.approx.decoder_round import calibration
from approxrt.artifact.decoder_spec import DecoderSpec
from approxrt.compression.lm_build import Cut, build_in_sequence, cut_without_statistics, refitted, with_int8_words
from approxrt.compression.lm_search import ROUNDING_SEQUENCES
from approxrt.runtime.decoder_cpu import DecoderEngine
from approxrt.training import has_bf16

if TYPE_CHECKING:
    from approxrt.compression.lm import LmCompression

LR_SHARE = 0.5  # of an encoder's learning rate: there is little text
LEAST_STEPS = 8  # to be worth it
MOST_EPOCHS = 8.0  # whatever the budget
LOOKS = 3  # at validation


def starting_state(cut: Cut, plan: Plan) -> dict[str, Any]:
    """The state of a training that has not begun."""
    weights = {name: array for name, array in refitted(cut).items() if name.startswith("layers.")}
    return {
        "plan": plan.to_json(),
        "masks": {name: torch.from_numpy(mask) for name, mask in cut.masks.items()},
        "weights": {name: torch.from_numpy(np.array(array)) for name, array in weights.items()},
        "recovery": None,
        "best": None,
    }


def train(c: LmCompression, spec: DecoderSpec, tensors: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Distil for the time that is left; two candidates, on the training's grids and rounded in sequence."""
    plan = Plan.from_json(state["plan"])
    masks = {name: mask.numpy() for name, mask in state["masks"].items()}
    bits = {name: kind.bits for name, kind in plan.kinds.items()}
    start = {name: value.numpy() for name, value in state["weights"].items()}
    cut_spec, cut_tensors = cut_without_statistics(spec, tensors, plan.keep, start)
    count = len(c.calibrating) // c.sequence
    pieces = torch.tensor(c.calibrating[: count * c.sequence]).reshape(count, c.sequence)
    options = DecoderRecoveryOptions(lr=LR_SHARE * c.options.lr, seed=c.options.seed, bf16=has_bf16())
    recovery = DecoderRecovery(cut_spec, cut_tensors, masks, bits, pieces, c.teach, options)
    best: tuple[float, int, dict[str, np.ndarray]] | None = None  # perplexity, step, weights
    if state["recovery"] is not None:
        recovery.restore(state["recovery"])
        if (kept := state["best"]) is not None:
            best = kept["perplexity"], kept["step"], {n: v.numpy() for n, v in kept["weights"].items()}
    limit = (c.options.epochs or MOST_EPOCHS) * recovery.steps_per_epoch

    def build(weights: dict[str, np.ndarray]) -> InMemory:
        _, whole = cut_without_statistics(spec, tensors, plan.keep, weights)
        return with_int8_words(*on_grid(cut_spec, whole, masks, bits))

    def save() -> None:
        kept = None
        if best is not None:
            weights = {name: torch.from_numpy(value) for name, value in best[2].items()}
            kept = {"perplexity": best[0], "step": best[1], "weights": weights}
        c.work.save_state(state | {"recovery": recovery.state(), "best": kept})
        c.save_clock()

    def look() -> None:
        nonlocal best
        weights = recovery.weights()
        engine = DecoderEngine(build(weights), c.threads)
        found = c.metrics(engine)["perplexity"]
        c.log(f"step {recovery.step}: loss {recovery.loss:.4f}, validation perplexity {found:.3f}")
        if best is None or found < best[0]:
            best = found, recovery.step, weights

    begun, taken, saved, looked = c.elapsed(), 0, c.elapsed(), 0
    look_seconds = c.last_check
    # What follows: looks, a plain and a sequential rounding with their checks.
    allowed = c.left() - (LOOKS + 3) * look_seconds
    done = 0.0
    while done < 1:
        recovery.advance(done)
        taken += 1
        spent = c.elapsed() - begun
        each = max(spent / taken, 1e-6)
        if taken == 1 and min(allowed / each, limit) < LEAST_STEPS and c.options.epochs is None:
            c.note(f"no time for distillation: a step takes {each:.0f} s")
            return
        done = max(recovery.step / limit, (spent + each) / max(allowed, 1e-9))
        c.say(f"distilling, step {recovery.step}, loss {recovery.loss:.3f}")
        if done >= 1 or done >= (looked + 1) / LOOKS:
            looked += 1
            look()
        if c.elapsed() - saved > c.options.save_seconds and done < 1:
            save()
            saved = c.elapsed()
    assert best is not None
    about = {"plan": plan.to_json(), "trained": best[1]}
    c.add(build(best[2]), about)
    if c.left() > 2 * c.last_check:
        c.tick("rounding in sequence")
        _, whole = cut_without_statistics(spec, tensors, plan.keep, best[2])
        batch = calibration(c.calibrating, ROUNDING_SEQUENCES, c.sequence)
        built = build_in_sequence(cut_spec, whole, masks, plan, batch, c.tick)
        c.add(built, about | {"rounded": "in sequence"})
