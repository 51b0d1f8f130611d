"""Fine-tune a checkpoint on a task; torch and transformers do the work.

A validation part is carved from train by the seed, and the epoch that does best
on it is kept. The dev file is looked at once, at the end, and selects nothing.
How a run trains, saves itself and resumes is in `approxrt.training.run`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from approxrt.artifact.layout import explain_os_error
from approxrt.errors import DataError, InputError, MissingDependencyError, TrainingError
from approxrt.models.checkpoint import find_folder, read_config
from approxrt.models.sentence import encoder_folder
from approxrt.models.weights import read_json
from approxrt.tasks.format import PLAIN, DataFormat
from approxrt.tasks.groups import held_out, held_out_groups
from approxrt.tasks.readers import Dataset, find_split, read_task, require_split
from approxrt.tasks.registry import PER_TOKEN_TASKS, Task, get_task, labelled_task
from approxrt.tasks.tokens import TokenData, suffixes_of
from approxrt.tasks.tokens import read as read_tokens
from approxrt.training.options import REPORT, STATE, Advance, FinetuneOptions
from approxrt.training.token_data import groups_of, subset

__all__ = ["FinetuneOptions", "finetune", "split_data", "total_steps"]


def finetune(
    checkpoint: str | os.PathLike[str],
    task: str | Task,
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    options: FinetuneOptions | None = None,
    resume: bool = False,
    progress: Advance | None = None,
) -> dict[str, Any]:
    """Fine-tune `checkpoint` on `data`/train and write a checkpoint to the folder `out`.

    Returns the report that finetune.json holds: options, every epoch's training
    loss and validation metrics, the best epoch, dev metrics where there is a dev
    file. Raises DataError for data that cannot teach the task, InputError for
    wrong options, DeviceError for a GPU that is not there, UnsupportedModelError
    for a model that could not be converted afterwards, TrainingError when the loss stops being a number.
    """
    options = options or FinetuneOptions()
    options.check()
    task = get_task(task)
    if task.truth not in PER_TOKEN_TASKS:
        task = labelled_task(task, "fine-tuning")
    _check_options(task, options)
    _require_packages()
    folder, target = encoder_folder(find_folder(checkpoint)), Path(out)
    # Before hours of training: what comes out must be something that can be converted.
    read_config(folder)
    _check_out(target, resume)
    whole = read_training(task, data, options.data_format)
    train: Any
    validation: Any
    dev: Any
    if isinstance(whole, Dataset):
        train, validation = split_data(whole, options)
        dev = _read_dev(task, data, options, train)
    else:
        train, validation = split_tokens(whole, options)
        dev_file = find_split(data, "dev", suffixes_of(task))
        dev = None if dev_file is None else read_tokens(task, dev_file)
    try:
        from approxrt.training.run import Job, Run
        from approxrt.training.token_run import TokenRun

        target.mkdir(parents=True, exist_ok=True)
        kind = Run if isinstance(whole, Dataset) else TokenRun
        run = kind(Job(folder, task, train, validation, target), options, progress or (lambda *_: None))
        if resume:
            run.restore()
        return run.train_and_save(dev)
    except OSError as error:
        raise TrainingError(f"{str(target)!r} cannot be written: {explain_os_error(error)}") from error


def _check_options(task: Task, options: FinetuneOptions) -> None:
    """Raise InputError for options that the task does not take."""
    if options.label_all_pieces and task.truth != "tags":
        raise InputError(f"label_all_pieces is for task ner, whose words have tags, not for {task.name}: leave it out")
    if task.truth not in PER_TOKEN_TASKS:
        return
    if options.data_format != PLAIN:
        raise InputError(f"data_format is for tables; files of task {task.name} have their own layouts: leave it out")
    if options.qat is not None:
        raise InputError(f"qat is {options.qat}; it is for classifiers of texts, not for {task.name}: leave it out")


def read_training(task: str | Task, data: str | os.PathLike[str], form: DataFormat = PLAIN) -> Dataset | TokenData:
    """The train file of a folder, of texts with labels, words with tags, or questions."""
    task = get_task(task)
    if task.truth in PER_TOKEN_TASKS:
        return read_tokens(task, require_split(data, "train", suffixes_of(task)))
    return read_task(task, require_split(data, "train"), form=form)


def _read_dev(task: Task, data: str | os.PathLike[str], options: FinetuneOptions, train: Dataset) -> Dataset | None:
    file = find_split(data, "dev")
    if file is None:
        return None
    return read_task(task, file, train.label_names, train.label_names is None, options.data_format)


def total_steps(data: Dataset | TokenData, options: FinetuneOptions) -> int:
    """Optimiser steps over all epochs on a training file; of tokens, if each example is one window."""
    if isinstance(data, Dataset):
        count = len(split_data(data, options)[0])
    else:
        count = len(split_tokens(data, options)[0].examples)
    return options.epochs * -(-count // options.batch_size)


def split_tokens(data: TokenData, options: FinetuneOptions) -> tuple[Any, Any]:
    """(train, validation), disjoint, drawn by the seed; with `options.split` "grouped" equal sentences, or questions of
    one context, stay together. Raises DataError where there is nothing to learn.
    """
    if len(data.examples) < 2:
        raise DataError(f"the training data has {len(data.examples)} example; at least 2 are needed")
    order = np.random.default_rng(options.seed).permutation(len(data.examples))[: options.limit]
    train_size, validation_size = _sizes(len(order), options)
    held = order[train_size:]
    if options.split == "grouped":
        rows = np.sort(order)
        found = held_out(groups_of(subset(data, rows)), validation_size, [options.seed])
        held = rows[found] if len(found) else held
    return subset(data, np.setdiff1d(order, held)), subset(data, np.sort(held))


def split_data(data: Dataset, options: FinetuneOptions) -> tuple[Dataset, Dataset]:
    """(train, validation), disjoint, drawn by the seed. Raises DataError where there is nothing to learn.

    With `options.split` "grouped", texts that are parts of one another stay together.
    """
    if len(data) < 2:
        raise DataError(f"the training data has {len(data)} example; at least 2 are needed")
    order = np.random.default_rng(options.seed).permutation(len(data))[: options.limit]
    train_size, validation_size = _sizes(len(order), options)
    held = order[train_size:]
    if options.split == "grouped":
        rows = np.sort(order)
        found = held_out_groups(data.subset(rows), validation_size, [options.seed])
        held = held if found is None else rows[found]
    train, validation = data.subset(np.setdiff1d(order, held)), data.subset(np.sort(held))
    if data.label_names is not None:
        present = np.unique(train.labels)
        if len(present) < 2:
            names = ", ".join(data.label_names[i] for i in present)
            raise DataError(f"the training data has one class only ({names}); at least two are needed")
    return train, validation


def _sizes(examples: int, options: FinetuneOptions) -> tuple[int, int]:
    validation = min(max(1, round(examples * options.val_fraction)), examples - 1)
    return examples - validation, validation


def _require_packages() -> None:
    import importlib.util

    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "compress", "fine-tuning")


def _check_out(out: Path, resume: bool) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{str(out)!r} exists and is not a folder; choose another --out")
    if (out / REPORT).exists():
        done = read_json(out / REPORT).get("task")
        raise InputError(f"{str(out)!r} holds a finished run (task {done}); choose another --out")
    if resume and not out.is_dir():
        raise InputError(f"{str(out)!r} does not exist: there is nothing to resume")
    if not resume and (out / STATE).exists():
        raise InputError(f"{str(out)!r} holds an unfinished run; continue it with --resume, or choose another --out")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{str(out)!r} is not empty; choose another --out")
