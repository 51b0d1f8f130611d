"""Members of an ensemble: models of the checkpoint's size, practised on the task's texts and trained on its labels.

All begin with the weights that replaced-token detection (`approxrt.training.replaced_token`) left, and differ in the
order of the examples and in dropout. They end near each other, so that the mean of their weights is a model, too.
"""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch

from approxrt.compression.families.encoder import EncoderFamily
from approxrt.compression.records import EnsemblePlan
from approxrt.compression.state import Work
from approxrt.torch_models.encoder import TorchEncoder
from approxrt.training.distillation import Distillation, DistillationOptions
from approxrt.training.replaced_token import DetectionTexts, ReplacedTokenDetection
from approxrt.training.teacher import Teacher

PRACTICE_EPOCHS = 6.0
PRACTICE_SHARE = 0.35  # of the budget, at most
DETECTION_TOKENS = 64  # of a text (or pair) whose replaced tokens are found: changes show in the words around them
PACE_STEPS = 24  # after as many the pace is known
MEMBERS = 4
MEMBER_EPOCHS, LEAST_EPOCHS = 4.0, 3.0  # rather one member less than fewer epochs each
MEMBERS_END = 0.8  # of the budget

_NONE = np.zeros((0, 0), np.float32)


def members(family: EncoderFamily) -> list[TorchEncoder]:
    """Return the checkpoint as the artifact would hold it, and as many trained members as there is time for."""
    job, train = family.job, family.inputs.pruned.train
    practised, plan = _practised(family)
    plain = _no_teacher(family)
    plan = _planned(family, plan)
    assert plan.members is not None and plan.member_steps is not None
    if plan.members < MEMBERS:
        job.notes.add(f"the budget has room for {plan.members} of {MEMBERS} members")
    out = [family.model()]
    for number in range(plan.members):
        name, member = f"member-{number}", family.model()
        if not load_weights(job.work, name, member):
            _put(practised, member)
            options = dataclasses.replace(training_options(family, 1000 * (job.seed + 1) + number), teacher_share=0.0)
            recovery = Distillation(member, train, plain, plan.member_steps, options)
            while recovery.step < recovery.steps:
                loss = recovery.advance()
                share = 0.35 + 0.45 * (number + recovery.step / recovery.steps) / plan.members
                job.recipe_progress(share, f"member {number + 1}/{plan.members}, loss {loss:.3f}")
            save_weights(job.work, name, member)
            plan = dataclasses.replace(plan, seconds=job.budget.elapsed())
            job.work.save("ensemble", plan)
        out.append(member)
    return out


def save_weights(work: Work, name: str, model: TorchEncoder) -> None:
    """Keep a trained model's weights in the work folder."""
    trained = {key: model.weight(key).detach() for key in model.names() if model.weight(key).requires_grad}
    work.save_tensors(name, trained)


def load_weights(work: Work, name: str, model: TorchEncoder) -> bool:
    """Put kept weights into a model; false where there are none."""
    kept = work.load_tensors(name)
    if kept is None:
        return False
    with torch.no_grad():
        for key, value in kept.items():
            model.weight(key).copy_(value)
    return True


def _planned(family: EncoderFamily, plan: EnsemblePlan) -> EnsemblePlan:
    """Return how many members there will be, and the steps of each. Decided once: a resumed run keeps to it."""
    if plan.members is not None:
        return plan
    job, train = family.job, family.inputs.pruned.train
    epoch = -(-len(train.ids) // job.options.batch_size)
    pace = _pace(family)
    room = max(0.0, (MEMBERS_END * job.options.budget - job.budget.elapsed()) / (epoch * pace))
    count = min(MEMBERS, max(1, int(room / LEAST_EPOCHS)))
    steps = max(1, round(min(MEMBER_EPOCHS, room / count) * epoch))
    plan = dataclasses.replace(plan, members=count, member_steps=steps, pace_s=pace)
    job.work.save("ensemble", plan)
    return plan


def _pace(family: EncoderFamily) -> float:
    """Seconds that a step on labels takes, of a few."""
    options = dataclasses.replace(training_options(family, family.job.seed), teacher_share=0.0)
    trial = Distillation(family.model(), family.inputs.pruned.train, _no_teacher(family), 1000, options)
    trial.advance()
    began = time.monotonic()
    for _ in range(PACE_STEPS):
        trial.advance()
    return (time.monotonic() - began) / PACE_STEPS


def _no_teacher(family: EncoderFamily) -> Teacher:
    """A teacher that says nothing, for training on labels alone."""
    logits = np.zeros((len(family.inputs.pruned.train.ids), family.inputs.spec.num_outputs), np.float32)
    return Teacher(logits, _NONE, (), _NONE, _NONE)


def _practised(family: EncoderFamily) -> tuple[TorchEncoder, EnsemblePlan]:
    """Return (the checkpoint after replaced-token detection, how many steps there were and the seconds until then)."""
    job, model, inputs = family.job, family.model(), family.inputs
    known = job.work.load("ensemble", EnsemblePlan)
    if known is not None and load_weights(job.work, "practised", model):
        job.budget.resume(known.seconds)  # that the interrupted run had taken
        return model, known
    options = training_options(family, job.seed)
    steps = max(1, round(PRACTICE_EPOCHS * -(-len(inputs.pruned.train.ids) // options.batch_size)))
    tokens = min(DETECTION_TOKENS, inputs.source.length)
    texts = DetectionTexts(inputs.data.train.texts, inputs.tokenizer_json, tokens)
    detection = ReplacedTokenDetection(model, texts, steps, options)
    began, room = time.monotonic(), 0.0
    while detection.step < detection.steps:
        loss = detection.advance()
        if detection.step == 1:
            # The first step is slower than others.
            began = time.monotonic()
            room = PRACTICE_SHARE * job.options.budget - job.budget.elapsed()
        elif detection.step <= PACE_STEPS:
            pace = (time.monotonic() - began) / (detection.step - 1)
            detection.steps = min(steps, max(detection.step, round(room / pace)))
        done = detection.step / detection.steps
        job.recipe_progress(0.35 * done, f"replaced-token detection on the texts, loss {loss:.3f}")
    save_weights(job.work, "practised", model)
    plan = EnsemblePlan(detection.step, job.budget.elapsed())
    job.work.save("ensemble", plan)
    return model, plan


def training_options(family: EncoderFamily, seed: int) -> DistillationOptions:
    """Return how models learn from labels here: to the end of the schedule, with dropout."""
    return dataclasses.replace(
        family.training_options(), seed=seed, final_lr=0.0, warmup=0.1, hidden_weight=0.0, dropout=0.1
    )


def _put(source: TorchEncoder, target: TorchEncoder) -> None:
    target.load_state_dict(source.state_dict())
