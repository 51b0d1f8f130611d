"""The paper's algorithm as a compression: what it finds insignificant is built out, the rest becomes int8.

Thresholds by objective: for accuracy those that were published. For speed and size an element may also go if the loss
stays under 1.1 times the best, whatever the number of texts that gain: nearly every removal hurts most texts a little.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from approxrt.compression.families.encoder import EncoderFamily
from approxrt.compression.records import Origin, Provenance
from approxrt.errors import UnsupportedTaskError
from approxrt.random import Stream, generator
from approxrt.significance.encoder_removal import HeldOutLoss, shrunk
from approxrt.significance.paper import Found, Test, search
from approxrt.significance.statistics import collect

TESTS = {"accuracy": Test(), "speed": Test(1.1, None), "size": Test(1.1, None)}
HELD = 1024  # validation texts that decide, at most
STATISTICS = 1024  # training texts that give mean outputs, at most


def paper(family: EncoderFamily) -> None:
    """Run the algorithm on validation data, build the artifact and check it."""
    job, options, train = family.job, family.job.options, family.inputs.pruned.train
    if family.inputs.data.embeds:
        raise UnsupportedTaskError("method paper needs labels, which an embedder's texts do not have: use method ours")
    if job.work.candidates():
        return
    model, test = family.model(), thresholds(options.objective)
    rows = _drawn(len(train.ids), STATISTICS, job.seed)
    job.recipe_progress(0.05, "collecting mean outputs")
    means = collect(model, train.subset(rows), job.seed, with_moments=False).means
    validation = family.inputs.validation
    held = HeldOutLoss(model, validation, _drawn(len(validation.ids), HELD, job.seed))
    found = search(held, means, test, job.recipe_progress.part(0.1, 0.9))
    small = shrunk(model, found.keep, means)
    facts = {"method": "paper", "test": asdict(test), **log_of(found, len(held))}
    family.build(small, family.kinds(small, {}), Provenance(Origin.PLANNED, facts=facts))


def thresholds(objective: tuple[str, ...]) -> Test:
    """The strictest of what the objectives ask for."""
    return min((TESTS[name] for name in objective), key=lambda test: test.threshold)


def log_of(found: Found, texts: int) -> dict[str, Any]:
    """The search as JSON: sizes that are left, losses, every trial."""
    return {
        "texts": texts,
        "dense_loss": found.baseline_loss,
        "loss": found.loss,
        "heads": [len(heads) for heads in found.keep.heads],
        "units": [len(channels) for channels in found.keep.channels],
        "trials": [
            {"element": t.element.name, "loss": t.loss, "best": t.best, "share": t.share, "accepted": t.accepted}
            for t in found.trials
        ],
    }


def _drawn(count: int, most: int, seed: int) -> np.ndarray:
    return np.sort(generator(seed, Stream.STATISTICS).permutation(count)[:most])
