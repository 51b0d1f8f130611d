"""The task's data as a compression needs it: training examples, and validation that selects; dev is never looked at."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.files import read_config
from approxrt.errors import DataError, InputError
from approxrt.models.checkpoint import Checkpoint
from approxrt.random import Stream, generator
from approxrt.tasks.format import PLAIN, DataFormat
from approxrt.tasks.groups import held_out_groups
from approxrt.tasks.metrics import compute_metrics
from approxrt.tasks.readers import TEXT_SUFFIXES, Dataset, read_task, read_texts, require_split
from approxrt.tasks.registry import Task, get_task, refuse_per_token
from approxrt.training.finetune import split_data
from approxrt.training.options import FinetuneOptions


@dataclass(frozen=True)
class TaskData:
    """Texts and labels, split; `seen` says that the checkpoint was trained on what validates it.

    `form` is how the files are laid out, for those that are read later.
    """

    task: Task
    train: Dataset
    validation: Dataset
    seen: bool
    form: DataFormat = PLAIN

    @property
    def embeds(self) -> bool:
        return self.task.truth == "vectors"

    @property
    def classifies(self) -> bool:
        return self.train.label_names is not None

    def metrics(self, outputs: np.ndarray, baseline: np.ndarray, labels: np.ndarray | None = None) -> dict[str, float]:
        """The task's metrics of `outputs` [n, k] on validation (or for `labels`), the selecting one first.

        For an embedder the baseline's outputs are the truth: see `vector_agreement`.
        """
        if self.embeds:
            return vector_agreement(outputs, baseline)
        return compute_metrics(self.task, outputs, self.validation.labels if labels is None else labels)


def vector_agreement(vectors: np.ndarray, baseline: np.ndarray) -> dict[str, float]:
    """Return how alike two embeddings [n, hidden] of the same texts are.

    cosine        mean cosine of each text's two vectors
    top1, top10   retrieval: share of each text's nearest (10 nearest) other texts by `baseline` that `vectors` finds
    """
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (vectors, baseline))
    ours, theirs = a @ a.T, b @ b.T
    np.fill_diagonal(ours, -np.inf)
    np.fill_diagonal(theirs, -np.inf)
    count = min(10, len(a) - 1)
    near = [np.argsort(-x, axis=1, kind="stable")[:, :count] for x in (ours, theirs)]
    overlap = [len(np.intersect1d(x, y)) / count for x, y in zip(*near, strict=True)]
    return {
        "cosine": float(np.mean(np.sum(a * b, axis=1))),
        "top1": float(np.mean(near[0][:, 0] == near[1][:, 0])),
        "top10": float(np.mean(overlap)),
    }


@dataclass(frozen=True)
class DataOptions:
    """Options of reading and splitting training data: the share that validates, the seed, at most `limit` examples."""

    seed: int
    val_fraction: float
    limit: int | None = None
    form: DataFormat = PLAIN


def read_data(
    task: str | Task, data: str | os.PathLike[str], checkpoint: Checkpoint, folder: Path, options: DataOptions
) -> TaskData:
    """Read `data`/train and split it.

    A checkpoint that `approxrt finetune` wrote names its own split, which is used again, so that validation is data
    that neither the teacher nor the model has learnt from. Raises DataError for constant labels or a class that
    validation lacks, InputError for a head that does not fit the task.
    """
    spec = checkpoint.spec
    task = get_task(task)
    refuse_per_token(task, "this command")
    if spec.per_token:
        raise InputError(
            f"checkpoint {str(folder)!r} is for {spec.task_type}, which can be converted, fine-tuned and evaluated, "
            f"but not analysed or compressed for task {task.name}: use approxrt convert"
        )
    if task.truth == "vectors":
        return _embedder_data(task, data, checkpoint, folder, options)
    if task.truth == "text":
        raise InputError(f"task {task.name} is for decoders; checkpoint {str(folder)!r} is an encoder")
    if not spec.labels:
        raise InputError(
            f"checkpoint {str(folder)!r} has no head for task {task.name}; fine-tune it first "
            "(approxrt finetune), or compress it as an embedder with --task embed"
        )
    regression = spec.task_type == "regression"
    if task.regression is not None and task.regression != regression:
        wanted = "scores" if task.regression else "classes"
        raise InputError(
            f"task {task.name} has {wanted}; the checkpoint's head is for {spec.task_type} "
            f"with {len(spec.labels)} output(s): fine-tune one for this task"
        )
    names = None if regression else spec.labels
    file = Path(data) if Path(data).is_file() else require_split(data, "train")
    whole = read_task(task, file, names, regression, options.form)
    if spec.inputs != "any" and (spec.inputs == "pair") != whole.is_pair:
        sort = "pairs" if whole.is_pair else "single texts"
        raise InputError(f"the data has {sort}; the checkpoint takes {spec.inputs} inputs")
    own = _finetuned_split(folder, task)
    if own is not None:
        trained = FinetuneOptions(
            seed=own["seed"],
            val_fraction=own["val_fraction"],
            limit=own.get("limit"),
            split=own["split"],
        )
        train, validation = split_data(whole, trained)
        if options.limit is not None:
            train = train.subset(generator(options.seed, Stream.LIMIT).permutation(len(train))[: options.limit])
    else:
        train, validation = _split(whole, options)
    _check_labels(train, validation)
    return TaskData(task, train, validation, own is None, options.form)


def _embedder_data(
    task: Task, data: str | os.PathLike[str], checkpoint: Checkpoint, folder: Path, options: DataOptions
) -> TaskData:
    if checkpoint.spec.labels:
        raise InputError(
            f"checkpoint {str(folder)!r} is a {checkpoint.spec.task_type} model, not an embedder: name its task instead"
        )
    file = Path(data) if Path(data).is_file() else require_split(data, "train", TEXT_SUFFIXES)
    texts = read_texts(file, options.form)
    whole = Dataset(texts, np.zeros(len(texts), np.float32), None)
    train, validation = _split(whole, options)
    if len(validation) < 12:
        raise DataError(
            f"validation has {len(validation)} texts; retrieval needs at least 12: "
            "use more data or a larger --val-fraction"
        )
    return TaskData(task, train, validation.subset(np.arange(min(len(validation), 2000))), False, options.form)


def _finetuned_split(folder: Path, task: Task) -> dict[str, Any] | None:
    path = folder / "finetune.json"
    if not path.is_file():
        return None
    try:
        report = read_config(path)
        # Reports from before there was a choice do not name it.
        options = {"split": "random"} | dict(report["options"])
        return options if report["task"] == task.name and {"seed", "val_fraction"} <= set(options) else None
    except (ValueError, KeyError, TypeError, OSError):
        return None


def _split(data: Dataset, options: DataOptions) -> tuple[Dataset, Dataset]:
    """Drawn by the seed: whole groups of texts that are parts of one another; else of every class the same share."""
    seed, val_fraction = options.seed, options.val_fraction
    order = generator(seed, Stream.SPLIT).permutation(len(data))[: options.limit]
    if len(order) < 4:
        raise DataError(f"the training data has {len(order)} examples; at least 4 are needed")
    rows = np.sort(order)
    found = held_out_groups(data.subset(rows), round(val_fraction * len(rows)), [seed, 3])
    classes = [order] if data.label_names is None else [order[data.labels[order] == c] for c in np.unique(data.labels)]
    held = (
        np.concatenate([g[: max(1, round(val_fraction * len(g)))] for g in classes]) if found is None else rows[found]
    )
    train = np.setdiff1d(order, held)
    if not len(train):
        raise DataError(f"val_fraction {val_fraction} leaves no example to train on")
    return data.subset(np.sort(train)), data.subset(np.sort(held))


def _check_labels(train: Dataset, validation: Dataset) -> None:
    for name, part in (("training", train), ("validation", validation)):
        if part.label_names is None:
            if len(part) < 2 or np.ptp(part.labels) == 0:
                raise DataError(f"the {name} data has one score only; nothing can be measured with it")
            continue
        present = np.unique(part.labels)
        if len(present) < 2:
            shown = ", ".join(part.label_names[i] for i in present)
            raise DataError(
                f"the {name} data ({len(part)} examples) has one class only ({shown}); at least two are needed: "
                "use more data, or a larger --val-fraction"
            )


def folds(count: int, parts: int, seed: int) -> list[np.ndarray]:
    """Rows of `parts` disjoint folds of `count` examples."""
    order = generator(seed, Stream.FOLDS).permutation(count)
    return [np.sort(part) for part in np.array_split(order, parts)]
