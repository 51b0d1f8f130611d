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
from approxrt.tasks.groups import held_out_groups
from approxrt.tasks.readers import Dataset, find_split, read_task, require_split
from approxrt.tasks.registry import Task, labelled_task
from approxrt.training.options import REPORT, STATE, Advance, FinetuneOptions

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
    task = labelled_task(task, "fine-tuning")
    _require_packages()
    folder, target = encoder_folder(find_folder(checkpoint)), Path(out)
    # Before hours of training: what comes out must be something that can be converted.
    read_config(folder)
    _check_out(target, resume)
    form = options.data_format
    train, validation = split_data(read_task(task, require_split(data, "train"), form=form), options)
    dev_file = find_split(data, "dev")
    dev = None
    if dev_file is not None:
        dev = read_task(task, dev_file, train.label_names, train.label_names is None, form)
    try:
        from approxrt.training.run import Job, Run

        target.mkdir(parents=True, exist_ok=True)
        run = Run(Job(folder, task, train, validation, target), options, progress or (lambda *_: None))
        if resume:
            run.restore()
        return run.train_and_save(dev)
    except OSError as error:
        raise TrainingError(f"{str(target)!r} cannot be written: {explain_os_error(error)}") from error


def total_steps(data: Dataset, options: FinetuneOptions) -> int:
    """Optimiser steps over all epochs on a training file."""
    return options.epochs * -(-len(split_data(data, options)[0]) // options.batch_size)


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
