"""The checkpoint of an encoder and its task's data, as the checkpoint reads them and as the artifact to be will.

Where an artifact must be small, its vocabulary keeps the tokens that the task uses and its tables are stored in few
bits: both are decided here, before anything is pruned, so that all that follows sees what the artifact will see.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from approxrt.artifact.spec.encoder import ModelSpec
from approxrt.compression.job import Job
from approxrt.compression.options import CompressOptions
from approxrt.compression.records import VocabularyChoice
from approxrt.errors import InputError
from approxrt.models.checkpoint import Checkpoint, find_folder, load_checkpoint
from approxrt.pruning.structure import refuse_unprunable
from approxrt.quantization import build
from approxrt.quantization.rtn import quantize_rows
from approxrt.significance.workload import sample_texts
from approxrt.tasks.confusion import METRICS
from approxrt.tasks.examples import Examples, encode
from approxrt.tasks.registry import Task
from approxrt.torch_models.encoder import dequantized
from approxrt.training.augmentation import with_more_pairs
from approxrt.training.data import DataOptions, TaskData, read_data
from approxrt.vocabulary.prune import apply_vocabulary, compact_tokenizer, trim_positions
from approxrt.vocabulary.selection import (
    WIDE_SHARE,
    TaskVocabulary,
    VocabularyOptions,
    is_tight,
    resplit_texts,
    small_vocabulary,
    stored_embeddings,
    task_vocabulary,
)

WORKLOAD_TEXTS = 128


@dataclass(frozen=True)
class EncoderSource:
    """Hold what the user gave: the checkpoint, the task's texts, and those that a model learns from (with more
    pairs)."""

    folder: Path
    checkpoint: Checkpoint
    data: TaskData
    texts: TaskData
    length: int

    @property
    def augmented(self) -> bool:
        return self.texts is not self.data


@dataclass(frozen=True)
class Tokenized:
    """The same texts as token ids of one tokenizer; `workload` are those that are timed."""

    train: Examples
    learnt: Examples
    workload: list[list[int]]


@dataclass(frozen=True)
class EncoderInputs:
    """See the module's text.

    own         texts by the checkpoint's tokenizer: what teachers and peers read
    pruned      texts by the artifact's tokenizer
    validation  by the artifact's
    spec, tensors, embeddings   the baseline in float32 with tables' rows as they will be stored, and these tables
    tight       the embedding table takes most of the bytes that are allowed
    wide_share  of all uses of tokens: those whose rows have four bits, while others have two; None for no such table
    """

    source: EncoderSource
    own: Tokenized
    pruned: Tokenized
    validation: Examples
    tokenizer_json: bytes
    spec: ModelSpec
    tensors: Mapping[str, np.ndarray]
    embeddings: build.EmbeddingParts
    vocabulary: TaskVocabulary | None
    tight: bool
    wide_share: float | None

    @property
    def checkpoint(self) -> Checkpoint:
        return self.source.checkpoint

    @property
    def data(self) -> TaskData:
        return self.source.data


def read_source(
    checkpoint: str | os.PathLike[str], task: str | Task, data: str | os.PathLike[str], options: CompressOptions
) -> EncoderSource:
    """Read the checkpoint and the task's data."""
    folder = find_folder(checkpoint)
    loaded = load_checkpoint(folder)
    refuse_unprunable(loaded.spec, loaded.source["name"], "compress")
    reading = DataOptions(options.seed, options.val_fraction, options.limit, options.data_format)
    found = read_data(task, data, loaded, folder, reading)
    measured = found.task.metrics[0]
    if "accuracy" in options.objective and found.classifies and measured not in METRICS:
        raise InputError(
            f"objective accuracy looks for gains of a metric that confusion matrices give ({', '.join(METRICS)}), and "
            f"task {found.task.name} is measured by {measured}: use another objective, or another first metric"
        )
    learns = options.method == "ours" and options.recipe == "train" and "accuracy" not in options.objective
    # What a model learns from; what it is pruned by, and timed on, are the training texts alone.
    more = with_more_pairs(found.train, options.seed) if learns else found.train
    texts = found if more is found.train else dataclasses.replace(found, train=more)
    return EncoderSource(folder, loaded, found, texts, min(options.max_length, loaded.spec.max_length))


def prepare(source: EncoderSource, job: Job) -> EncoderInputs:
    """Choose vocabulary and tables, and tokenise all texts."""
    options, spec, tensors = job.options, source.checkpoint.spec, dict(source.checkpoint.tensors)
    shrink, length, tokenizer = options.wanted_shrink, source.length, source.checkpoint.tokenizer_json
    own = _tokenized(source, tokenizer, options.seed)
    bits = 4 if (shrink or 1) > 4 else 8
    allowed = None if shrink is None else 4 * source.checkpoint.source["parameters"] / shrink
    chosen: TaskVocabulary | None = None
    resplit = None
    if shrink is not None:
        if (options.vocabulary or "task") == "task":
            # A GPU would hold a table of two widths in float32: where bytes are not scarce, it has one width there.
            chosen = _task_vocabulary(source, job, allowed, bits if options.target == "cpu" else 8)
            if not chosen.shared:
                small, kept = small_vocabulary(tokenizer, source.data.train), chosen.vocabulary.kept
                resplit = resplit_texts(small, source.texts.train, kept, own.learnt, length)
            spec, tensors = apply_vocabulary(spec, tensors, chosen.vocabulary)
            tokenizer = chosen.vocabulary.tokenizer_json
        tokenizer = compact_tokenizer(tokenizer)
        spec, tensors = trim_positions(spec, tensors, length)
    pruned = _tokenized(source, tokenizer, options.seed)
    learnt = dataclasses.replace(pruned.learnt, resplit=resplit, labelled=len(source.data.train))
    words = tensors["embeddings.word.weight"]
    if chosen is not None:
        tight, wide_share = chosen.tight, chosen.wide_share
    else:
        tight = is_tight(len(words), words.shape[1], tokenizer, allowed)
        wide_share = WIDE_SHARE if tight else None
    embeddings = stored_embeddings(words, bits, pruned.train.ids, wide_share)
    if shrink is not None:
        q, scale = quantize_rows(tensors["embeddings.position.weight"])
        embeddings[1].update({"embeddings.position.q": q, "embeddings.position.scale": scale})
    # The model reads the rows as they are stored, so training makes up for their rounding.
    stored = build.without_tables(tensors, embeddings) | embeddings[1]
    spec, tensors = dequantized(build.stored_spec(spec, embeddings), stored)
    return EncoderInputs(
        source=source,
        own=own,
        pruned=dataclasses.replace(pruned, learnt=learnt),
        validation=encode(source.data.validation, tokenizer, length),
        tokenizer_json=tokenizer,
        spec=spec,
        tensors=tensors,
        embeddings=embeddings,
        vocabulary=chosen,
        tight=tight,
        wide_share=wide_share,
    )


def separators(tokenizer_json: bytes) -> tuple[int, ...]:
    """Return the ids of the tokens that the tokenizer puts around and between texts."""
    from tokenizers import Tokenizer

    pair = Tokenizer.from_str(tokenizer_json.decode("utf-8")).encode("a", "b")
    return tuple(sorted({i for i, special in zip(pair.ids, pair.special_tokens_mask, strict=True) if special}))


def _tokenized(source: EncoderSource, tokenizer_json: bytes, seed: int) -> Tokenized:
    train = encode(source.data.train, tokenizer_json, source.length)
    learnt = encode(source.texts.train, tokenizer_json, source.length) if source.augmented else train
    return Tokenized(train, learnt, sample_texts(train.ids, WORKLOAD_TEXTS, seed))


def _task_vocabulary(source: EncoderSource, job: Job, allowed: float | None, bits: int) -> TaskVocabulary:
    """Choose it once: an interrupted run goes on with the same."""
    known = job.work.load("vocabulary", VocabularyChoice)
    if known is None:
        job.progress(0.0, "comparing vocabularies")
    shared = None if known is None else known.shared
    options = VocabularyOptions(source.length, allowed, job.seed, bits, shared, job.device)
    chosen = task_vocabulary(source.checkpoint, source.data.train, source.data.validation, options)
    job.work.save("vocabulary", VocabularyChoice(chosen.shared))
    return chosen
