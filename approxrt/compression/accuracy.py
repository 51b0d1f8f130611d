"""Objective accuracy: take out what does harm, then learn from an ensemble; the result is int8, so smaller and faster.

1. An ensemble teaches: the checkpoint, further checkpoints if given, and members that are trained on from the
   checkpoint with other seeds and dropout. Averaged logits are better than any member's, and a student can be taught
   most of that (Hinton et al. 2015, arXiv 1503.02531).
2. Removals that lower the held-out loss are accepted by `approxrt.analysis.gain`.
3. The student learns from ensemble and labels; the epoch that does best on validation is kept.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from approxrt.analysis.gain import Trial, bootstrap_share, gains
from approxrt.analysis.removal import Held, shrunk
from approxrt.analysis.statistics import collect
from approxrt.approx import build
from approxrt.approx.recover import Recovery, RecoveryOptions
from approxrt.approx.student import Student, predict, sample_losses
from approxrt.approx.teacher import Teacher, teach
from approxrt.compression.data import folds
from approxrt.compression.work import Candidate
from approxrt.errors import UnsupportedTaskError
from approxrt.tasks.metrics import compute_metrics, primary

if TYPE_CHECKING:
    from approxrt.compression.pipeline import Compression

FOLDS = 4
RANKED = 200  # validation texts that put the candidates in order; all decide
MEMBERS = 3
MEMBER_EPOCHS = 2.0
STUDENT_EPOCHS = 8.0
RESAMPLES = 2000
SURE = 0.95  # share of resamples with a gain from which the report does not warn


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
    student, trials = _without_harm(compression)
    teacher, members = _ensemble(compression)
    history = _learn(compression, student, teacher)
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
    about = {"speedup": None, "shrink": None, "removed": removed, "tried": len(trials), "members": members}
    candidate = compression.check(path, about | {"gain_in_resamples": sure, "epochs": history})
    compression.work.add(candidate)
    return [candidate]


def _without_harm(compression: Compression) -> tuple[Student, list[Trial]]:
    """The student without what does harm, and what was tried."""
    student = compression.dense()
    rows = np.random.default_rng([compression.options.seed, 17]).permutation(len(compression.train.ids))[:512]
    means = collect(student, compression.train, rows, compression.options.seed, with_moments=False).means
    held = Held(student, compression.validation)
    few = np.random.default_rng([compression.options.seed, 23]).permutation(len(held))[:RANKED]
    parts = folds(len(held), FOLDS, compression.options.seed)
    keep, trials = gains(
        held,
        compression.data.task,
        means,
        parts,
        seed=compression.options.seed,
        ranking=Held(student, compression.validation, np.sort(few)),
        progress=lambda done, total, text: compression.progress(0.1 * done / total, text),
    )
    return (shrunk(student, keep, means) if any(t.accepted for t in trials) else student), trials


def _ensemble(compression: Compression) -> tuple[Teacher, int]:
    """Averaged targets of the checkpoint, further teachers and trained members; and how many taught."""
    models = compression.teachers()
    # Enough given teachers need no members of our own.
    wanted = max(0, MEMBERS + 1 - len(models))
    plain = Teacher(
        np.zeros((len(compression.train.ids), compression.spec.num_outputs), np.float32), _NONE, (), _NONE, _NONE
    )
    for number in range(wanted):
        name = f"member-{number}"
        member = compression.dense()
        if not compression.work.load_weights(name, member):
            options = _options(compression, seed=1000 * (compression.options.seed + 1) + number)
            options = dataclasses.replace(options, teacher_share=0.0, hidden_weight=0.0, dropout=0.1)
            steps = round(MEMBER_EPOCHS * -(-len(compression.train.ids) // options.batch_size))
            recovery = Recovery(member, compression.train, plain, steps, options)
            while recovery.step < recovery.steps:
                loss = recovery.advance()
                share = 0.1 + 0.4 * (number + recovery.step / steps) / wanted
                compression.progress(share, f"ensemble {number + 1}/{wanted}, loss {loss:.3f}")
            compression.work.save_weights(name, member)
        models.append(member)
    return teach(models, compression.full_train.ids, compression.full_train.types, with_hidden=False), len(models)


def _learn(compression: Compression, student: Student, teacher: Teacher) -> list[dict[str, Any]]:
    """Train the student; it ends with the weights of the epoch that validates best. Returns what each epoch gave."""
    options = dataclasses.replace(_options(compression, compression.options.seed), hidden_weight=0.0, dropout=0.1)
    recovery_steps = -(-len(compression.train.ids) // options.batch_size)
    epochs = compression.options.epochs or STUDENT_EPOCHS
    recovery = Recovery(student, compression.train, teacher, round(epochs * recovery_steps), options)
    history = [_validated(compression, student, 0)]
    best, weights = _order(history[0]), _copy(student)
    while recovery.step < recovery.steps:
        loss = recovery.advance()
        share = 0.5 + 0.5 * recovery.step / recovery.steps
        compression.progress(share, f"learning from the ensemble, loss {loss:.3f}")
        if recovery.step % recovery_steps == 0 or recovery.step == recovery.steps:
            history.append(_validated(compression, student, recovery.step))
            if _order(history[-1]) > best:
                best, weights = _order(history[-1]), _copy(student)
    with torch.no_grad():
        for name, value in weights.items():
            student.weight(name).copy_(value)
    return history


def _validated(compression: Compression, student: Student, step: int) -> dict[str, Any]:
    validation = compression.validation
    logits = predict(student, validation.ids, validation.types)
    assert validation.labels is not None
    metrics = compute_metrics(compression.data.task, logits, validation.labels)
    return {"step": step, "metrics": metrics, "loss": float(sample_losses(logits, validation.labels).mean())}


def _certainty(compression: Compression, student: Student) -> float:
    """Share of validation's resamples in which the student errs less than the checkpoint: wrong answers, or squares."""
    validation = compression.validation
    assert validation.labels is not None
    dense = compression.work.load_array("baseline_logits")
    before = _errors(dense, validation.labels)
    after = _errors(predict(student, validation.ids, validation.types), validation.labels)
    return bootstrap_share(after - before, RESAMPLES, np.random.default_rng([compression.options.seed, 29]))


def _errors(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if labels.dtype.kind == "f":
        return sample_losses(outputs, labels)
    return (outputs.argmax(axis=1) != labels).astype(np.float64)


def _order(entry: dict[str, Any]) -> tuple[float, float]:
    return primary(entry["metrics"]), -entry["loss"]


def _copy(student: Student) -> dict[str, torch.Tensor]:
    return {name: student.weight(name).detach().clone() for name in student.names()}


def _options(compression: Compression, seed: int) -> RecoveryOptions:
    return dataclasses.replace(compression.recovery_options(), seed=seed, final_lr=0.0, warmup=0.1)


_NONE = np.zeros((0, 0), np.float32)
