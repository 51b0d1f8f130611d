"""Run one compression, of whatever family: resume, baseline, the recipe's rounds and trainings, and the choice.

Everything that decides the next step is on disk (`approxrt.compression.state`), so an interrupted run goes on; every
stage leaves a finished artifact, so the best so far is never lost. What is promised is checked on the built artifact
(`approxrt.compression.measure`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from approxrt.compression.families.decoder import DecoderFamily
from approxrt.compression.families.encoder import EncoderFamily
from approxrt.compression.recipes.accuracy import more_accurate
from approxrt.compression.recipes.decoder import decoder
from approxrt.compression.recipes.gradual import gradual
from approxrt.compression.recipes.magnitude import magnitude
from approxrt.compression.recipes.one_shot import one_shot
from approxrt.compression.recipes.paper import paper
from approxrt.compression.records import Candidate
from approxrt.training.budget import BudgetSpent

AnyFamily = EncoderFamily | DecoderFamily
Recipe = Callable[[Any], None]


def run(family: AnyFamily) -> list[Candidate]:
    """Return the candidates that the recipe makes, in order; at least one."""
    job = family.job
    if job.work.finished:
        return job.work.candidates()
    with _torch_threads(job.threads):
        family.baseline()
        try:
            recipe_of(family)(family)
            job.work.finish()
        except BudgetSpent:
            job.save_clock()
            job.notes.add("the budget ended before the search did; the same command with more of it goes on", False)
    return job.work.candidates()


def recipe_of(family: AnyFamily) -> Recipe:
    """Return the function that makes the candidates that the options ask for."""
    options = family.job.options
    if isinstance(family, DecoderFamily):
        return decoder
    if options.method != "ours":
        return {"paper": paper, "magnitude": magnitude}[options.method]
    if "accuracy" in options.objective:
        return more_accurate
    return one_shot if options.recipe == "one-shot" else gradual


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
