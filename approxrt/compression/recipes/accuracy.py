"""Objective accuracy: take out what does harm, average and learn from an ensemble; the result is int8, so smaller and
faster.

1. Members (`approxrt.compression.recipes.ensemble`) practise on the task's texts and learn from its labels, with other
   seeds and dropout. They end near each other, so the mean of their weights is a model, too, and mostly a better one
   than any of them (Wortsman et al. 2022, arXiv 2203.05482). Of members and means the model begins with the best, or
   with the checkpoint where that is surely better.
2. Removals that lower the held-out loss are accepted by `approxrt.significance.bootstrap`; then, from the lowest layer
   up, hard attention by the same test: a query attends to the HARD_KEEP keys whose signs match best (the paper keeps
   30).
3. The model learns from labels and the mean logits of those members whose ensemble is best (Hinton et al. 2015, arXiv
   1503.02531); the mean of its weights over the second half of that is a last candidate.
4. The border between the classes moves to where the metric wants it (`approxrt.significance.threshold`).

What is best is decided by the validation loss at the temperature that suits each model best. Accuracy on a few hundred
texts is mostly noise, and the plain loss of a model that has learnt its training texts by heart says how sure it is,
not how often it is right.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from approxrt.artifact.spec.encoder import MAX_SIGN_DIM
from approxrt.compression.families.encoder import EncoderFamily
from approxrt.compression.families.encoder_inputs import separators
from approxrt.compression.recipes.ensemble import members, training_options
from approxrt.compression.records import EnsemblePlan, Origin, Provenance
from approxrt.errors import UnsupportedTaskError
from approxrt.random import Stream, generator
from approxrt.sign_attention.calibrate import SignKind, with_sign_attention
from approxrt.significance.bootstrap import (
    Bootstrap,
    GainTest,
    Trial,
    calibrated_loss,
    calibrated_losses,
    gains,
    metric_gain,
)
from approxrt.significance.elements import elements_of
from approxrt.significance.encoder_removal import HeldOutLoss, shrunk
from approxrt.significance.statistics import collect
from approxrt.significance.threshold import gain_of_offsets, logit_offsets
from approxrt.tasks.metrics import compute_metrics
from approxrt.tasks.registry import get_task
from approxrt.torch_models.encoder import TorchEncoder, predict, sample_losses
from approxrt.training.data import folds
from approxrt.training.distillation import Distillation
from approxrt.training.teacher import teach

FOLDS = 4
RANKED = 32, 200  # validation texts that put the candidates in order, at least and at most; all decide
RANKING_SHARE = 0.05  # of the budget
STUDENT_EPOCHS = 3.0
RESAMPLES = 2000
HARD_KEEP = 30
SURE = 0.95  # share of resamples with a gain from which a change is taken, and the report does not warn
LIKELY = 0.75  # the same of offsets: no capacity is at stake


def more_accurate(family: EncoderFamily) -> None:
    """Make the one candidate; a resumed run repeats the steps that are not on disk."""
    job = family.job
    if family.inputs.data.embeds:
        raise UnsupportedTaskError(
            "objective accuracy needs labels, which an embedder's texts do not have: use objective speed or size"
        )
    if job.work.candidates():
        return
    found = members(family)
    model, mixed = _weight_average(family, found)
    model, trials = _without_harm(family, model)
    hard = _hard_attention(family, model)
    # The checkpoint teaches only where it is what the model begins with: see `_weight_average`.
    teaching = [0] if mixed == [0] else _ensemble(family, found)
    history = _learn(family, model, [found[i] for i in teaching])
    offsets = _offsets(family, model)
    sure = _certainty(family, model)
    if sure < SURE:
        job.notes.add(
            f"the gain on {len(family.inputs.validation.ids)} validation examples may be chance: it shows in "
            f"{sure:.0%} of their resamples; more training data (or a larger --val-fraction) would tell"
        )
    facts: dict[str, Any] = {
        "speedup": None,
        "shrink": None,
        "removed": [trial.element.name for trial in trials if trial.accepted],
        "tried": len(trials),
        "members": len(found),
        "teaching": teaching,
        "practice": _ensemble_plan(family).to_report(),
        "mixed": mixed,
        "hard_attention": hard,
        "offsets": offsets,
        "gain_in_resamples": sure,
        "epochs": history,
    }
    family.build(model, family.kinds(model, {}), Provenance(Origin.PLANNED, facts=facts))


def _ensemble_plan(family: EncoderFamily) -> EnsemblePlan:
    plan = family.job.work.load("ensemble", EnsemblePlan)
    assert plan is not None
    return plan


def _pace(family: EncoderFamily) -> float:
    """Seconds that a step on labels takes."""
    pace = _ensemble_plan(family).pace_s
    assert pace is not None
    return pace


def _without_harm(family: EncoderFamily, model: TorchEncoder) -> tuple[TorchEncoder, list[Trial]]:
    """The model without what does harm, and what was tried."""
    rows = generator(family.job.seed, Stream.MEANS).permutation(len(family.inputs.pruned.train.ids))[:512]
    means = collect(model, family.inputs.pruned.train.subset(rows), family.job.seed, with_moments=False).means
    held = HeldOutLoss(model, family.inputs.validation)
    few = generator(family.job.seed, Stream.RANKING).permutation(len(held))[: _ranked(family, model)]
    parts = folds(len(held), FOLDS, family.job.seed)
    keep, trials = gains(
        held,
        means,
        GainTest(parts, seed=family.job.seed),
        HeldOutLoss(model, family.inputs.validation, np.sort(few)),
        family.job.progress.part(0.8, 0.85),
    )
    return (shrunk(model, keep, means) if any(t.accepted for t in trials) else model), trials


def _ranked(family: EncoderFamily, model: TorchEncoder) -> int:
    """Texts for the order of all elements' removals, of which each takes a forward pass: a third of a step's time."""
    text_s = _pace(family) / (3 * family.job.options.batch_size)
    elements = len(elements_of(model.spec))
    return int(np.clip(RANKING_SHARE * family.job.options.budget / (elements * text_s), *RANKED))


def _hard_attention(family: EncoderFamily, model: TorchEncoder) -> list[int]:
    """Layers of the model that attend to their best-matching keys from now on."""
    validation = family.inputs.validation
    labels, bootstrap = validation.labels, Bootstrap(RESAMPLES, generator(family.job.seed, Stream.HARD_ATTENTION))
    assert labels is not None
    if not any(len(text) > HARD_KEEP for text in validation.ids):
        return []

    def losses() -> np.ndarray:
        return calibrated_losses(predict(model, validation.ids, validation.types), labels)

    parts = folds(len(validation.ids), FOLDS, family.job.seed)
    sure = 1 - (1 - SURE) / len(model.spec.layers)  # as in `gains`: each layer is another try
    kind, taken, before = SignKind(HARD_KEEP, HARD_KEEP + 1, rest=False), list[int](), losses()
    for i, layer in enumerate(model.spec.layers):
        if not layer.num_heads or layer.head_dim > MAX_SIGN_DIM:
            continue
        family.job.recipe_progress(0.85, f"hard attention in layer {i}")
        with_sign_attention(model, dict.fromkeys([*taken, i], kind), separators(family.inputs.tokenizer_json))
        after = losses()
        difference = after - before
        if max(float(difference[fold].mean()) for fold in parts) < 0 and bootstrap.share(difference) >= sure:
            taken, before = [*taken, i], after
    with_sign_attention(model, dict.fromkeys(taken, kind), separators(family.inputs.tokenizer_json) if taken else ())
    return taken


def _weight_average(family: EncoderFamily, members: list[TorchEncoder]) -> tuple[TorchEncoder, list[int]]:
    """Return (what the model begins with, the members whose mean it is): of members and their means what validates
    best.

    The checkpoint, which is the first, is another start than theirs, and no mean takes it in. It stays where it is
    surely better: by a little it looks so anyway, as its epoch was chosen by the same validation examples.
    """
    model, weights = family.model(), [_copy(member) for member in members]

    def loss(chosen: list[int]) -> float:
        _put(model, _mean([weights[i] for i in chosen]))
        return float(_losses(family, model).mean())

    everyone = list(range(1, len(members)))
    alone = {i: loss([i]) for i in everyone}
    order = sorted(everyone, key=lambda i: alone[i])
    best, least = [order[0]], alone[order[0]]
    for i in order[1:]:
        trial = loss(sorted([*best, i]))
        if trial < least:
            best, least = sorted([*best, i]), trial
    if len(best) < len(everyone) and loss(everyone) < least:
        best = everyone
    _put(model, _mean([weights[i] for i in best]))
    bootstrap = Bootstrap(RESAMPLES, generator(family.job.seed, Stream.STARTING_POINT))
    difference = _losses(family, members[0]) - _losses(family, model)
    if bootstrap.share(difference) >= SURE:
        best = [0]
        _put(model, weights[0])
    return model, best


def _ensemble(family: EncoderFamily, members: list[TorchEncoder]) -> list[int]:
    """Trained members whose mean logits validate best, found one by one from the best (Caruana et al. 2004)."""
    validation = family.inputs.validation
    labels = validation.labels
    assert labels is not None
    logits = [predict(member, validation.ids, validation.types) for member in members]
    chosen, least = list[int](), float("inf")
    while left := [i for i in range(1, len(members)) if i not in chosen]:
        losses = [calibrated_loss(np.mean([logits[j] for j in [*chosen, i]], axis=0), labels) for i in left]
        if min(losses) >= least:
            break
        chosen, least = [*chosen, left[int(np.argmin(losses))]], min(losses)
    return sorted(chosen)


def _learn(family: EncoderFamily, model: TorchEncoder, members: list[TorchEncoder]) -> list[dict[str, Any]]:
    """Train the model; it ends with the weights that validate best. Returns what each epoch gave."""
    teachers = [*members, *family.teachers()[1:]]
    options = training_options(family, family.job.seed)
    options = dataclasses.replace(options, lr=0.5 * options.lr)
    recovery_steps = -(-len(family.inputs.pruned.train.ids) // options.batch_size)
    room = (family.job.options.budget - family.job.budget.elapsed()) / _pace(family)
    # The ensemble's answers to all of train take a forward pass of each: a third of a step's time.
    epochs = min(family.job.options.epochs or STUDENT_EPOCHS, room / recovery_steps - len(teachers) / 3)
    if len(teachers) < 2 or epochs < min(1.0, family.job.options.epochs or 1.0):
        why = "one model is no ensemble" if len(teachers) < 2 else "the budget has no room for an epoch"
        family.job.notes.add(f"the model does not learn from the ensemble: {why}")
        return [_validated(family, model, 0)]
    teacher = teach(teachers, family.inputs.own.train, with_hidden=False)
    recovery = Distillation(model, family.inputs.pruned.train, teacher, round(epochs * recovery_steps), options)
    history = [_validated(family, model, 0)]
    candidates, tail = [_copy(model)], list[dict[str, torch.Tensor]]()
    while recovery.step < recovery.steps:
        loss = recovery.advance()
        share = 0.85 + 0.15 * recovery.step / recovery.steps
        family.job.recipe_progress(share, f"learning from the ensemble, loss {loss:.3f}")
        if recovery.step % max(1, recovery_steps // 2) == 0 and 2 * recovery.step >= recovery.steps:
            tail.append(_copy(model))
        if recovery.step % recovery_steps == 0 or recovery.step == recovery.steps:
            history.append(_validated(family, model, recovery.step))
        if family.job.budget.elapsed() > family.job.options.budget:
            family.job.notes.add(f"the budget ended after {recovery.step} of {recovery.steps} steps of the training")
            break
    learnt = _mean([*tail, _copy(model)])
    candidates += [learnt, _mean([candidates[0], learnt])]
    losses = []
    for weights in candidates:
        _put(model, weights)
        losses.append(float(_losses(family, model).mean()))
    _put(model, candidates[int(np.argmin(losses))])
    history.append(_validated(family, model, recovery.step) | {"candidates": losses})
    return history


def _validated(family: EncoderFamily, model: TorchEncoder, step: int) -> dict[str, Any]:
    validation = family.inputs.validation
    logits = predict(model, validation.ids, validation.types)
    assert validation.labels is not None
    metrics = compute_metrics(family.inputs.data.task, logits, validation.labels)
    return {"step": step, "metrics": metrics, "loss": calibrated_loss(logits, validation.labels)}


def _losses(family: EncoderFamily, model: TorchEncoder) -> np.ndarray:
    """Return the loss of each validation example, at the temperature that suits the model best."""
    validation = family.inputs.validation
    assert validation.labels is not None
    return calibrated_losses(predict(model, validation.ids, validation.types), validation.labels)


def _offsets(family: EncoderFamily, model: TorchEncoder) -> list[float] | None:
    """Return what is added to the last bias, where the metric rises by it; None where it does not, or there are no
    classes."""
    validation = family.inputs.validation
    assert validation.labels is not None
    if validation.labels.dtype.kind == "f":
        return None
    family.job.progress(1.0, "placing the border between the classes")
    metric = get_task(family.inputs.data.task).metrics[0]
    logits = predict(model, validation.ids, validation.types)
    bootstrap = Bootstrap(RESAMPLES, generator(family.job.seed, Stream.THRESHOLD))
    parts = folds(len(validation.labels), FOLDS, family.job.seed)
    _, share = gain_of_offsets(metric, logits, validation.labels, parts, bootstrap)
    if share < LIKELY:
        return None
    offsets = logit_offsets(metric, logits, validation.labels)
    with torch.no_grad():
        model.weight("head.out.bias").add_(torch.from_numpy(offsets).to(model.device))
    return [float(offset) for offset in offsets]


def _certainty(family: EncoderFamily, model: TorchEncoder) -> float:
    """Share of validation's resamples in which the model beats the checkpoint (of scores: in squared errors)."""
    validation = family.inputs.validation
    assert validation.labels is not None
    before = family.baseline_outputs()
    after = predict(model, validation.ids, validation.types)
    bootstrap = Bootstrap(RESAMPLES, generator(family.job.seed, Stream.CERTAINTY))
    if validation.labels.dtype.kind == "f":
        errors = [sample_losses(outputs, validation.labels) for outputs in (before, after)]
        return bootstrap.share(errors[1] - errors[0])
    metric = get_task(family.inputs.data.task).metrics[0]
    return metric_gain(metric, before, after, validation.labels, bootstrap)[1]


def _copy(model: TorchEncoder) -> dict[str, torch.Tensor]:
    return {name: model.weight(name).detach().clone() for name in model.names()}


def _mean(weights: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([w[name] for w in weights]).mean(0) for name in weights[0]}


def _put(model: TorchEncoder, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in weights.items():
            model.weight(name).copy_(value)
