"""Distillation within what is left of the budget: `approxrt.training.decoder_distillation` with a clock."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from approxrt.artifact.memory import InMemory
from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.compression.families.decoder import DecoderFamily
from approxrt.compression.families.decoder_build import (
    Builder,
    Pruned,
    build_in_sequence,
    pruned_without_statistics,
    refitted,
    with_words,
)
from approxrt.compression.recipes.decoder_rounds import ROUNDING_SEQUENCES
from approxrt.compression.records import Origin, Provenance, from_json, to_json
from approxrt.planning.decoder_options import HEAD
from approxrt.planning.plan import Plan
from approxrt.quantization.calibration import calibration
from approxrt.quantization.gptq import dequantized_linear
from approxrt.quantization.grids import parts_of
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.torch_models.device import has_bf16
from approxrt.training.budget import BudgetSpent
from approxrt.training.decoder_distillation import (
    DecoderDistillation,
    DecoderDistillationOptions,
    StoredLinears,
    TeacherText,
    on_grid,
)

LR_SHARE = 0.5  # of an encoder's learning rate: there is little text
LEAST_STEPS = 8  # to be worth it
MOST_EPOCHS = 8.0  # whatever the budget
LOOKS = 3  # at validation


def starting_state(builder: Builder, plan: Plan) -> dict[str, Any]:
    """The state of a training that has not begun.

    With grids of a checkpoint the model starts on the artifact's, rounded by statistics where that is not the
    checkpoint's own; else from floats.
    """
    pruned, grids = builder.prune(plan), dict[str, dict[str, np.ndarray]]()
    if builder.own is None:
        weights = {name: array for name, array in refitted(pruned).tensors.items() if name.startswith("layers.")}
    else:
        _, tensors = builder.linears(plan, pruned)
        weights = {
            name: tensors.get(name, array) for name, array in pruned.tensors.items() if name.startswith("layers.")
        }
        for name in plan.schemes:
            grids[name] = parts_of(name, tensors)
            weight = dequantized_linear(grids[name], *pruned.tensors[f"{name}.weight"].shape)
            weights[f"{name}.weight"] = weight
    return {
        "plan": to_json(plan),
        "masks": {name: torch.from_numpy(mask) for name, mask in pruned.masks.items()},
        "weights": _torch(weights),
        "grids": {name: _torch(parts) for name, parts in grids.items()},
        "recovery": None,
        "best": None,
    }


def _torch(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}


def _numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.cpu().numpy() for name, tensor in tensors.items()}


def train(family: DecoderFamily, spec: DecoderSpec, tensors: dict[str, np.ndarray], state: dict[str, Any]) -> None:
    """Distil for the time that is left; a candidate on the training's grids, and one that is rounded in sequence.

    The latter not with grids of a checkpoint, which rounding would lose. Raises BudgetSpent where there is no time.
    """
    job, inputs, own = family.job, family.inputs, family.own
    plan = from_json(state["plan"], Plan)
    masks = _numpy(state["masks"])
    kinds = {name: scheme.format for name, scheme in plan.schemes.items()}
    grids = {name: _numpy(parts) for name, parts in state["grids"].items()}
    pruned_spec, pruned_tensors = pruned_without_statistics(spec, tensors, plan.keep, _numpy(state["weights"]))
    count = len(inputs.calibrating) // inputs.sequence
    pieces = torch.tensor(inputs.calibrating[: count * inputs.sequence]).reshape(count, inputs.sequence)
    # A head that leaves the checkpoint's grid is a matrix of its own, and learns; one that is the table does not.
    trains_head = (
        own is not None and own.keeps_table and HEAD in plan.schemes and plan.schemes[HEAD] != own.scheme(HEAD)
    )
    options = DecoderDistillationOptions(LR_SHARE * job.options.lr, seed=job.options.seed, bf16=has_bf16(job.device),
                                         trains_head=trains_head, device=job.device)  # fmt: skip
    if own is not None and own.tied and not own.keeps_table:
        pruned_tensors["embeddings.word.weight"] = pruned_tensors[f"{HEAD}.weight"]
    text = TeacherText(pieces, family.teach)
    recovery = DecoderDistillation(pruned_spec, pruned_tensors, StoredLinears(kinds, masks, grids), text, options)
    # Perplexity, step, weights, grids.
    best: tuple[float, int, dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]] | None = None
    if state["recovery"] is not None:
        recovery.restore(state["recovery"])
        if (kept := state["best"]) is not None:
            learnt = {name: _numpy(parts) for name, parts in kept["grids"].items()}
            best = kept["perplexity"], kept["step"], _numpy(kept["weights"]), learnt
    limit = (job.options.epochs or MOST_EPOCHS) * recovery.steps_per_epoch

    def build(weights: dict[str, np.ndarray], grids: dict[str, dict[str, np.ndarray]]) -> InMemory:
        _, whole = pruned_without_statistics(spec, tensors, plan.keep, weights)
        return with_words(*on_grid(pruned_spec, whole, StoredLinears(kinds, masks, grids)), own)

    def save() -> None:
        kept = None
        if best is not None:
            learnt = {name: _torch(parts) for name, parts in best[3].items()}
            kept = {"perplexity": best[0], "step": best[1], "weights": _torch(best[2]), "grids": learnt}
        job.work.save_tensors("state", state | {"recovery": recovery.state(), "best": kept})
        job.save_clock(family.last_check)

    def look() -> None:
        nonlocal best
        weights, learnt = recovery.weights(), recovery.grids()
        engine = DecoderEngine(build(weights, learnt), job.threads)
        found = family.metrics(engine)["perplexity"]
        job.log(f"step {recovery.step}: loss {recovery.loss:.4f}, validation perplexity {found:.3f}")
        if best is None or found < best[0]:
            best = found, recovery.step, weights, learnt

    begun, taken, saved, looked = job.budget.elapsed(), 0, job.budget.elapsed(), 0
    look_seconds = family.last_check
    # What follows: looks, a plain and a sequential rounding with their checks.
    allowed = job.budget.left() - (LOOKS + 3) * look_seconds
    if allowed <= 0:
        job.notes.add("the time left is too short for distillation", False)
        raise BudgetSpent
    done = 0.0
    while done < 1:
        recovery.advance(done)
        taken += 1
        spent = job.budget.elapsed() - begun
        each = max(spent / taken, 1e-6)
        if taken == 1 and min(allowed / each, limit) < LEAST_STEPS and job.options.epochs is None:
            job.notes.add(
                f"no time for distillation: a step takes {each:.1f} s, and {allowed:.0f} s are left for it", False
            )
            raise BudgetSpent
        done = max(recovery.step / limit, (spent + each) / max(allowed, 1e-9))
        job.say(f"distilling, step {recovery.step}, loss {recovery.loss:.3f}")
        if done >= 1 or done >= (looked + 1) / LOOKS:
            looked += 1
            look()
        if job.budget.elapsed() - saved > job.options.save_seconds and done < 1:
            save()
            saved = job.budget.elapsed()
    assert best is not None
    provenance = Provenance(Origin.PLANNED, plan, steps=best[1])
    family.build(build(best[2], best[3]), provenance)
    if own is None and job.budget.left() > 2 * family.last_check:
        job.tick("rounding in sequence")
        _, whole = pruned_without_statistics(spec, tensors, plan.keep, best[2])
        batch = calibration(inputs.calibrating, ROUNDING_SEQUENCES, inputs.sequence)
        built = build_in_sequence(Pruned(pruned_spec, whole, {}, masks, {}), plan, batch.to(job.device), None, job.tick)
        family.build(built, replace(provenance, in_sequence=True))
