"""Objective accuracy: take out what does harm, average and learn from an ensemble; the result is int8, so smaller and
faster.

1. Members (`approxrt.compression.members`) practise on the task's texts and learn from its labels, with other seeds
   and dropout. They end near each other, so the mean of their weights is a model, too, and mostly a better one than any
   of them (Wortsman et al. 2022, arXiv 2203.05482). Of members and means the student begins with the best, or with the
   checkpoint where that is surely better.
2. Removals that lower the held-out loss are accepted by `approxrt.significance.bootstrap`; then, from the lowest layer
   up, hard attention by the same test: a query attends to the HARD_KEEP keys whose signs match best (the paper keeps
   30).
3. The student learns from labels and the mean logits of those members whose ensemble is best (Hinton et al. 2015, arXiv
   1503.02531); the mean of its weights over the second half of that is a last candidate.
4. The border between the classes moves to where the metric wants it (`approxrt.significance.threshold`).

What is best is decided by the validation loss at the temperature that suits each model best. Accuracy on a few hundred
texts is mostly noise, and the plain loss of a model that has learnt its training texts by heart says how sure it is,
not how often it is right.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from approxrt.artifact.spec.encoder import MAX_SIGN_DIM
from approxrt.compression.members import members, training_options
from approxrt.compression.state import Candidate
from approxrt.errors import UnsupportedTaskError
from approxrt.quantization import build
from approxrt.random import Stream, generator
from approxrt.sign_attention.calibrate import SignKind, with_sign_attention
from approxrt.significance.bootstrap import (
    Trial,
    bootstrap_share,
    calibrated_loss,
    calibrated_losses,
    gains,
    metric_gain,
)
from approxrt.significance.removal import Held, elements_of, shrunk
from approxrt.significance.statistics import collect
from approxrt.significance.threshold import gain_of_offsets, logit_offsets
from approxrt.tasks.metrics import compute_metrics
from approxrt.tasks.registry import get_task
from approxrt.torch_models.encoder import Student, predict, sample_losses
from approxrt.training.data import folds
from approxrt.training.recovery import Recovery
from approxrt.training.teacher import teach

if TYPE_CHECKING:
    from approxrt.compression.pipeline import Compression

FOLDS = 4
RANKED = 32, 200  # validation texts that put the candidates in order, at least and at most; all decide
RANKING_SHARE = 0.05  # of the budget
STUDENT_EPOCHS = 3.0
RESAMPLES = 2000
HARD_KEEP = 30
SURE = 0.95  # share of resamples with a gain from which a change is taken, and the report does not warn
LIKELY = 0.75  # the same of offsets: no capacity is at stake


def more_accurate(compression: Compression) -> list[Candidate]:
    """See the module's text. One candidate; a resumed run repeats the steps that are not on disk."""
    if compression.data.embeds:
        raise UnsupportedTaskError(
            "objective accuracy needs labels, which an embedder's texts do not have: use objective speed or size"
        )
    done = compression.work.candidates()
    if done:
        return done
    compression.baseline()
    found = members(compression)
    student, mixed = _soup(compression, found)
    student, trials = _without_harm(compression, student)
    hard = _hard_attention(compression, student)
    # The checkpoint teaches only where it is what the student begins with: see `_soup`.
    teaching = [0] if mixed == [0] else _ensemble(compression, found)
    history = _learn(compression, student, [found[i] for i in teaching])
    offsets = _offsets(compression, student)
    path = compression.work.candidate_path(0)
    names = [name for name, _ in student.spec.linears() if name.startswith("layers.")]
    inputs = compression.checkpoint.spec.inputs
    build.write(
        path,
        student,
        dict.fromkeys(names, 8) | compression.head_bits(),
        compression.embeddings,
        compression.tokenizer_json,
        {"approxrt": "candidate"},
        inputs,
    )
    removed = [trial.element.name for trial in trials if trial.accepted]
    sure = _certainty(compression, student)
    if sure < SURE:
        compression.note(
            f"the gain on {len(compression.validation.ids)} validation examples may be chance: it shows in "
            f"{sure:.0%} of their resamples; more training data (or a larger --val-fraction) would tell"
        )
    about: dict[str, Any] = {
        "speedup": None,
        "shrink": None,
        "removed": removed,
        "tried": len(trials),
        "members": len(found),
        "teaching": teaching,
        "practice": compression.work.read("practice"),
    }
    candidate = compression.check(
        path,
        about
        | {"mixed": mixed, "hard_attention": hard, "offsets": offsets, "gain_in_resamples": sure, "epochs": history},
    )
    compression.work.add(candidate)
    return [candidate]


def _without_harm(compression: Compression, student: Student) -> tuple[Student, list[Trial]]:
    """The student without what does harm, and what was tried."""
    rows = generator(compression.options.seed, Stream.MEANS).permutation(len(compression.train.ids))[:512]
    means = collect(student, compression.train, rows, compression.options.seed, with_moments=False).means
    held = Held(student, compression.validation)
    few = generator(compression.options.seed, Stream.RANKING).permutation(len(held))[: _ranked(compression, student)]
    parts = folds(len(held), FOLDS, compression.options.seed)
    keep, trials = gains(
        held,
        compression.data.task,
        means,
        parts,
        seed=compression.options.seed,
        ranking=Held(student, compression.validation, np.sort(few)),
        progress=lambda done, total, text: compression.progress(0.8 + 0.05 * done / total, text),
    )
    return (shrunk(student, keep, means) if any(t.accepted for t in trials) else student), trials


def _ranked(compression: Compression, student: Student) -> int:
    """Texts for the order of all elements' removals, of which each takes a forward pass: a third of a step's time."""
    plan = compression.work.read("practice")
    text_s = plan["pace_s"] / (3 * compression.options.batch_size)
    elements = len(elements_of(student.spec))
    return int(np.clip(RANKING_SHARE * compression.options.budget / (elements * text_s), *RANKED))


def _hard_attention(compression: Compression, student: Student) -> list[int]:
    """Layers of the student that attend to their best-matching keys from now on."""
    validation = compression.validation
    labels, rng = validation.labels, generator(compression.options.seed, Stream.HARD_ATTENTION)
    assert labels is not None
    if not any(len(text) > HARD_KEEP for text in validation.ids):
        return []

    def losses() -> np.ndarray:
        return calibrated_losses(predict(student, validation.ids, validation.types), labels)

    parts = folds(len(validation.ids), FOLDS, compression.options.seed)
    sure = 1 - (1 - SURE) / len(student.spec.layers)  # as in `gains`: each layer is another try
    kind, taken, before = SignKind(HARD_KEEP, HARD_KEEP + 1, rest=False), list[int](), losses()
    for i, layer in enumerate(student.spec.layers):
        if not layer.num_heads or layer.head_dim > MAX_SIGN_DIM:
            continue
        compression.progress(0.85, f"hard attention in layer {i}")
        with_sign_attention(student, dict.fromkeys([*taken, i], kind), compression.separators())
        after = losses()
        difference = after - before
        if (
            max(float(difference[fold].mean()) for fold in parts) < 0
            and bootstrap_share(difference, RESAMPLES, rng) >= sure
        ):
            taken, before = [*taken, i], after
    with_sign_attention(student, dict.fromkeys(taken, kind), compression.separators() if taken else ())
    return taken


def _soup(compression: Compression, members: list[Student]) -> tuple[Student, list[int]]:
    """(what the student begins with, the members whose mean it is): of members and their means what validates best.

    The checkpoint, which is the first, is another start than theirs, and no mean takes it in. It stays where it is
    surely better: by a little it looks so anyway, as its epoch was chosen by the same validation examples.
    """
    student, weights = compression.dense(), [_copy(member) for member in members]

    def loss(chosen: list[int]) -> float:
        _put(student, _mean([weights[i] for i in chosen]))
        return float(_losses(compression, student).mean())

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
    _put(student, _mean([weights[i] for i in best]))
    rng = generator(compression.options.seed, Stream.STARTING_POINT)
    difference = _losses(compression, members[0]) - _losses(compression, student)
    if bootstrap_share(difference, RESAMPLES, rng) >= SURE:
        best = [0]
        _put(student, weights[0])
    return student, best


def _ensemble(compression: Compression, members: list[Student]) -> list[int]:
    """Trained members whose mean logits validate best, found one by one from the best (Caruana et al. 2004)."""
    validation = compression.validation
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


def _learn(compression: Compression, student: Student, members: list[Student]) -> list[dict[str, Any]]:
    """Train the student; it ends with the weights that validate best. Returns what each epoch gave."""
    teachers = [*members, *compression.teachers()[1:]]
    options = training_options(compression, compression.options.seed)
    options = dataclasses.replace(options, lr=0.5 * options.lr)
    recovery_steps = -(-len(compression.train.ids) // options.batch_size)
    room = (compression.options.budget - compression.elapsed()) / compression.work.read("practice")["pace_s"]
    # The ensemble's answers to all of train take a forward pass of each: a third of a step's time.
    epochs = min(compression.options.epochs or STUDENT_EPOCHS, room / recovery_steps - len(teachers) / 3)
    if len(teachers) < 2 or epochs < min(1.0, compression.options.epochs or 1.0):
        why = "one model is no ensemble" if len(teachers) < 2 else "the budget has no room for an epoch"
        compression.note(f"the student does not learn from the ensemble: {why}")
        return [_validated(compression, student, 0)]
    teacher = teach(teachers, compression.full_train.ids, compression.full_train.types, with_hidden=False)
    recovery = Recovery(student, compression.train, teacher, round(epochs * recovery_steps), options)
    history = [_validated(compression, student, 0)]
    candidates, tail = [_copy(student)], list[dict[str, torch.Tensor]]()
    while recovery.step < recovery.steps:
        loss = recovery.advance()
        share = 0.85 + 0.15 * recovery.step / recovery.steps
        compression.progress(share, f"learning from the ensemble, loss {loss:.3f}")
        if recovery.step % max(1, recovery_steps // 2) == 0 and 2 * recovery.step >= recovery.steps:
            tail.append(_copy(student))
        if recovery.step % recovery_steps == 0 or recovery.step == recovery.steps:
            history.append(_validated(compression, student, recovery.step))
        if compression.elapsed() > compression.options.budget:
            compression.note(f"the budget ended after {recovery.step} of {recovery.steps} steps of the student")
            break
    learnt = _mean([*tail, _copy(student)])
    candidates += [learnt, _mean([candidates[0], learnt])]
    losses = []
    for weights in candidates:
        _put(student, weights)
        losses.append(float(_losses(compression, student).mean()))
    _put(student, candidates[int(np.argmin(losses))])
    history.append(_validated(compression, student, recovery.step) | {"candidates": losses})
    return history


def _validated(compression: Compression, student: Student, step: int) -> dict[str, Any]:
    validation = compression.validation
    logits = predict(student, validation.ids, validation.types)
    assert validation.labels is not None
    metrics = compute_metrics(compression.data.task, logits, validation.labels)
    return {"step": step, "metrics": metrics, "loss": calibrated_loss(logits, validation.labels)}


def _losses(compression: Compression, student: Student) -> np.ndarray:
    """Of each validation example, at the temperature that suits the student best."""
    validation = compression.validation
    assert validation.labels is not None
    return calibrated_losses(predict(student, validation.ids, validation.types), validation.labels)


def _offsets(compression: Compression, student: Student) -> list[float] | None:
    """What is added to the last bias, where the metric rises by it; None where it does not, or there are no classes."""
    validation = compression.validation
    assert validation.labels is not None
    if validation.labels.dtype.kind == "f":
        return None
    compression.progress(1.0, "placing the border between the classes")
    metric = get_task(compression.data.task).metrics[0]
    logits = predict(student, validation.ids, validation.types)
    rng = generator(compression.options.seed, Stream.THRESHOLD)
    parts = folds(len(validation.labels), FOLDS, compression.options.seed)
    _, share = gain_of_offsets(metric, logits, validation.labels, parts, RESAMPLES, rng)
    if share < LIKELY:
        return None
    offsets = logit_offsets(metric, logits, validation.labels)
    with torch.no_grad():
        student.weight("head.out.bias").add_(torch.from_numpy(offsets))
    return [float(offset) for offset in offsets]


def _certainty(compression: Compression, student: Student) -> float:
    """Share of validation's resamples in which the student beats the checkpoint (of scores: in squared errors)."""
    validation = compression.validation
    assert validation.labels is not None
    before = compression.work.load_array("baseline_logits")
    after = predict(student, validation.ids, validation.types)
    rng = generator(compression.options.seed, Stream.CERTAINTY)
    if validation.labels.dtype.kind == "f":
        errors = [sample_losses(outputs, validation.labels) for outputs in (before, after)]
        return bootstrap_share(errors[1] - errors[0], RESAMPLES, rng)
    metric = get_task(compression.data.task).metrics[0]
    return metric_gain(metric, before, after, validation.labels, RESAMPLES, rng)[1]


def _copy(student: Student) -> dict[str, torch.Tensor]:
    return {name: student.weight(name).detach().clone() for name in student.names()}


def _mean(weights: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([w[name] for w in weights]).mean(0) for name in weights[0]}


def _put(student: Student, weights: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, value in weights.items():
            student.weight(name).copy_(value)
