"""The recipe without training: second-order scores, least-squares refits and GPTQ rounding; minutes, a larger loss.

Rounds of statistics -> scores of tiles (`approxrt.pruning.obs`) -> allocation under the measured table -> pruning ->
refit lead to the target along the same way as training does: statistics that are taken anew after each round are worth
more than anything else (oBERT, Kurtic et al. 2022, arXiv 2203.07259). A tile's score is spread over its weights, so
that heads, FFN channels and tiles are judged in one currency. At last linears are rounded by GPTQ, whose mean error the
biases take over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from approxrt.compression.families.encoder import EncoderFamily
from approxrt.compression.families.pruned_encoder import PrunedEncoder
from approxrt.compression.records import Origin, Provenance
from approxrt.compression.rounds import formats_of, rounds_towards
from approxrt.compression.signs import match_signs
from approxrt.random import Stream, generator
from approxrt.sign_attention.calibrate import with_sign_attention

SENTENCES = 1024
ROUNDS = 4


def one_shot(family: EncoderFamily) -> None:
    """Make the one candidate of the recipe; what is built already is not built again."""
    job, train = family.job, family.inputs.pruned.train
    if job.work.candidates():
        return
    options = job.options
    rows = np.sort(generator(job.seed, Stream.STATISTICS).permutation(len(train.ids))[:SENTENCES])
    table = family.latency_table()
    family.release_peers()  # one candidate will need the fastest of them: minutes from now
    model = family.model()
    signs = match_signs(family, model)
    limits = family.limits(model, options.wanted_speedup, options.wanted_shrink)
    # The calibration of sign matching turns queries and keys, which the model to follow must have turned, too.
    exact = model.twin() if signs.calibrated else family.unchanged()
    with_sign_attention(exact, {}, ())
    subject = PrunedEncoder(model, exact, train.subset(rows), job.seed, formats_of(limits.bytes is not None))
    rounds = rounds_towards(family, subject, table, limits)
    if limits.bytes is not None:
        rounds.noise = subject.noise
    for i in range(ROUNDS):
        show = job.recipe_progress.part(i / (ROUNDS + 1), (i + 1) / (ROUNDS + 1)).named(f"round {i + 1}/{ROUNDS}")
        family.release_file()
        subject.score(i == 0, show.part(0.0, 0.6))
        show(0.6, "choosing what to prune")
        rounds.prune((i + 1) / ROUNDS)
        subject.refit(show.part(0.7, 1.0))
    job.recipe_progress(ROUNDS / (ROUNDS + 1), "rounding")
    kinds = family.kinds(subject.model, rounds.kinds)
    family.release_file()
    tensors_of = subject.round(kinds)
    facts: dict[str, Any] = {"speedup": options.wanted_speedup, "shrink": options.wanted_shrink}
    facts |= {"recipe": "one-shot", "method": "ours", "cuts": rounds.history, "examples": len(rows)}
    facts["attention"] = signs.to_report()
    family.build(subject.model, kinds, Provenance(Origin.PLANNED, facts=facts), tensors_of)
