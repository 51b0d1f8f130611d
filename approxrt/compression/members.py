"""Members of an ensemble: models of the checkpoint's size, practised on the task's texts and trained on its labels.

All begin with the weights that practice (`approxrt.training.replaced_token`) left, and differ in the order of the
examples and in dropout. They end near each other, so that the mean of their weights is a model, too.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.torch_models.encoder import Student
from approxrt.training.recovery import Recovery, RecoveryOptions
from approxrt.training.replaced_token import Practice
from approxrt.training.teacher import Teacher

if TYPE_CHECKING:
    from approxrt.compression.pipeline import Compression

PRACTICE_EPOCHS = 6.0
PRACTICE_SHARE = 0.35  # of the budget, at most
PRACTICE_TOKENS = 64  # of a text (or pair) in practice: changes show in the words around them
PACE_STEPS = 24  # after as many the pace is known
MEMBERS = 4
MEMBER_EPOCHS, LEAST_EPOCHS = 4.0, 3.0  # rather one member less than fewer epochs each
MEMBERS_END = 0.8  # of the budget

_NONE = np.zeros((0, 0), np.float32)


def members(compression: Compression) -> list[Student]:
    """The checkpoint as the artifact would hold it, and as many trained members as there is time for."""
    practised, plan = _practised(compression)
    plain = _no_teacher(compression)
    count = _planned(compression, plan)
    if count < MEMBERS:
        compression.note(f"the budget has room for {count} of {MEMBERS} members")
    out = [compression.dense()]
    for number in range(count):
        name, member = f"member-{number}", compression.dense()
        if not compression.work.load_weights(name, member):
            _put(practised, member)
            options = dataclasses.replace(
                training_options(compression, 1000 * (compression.options.seed + 1) + number), teacher_share=0.0
            )
            recovery = Recovery(member, compression.train, plain, plan["member_steps"], options)
            while recovery.step < recovery.steps:
                loss = recovery.advance()
                share = 0.35 + 0.45 * (number + recovery.step / recovery.steps) / count
                compression.progress(share, f"member {number + 1}/{count}, loss {loss:.3f}")
            compression.work.save_weights(name, member)
            plan["seconds"] = compression.elapsed()
            compression.work.write("practice", plan)
        out.append(member)
    return out


def _planned(compression: Compression, plan: dict[str, Any]) -> int:
    """How many members there will be; `plan` gets the steps of each. Decided once: a resumed run keeps to it."""
    if "members" not in plan:
        epoch = -(-len(compression.train.ids) // compression.options.batch_size)
        pace = _pace(compression)
        room = max(0.0, (MEMBERS_END * compression.options.budget - compression.elapsed()) / (epoch * pace))
        count = min(MEMBERS, max(1, int(room / LEAST_EPOCHS)))
        steps = max(1, round(min(MEMBER_EPOCHS, room / count) * epoch))
        plan |= {"members": count, "member_steps": steps, "pace_s": pace}
        compression.work.write("practice", plan)
    return int(plan["members"])


def _pace(compression: Compression) -> float:
    """Seconds that a step on labels takes, of a few."""
    options = dataclasses.replace(training_options(compression, compression.options.seed), teacher_share=0.0)
    trial = Recovery(compression.dense(), compression.train, _no_teacher(compression), 1000, options)
    trial.advance()
    began = time.monotonic()
    for _ in range(PACE_STEPS):
        trial.advance()
    return (time.monotonic() - began) / PACE_STEPS


def _no_teacher(compression: Compression) -> Teacher:
    """A teacher that says nothing, for training on labels alone."""
    logits = np.zeros((len(compression.train.ids), compression.spec.num_outputs), np.float32)
    return Teacher(logits, _NONE, (), _NONE, _NONE)


def _practised(compression: Compression) -> tuple[Student, dict[str, Any]]:
    """(the checkpoint after practice, how many steps there were and the seconds until then)."""
    student, plan = compression.dense(), compression.work.read("practice")
    if plan is not None and compression.work.load_weights("practised", student):
        compression.spent = plan["seconds"]  # that the interrupted run had taken
        return student, plan
    options = training_options(compression, compression.options.seed)
    steps = max(1, round(PRACTICE_EPOCHS * -(-len(compression.train.ids) // options.batch_size)))
    texts = compression.data.train.texts
    tokens = min(PRACTICE_TOKENS, compression.length)
    practice = Practice(student, texts, compression.tokenizer_json, tokens, steps, options)
    began, room = time.monotonic(), 0.0
    while practice.step < practice.steps:
        loss = practice.advance()
        if practice.step == 1:
            # The first step is slower than others.
            began = time.monotonic()
            room = PRACTICE_SHARE * compression.options.budget - compression.elapsed()
        elif practice.step <= PACE_STEPS:
            pace = (time.monotonic() - began) / (practice.step - 1)
            practice.steps = min(steps, max(practice.step, round(room / pace)))
        compression.progress(0.35 * practice.step / practice.steps, f"practice on the texts, loss {loss:.3f}")
    plan = {"steps": practice.step, "seconds": compression.elapsed()}
    compression.work.save_weights("practised", student)
    compression.work.write("practice", plan)
    return student, plan


def training_options(compression: Compression, seed: int) -> RecoveryOptions:
    """How students learn from labels here: to the end of the schedule, with dropout."""
    return dataclasses.replace(
        compression.recovery_options(), seed=seed, final_lr=0.0, warmup=0.1, hidden_weight=0.0, dropout=0.1
    )


def _put(source: Student, target: Student) -> None:
    target.load_state_dict(source.state_dict())
