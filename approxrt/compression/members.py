"""Members of an ensemble: models of the checkpoint's size, practised on the task's texts and trained on its labels.

All begin with the weights that practice (`approxrt.approx.practice`) left, and differ in the order of the examples and
in dropout. They end near each other, so that the mean of their weights is a model, too.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.approx.practice import Practice
from approxrt.approx.recover import Recovery, RecoveryOptions
from approxrt.approx.student import Student
from approxrt.approx.teacher import Teacher

if TYPE_CHECKING:
    from approxrt.compression.pipeline import Compression

PRACTICE_EPOCHS = 6.0
PRACTICE_SHARE = 0.25  # of the budget, at most
PACE_STEPS = 24  # after as many the pace is known
MEMBERS = 4
MEMBER_EPOCHS = 4.0
MEMBERS_END = 0.65  # of the budget; a third is for what comes after

_NONE = np.zeros((0, 0), np.float32)


def members(compression: Compression) -> list[Student]:
    """The checkpoint as the artifact would hold it, and as many trained members as there is time for."""
    practised, plan = _practised(compression)
    plain = Teacher(
        np.zeros((len(compression.train.ids), compression.spec.num_outputs), np.float32), _NONE, (), _NONE, _NONE
    )
    out, longest, end = [compression.dense()], 0.0, MEMBERS_END * compression.options.budget
    for number in range(MEMBERS):
        name, begin = f"member-{number}", compression.elapsed()
        if number and begin + longest > end:
            compression.note(f"the budget has room for {number} of {MEMBERS} members")
            break
        member = compression.dense()
        if not compression.work.load_weights(name, member):
            _put(practised, member)
            options = dataclasses.replace(
                training_options(compression, 1000 * (compression.options.seed + 1) + number), teacher_share=0.0
            )
            steps = MEMBER_EPOCHS * -(-len(compression.train.ids) // options.batch_size)
            if not number:
                steps = min(steps, (end - begin) / plan["pace_s"])
                plan["member_steps"] = max(1, round(steps))
            recovery = Recovery(member, compression.train, plain, plan["member_steps"], options)
            while recovery.step < recovery.steps:
                loss = recovery.advance()
                share = 0.25 + 0.35 * (number + recovery.step / recovery.steps) / MEMBERS
                compression.progress(share, f"member {number + 1}/{MEMBERS}, loss {loss:.3f}")
            compression.work.save_weights(name, member)
            compression.work.write("practice", plan)
            longest = max(longest, compression.elapsed() - begin)
        out.append(member)
    return out


def _practised(compression: Compression) -> tuple[Student, dict[str, Any]]:
    """(the checkpoint after practice, how many steps there were and how long each took)."""
    student, plan = compression.dense(), compression.work.read("practice")
    if plan is not None and compression.work.load_weights("practised", student):
        return student, plan
    options = training_options(compression, compression.options.seed)
    steps = max(1, round(PRACTICE_EPOCHS * -(-len(compression.train.ids) // options.batch_size)))
    texts = compression.data.train.texts
    practice = Practice(student, texts, compression.tokenizer_json, compression.length, steps, options)
    began = pace = 0.0
    while practice.step < practice.steps:
        loss = practice.advance()
        if practice.step == 1:
            began = time.monotonic()  # the first step is slower than others
        elif practice.step <= PACE_STEPS:
            pace = (time.monotonic() - began) / (practice.step - 1)
            room = PRACTICE_SHARE * compression.options.budget - compression.elapsed()
            practice.steps = min(steps, max(practice.step, practice.step + round(room / pace)))
        compression.progress(0.25 * practice.step / practice.steps, f"practice on the texts, loss {loss:.3f}")
    if pace:
        pace = (time.monotonic() - began) / max(1, practice.step - 1)
    plan = {"steps": practice.step, "pace_s": pace or 1.0}
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
