"""Find what of a model its task needs: all measures of significance together, as one JSON document.

Coarse to fine: blocks, then heads and groups of FFN channels by the loss without them
(`approxrt.significance.removal`), beside what second-order statistics predict of it. What only encoders or only
decoders have, and how either is read, is theirs (`approxrt.significance.families`).
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from approxrt.errors import InputError, MissingDependencyError
from approxrt.progress import Progress, Show
from approxrt.runtime.threads import resolve_threads
from approxrt.tasks.format import PLAIN, DataFormat, check_format
from approxrt.tasks.registry import Task, get_task, refuse_per_token

if TYPE_CHECKING:
    from approxrt.significance.family import AnalysisFamily, AnalysisOptions
    from approxrt.significance.removal import Removal

LEAST_SAMPLES = {"labels": 20, "vectors": 20, "text": 2}  # by what is the truth of the task


def analyze(
    checkpoint: str | os.PathLike[str],
    task: str | Task,
    data: str | os.PathLike[str],
    *,
    samples: int = 1000,
    seed: int = 0,
    threads: int | None = None,
    max_length: int = 128,
    val_fraction: float = 0.1,
    data_format: DataFormat = PLAIN,
    device: str = "auto",
    progress: Show | None = None,
) -> dict[str, Any]:
    """Analyse a checkpoint on the training data of its task; a document of plain data.

    samples       texts held out of training that losses are measured on (those without heads or groups of channels on
                  at most 400 of them); as many training texts give statistics. For lm: tokens, in whole pieces of 512
                  (of the model's context, if that is less), as far as the text goes; parts are measured on one piece
    seed          of what is held out and drawn; for lm nothing is
    max_length    tokens that a text (or pair) is cut to
    val_fraction  share of train to hold out, where the checkpoint does not name the texts that it has not learnt from.
                  lm holds out the text's last fifth
    data_format   how the data files are laid out, where otherwise than their task's own
    device        where torch computes: "cpu", "cuda" or "auto"; times are the CPU's

    Keys of the document:
      model       name, architecture, layers, hidden_size, parameters; of encoders also task_type, heads and units (by
                  layer), embedding_parameters
      data        task, samples, part_samples (numbers of texts or tokens; the last for parts of blocks); also of
                  encoders train, validation, seen (the held-out texts may have been trained on), labels {name: share of
                  the samples} (empty for scores), tokens {mean, p95, longest}, seed; of decoders tokens (of the text)
      dense       loss, stderr, metric (its name), value: of the whole model on the samples
      blocks      [{name, layer, kind, loss, change, stderr, metric, metric_change, improved, zero_change,
                  second_order}], in the order of execution. A block is taken out alone and leaves its mean output;
                  zero_change is the loss's change when it leaves nothing (the paper's way)
      heads       the same of each head, with `part` for zero_change, second_order and, of encoders, `fisher`; of
                  decoders only where several share keys and values
      groups      the same; of encoders: each of up to 12 groups of FFN channels, with `neurons` [first, last]; of
                  decoders: each key-value group with its query heads
      ranking     names of the blocks, the least significant first
      seconds     of the whole analysis

    Of encoders alone:
      linears     [{name, tiles, loss, curve}]: curve [[share of tiles kept, share of significance kept]], the best
                  tiles first; loss: predicted increase of the loss when all go
      embeddings  rows, used (by the training texts), used_share, seen (rows of the statistics' texts), unseen_tokens
                  (share of the samples' tokens whose row no training text uses), parameter_share, curve
      latency     cpu, threads, texts, tokens, f32_ms, int8_ms (the whole model, measured), base_ms, correction
                  (measured over predicted), attention and ffn {sizes, densities, ms} of one block
      front       [{speedup, ms, speedup_f32, loss, blocks {name: {size, of, density}}}]: predicted, speedup over the
                  dense int8 model

    Of decoders alone:
      units       as `heads`, of each group of FFN channels, with `units` [first, last]
      weights     of "attention", "ffn" and "head": how many are read for each token that is written

    Losses are in nats a text (of decoders: a token), or squared errors. `second_order` is the predicted increase when
    all other weights make up for the loss as well as they can; `fisher` is the mean square of a gate's gradient.

    Raises InputError, DataError, CheckpointError, UnsupportedTaskError, UnsupportedModelError, MissingDependencyError.
    """
    started = time.monotonic()
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError("torch", "compress", "analysing a model")
    known = get_task(task)
    refuse_per_token(known, "analyze")
    least = LEAST_SAMPLES[known.truth]
    if samples < least:
        raise InputError(f"samples is {samples}; at least {least} are needed")
    if max_length < 1:
        raise InputError(f"max_length is {max_length}; it must be at least 1")
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction is {val_fraction}; it must lie between 0 and 1")
    check_format(data_format)
    # torch is loaded here and not before: refusals cost no second.
    import torch

    from approxrt.significance.family import AnalysisOptions

    count, before = resolve_threads(threads), torch.get_num_threads()
    options = AnalysisOptions(samples, seed, count, max_length, val_fraction, data_format, device)
    show = Progress.of(progress)
    torch.set_num_threads(count)
    try:
        show(0.0, "reading the checkpoint and the data")
        document = document_of(family_for(known)(checkpoint, known, data, options), show)
    finally:
        torch.set_num_threads(before)
    return document | {"seconds": round(time.monotonic() - started, 1)}


def family_for(task: Task) -> Callable[[Any, Task, Any, AnalysisOptions], AnalysisFamily]:
    """Return the function that opens a checkpoint and data as the task's family of models."""
    from approxrt.significance.families.decoder import AnalyzedDecoder
    from approxrt.significance.families.encoder import AnalyzedEncoder

    return AnalyzedDecoder if task.truth == "text" else AnalyzedEncoder


def document_of(family: AnalysisFamily, progress: Progress) -> dict[str, Any]:
    """Measure everything, coarse to fine, and return the document."""
    from approxrt.significance.elements import elements_of
    from approxrt.significance.removal import measure_removals

    elements = elements_of(family.spec)
    blocks = [element for element in elements if element.part is None]
    parts = [element for element in elements if element.part is not None]
    found = family.statistics(progress.part(0.02, 0.15))
    held, end = family.held_out(), family.removals_end
    removed = measure_removals(held, found.means, blocks, progress.part(0.15, 0.2))
    zeroed = measure_removals(held, None, blocks, progress.part(0.2, 0.25)).removals
    of_parts = measure_removals(family.held_out_for_parts(), found.means, parts, progress.part(0.25, end)).removals
    predicted = family.predictions(found, elements)
    document = family.facts()
    document["dense"] = {
        "loss": removed.baseline,
        "stderr": removed.stderr,
        "metric": held.metric_name,
        "value": removed.metric,
    }
    document["blocks"] = [
        _entry(removal) | {"zero_change": zero.change} | predicted[removal.element.name]
        for removal, zero in zip(removed.removals, zeroed, strict=True)
    ]
    for part, rows in family.part_rows.items():
        document[rows.key] = [
            _entry(removal) | _place(family, removal) | predicted[removal.element.name]
            for removal in of_parts
            if removal.element.part == part
        ]
    document["ranking"] = [row["name"] for row in sorted(document["blocks"], key=lambda row: row["change"])]
    return document | family.more(found, progress.part(end, 1.0))


def _entry(removal: Removal) -> dict[str, Any]:
    facts, element = asdict(removal), removal.element
    del facts["element"]
    return {"name": element.name, "layer": element.layer, "kind": element.kind, **facts}


def _place(family: AnalysisFamily, removal: Removal) -> dict[str, Any]:
    """Return which part of its block it is, and its channels."""
    from approxrt.significance.elements import channel_parts

    element, spec = removal.element, family.spec
    name = family.part_rows[element.part or ""].channels
    if name is None:
        return {"part": element.index}
    channels = channel_parts(spec, spec.layers[element.layer].intermediate_size)[element.index]
    return {"part": element.index, name: [int(channels[0]), int(channels[-1])]}
