"""What a finished compression says of its result, beyond the constraints: notes, and a labelled file's metrics."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.compression.state import Candidate
from approxrt.tasks.examples import encode
from approxrt.tasks.metrics import flip_rate
from approxrt.tasks.readers import Dataset, read_task, read_texts
from approxrt.torch_models.encoder import Student, predict

if TYPE_CHECKING:
    from approxrt.compression.pipeline import Compression


def notes(run: Compression, best: Candidate) -> list[str]:
    """What a reader of the report should know."""
    out = []
    if run.data.seen:
        out.append(
            "validation is part of the training data that the checkpoint may have learnt from: the dense model "
            "then looks better on it than it is, and the drop larger; a checkpoint of `approxrt finetune` names "
            "its own split"
        )
    out += run.noted
    if run.wide_share is not None:
        wide, rows = len(run.embeddings[1]["embeddings.word.wide"]), run.spec.vocab_size
        out.append(
            f"{rows - wide} of the word table's {rows} rows have two bits a weight; the other {wide}, with four, "
            f"are {run.wide_share:.0%} of the words in the training texts"
        )
    if run.spec.vocab_size < run.checkpoint.spec.vocab_size:
        rows, all_rows = run.spec.vocab_size, run.checkpoint.spec.vocab_size
        shared, common = (run.chosen.shared, run.chosen.common) if run.chosen else (False, 0)
        out.append(
            f"{rows} of the vocabulary's {all_rows} pieces have a row of the word table: those that the training "
            f"texts use most{f' and {common} more common ones' if common else ''}; each other piece is read as the one "
            "of them that the model treats most alike"
            if shared
            else f"the vocabulary has {rows} of {all_rows} pieces: those that the training texts use, and all "
            "single characters; other words are split into smaller pieces, none is lost"
        )
    if best.speedup < 1:
        out.append("the artifact is not faster than the fastest float32 engine on this machine")
    return out


def evaluate_dev(run: Compression, artifact: Path, file: Path | None) -> dict[str, Any] | None:
    """Metrics of the dense model and of an artifact on a labelled file, for the report."""
    from approxrt.runtime.loading import load

    if file is None:
        return None
    spec, data = run.checkpoint.spec, run.data
    if data.embeds:
        texts = read_texts(file, data.form)[:2000]
        dataset = Dataset(texts, np.zeros(len(texts), np.float32), None)
    else:
        dataset = read_task(data.task, file, spec.labels if data.classifies else None, not data.classifies, data.form)
    whole = encode(dataset, run.checkpoint.tokenizer_json, run.length)
    dense = predict(Student(spec, run.checkpoint.tensors), whole.ids, whole.types)
    model = load(artifact, threads=run.threads)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # texts over max_length: cut for the dense model, too
        logits = model.embed(dataset.texts, normalize=False) if data.embeds else model.logits(dataset.texts)
    result = {
        "file": file.name,
        "examples": len(dataset),
        "before": data.metrics(dense, dense, dataset.labels),
        "after": data.metrics(logits, dense, dataset.labels),
    }
    return result | {"flip_rate": flip_rate(dense, logits)} if data.classifies else result
