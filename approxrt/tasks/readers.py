"""Data files to texts and labels: GLUE's .tsv, .csv and .jsonl. Every error names the file and the line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from approxrt.errors import DataError, InputError
from approxrt.tasks.format import PLAIN, DataFormat
from approxrt.tasks.labels import are_scores, check_present, class_numbers, classes_of, scores
from approxrt.tasks.registry import Task, get_task, refuse_per_token
from approxrt.tasks.rows import SUFFIXES, numbered_lines, read_file, read_rows

__all__ = ["SUFFIXES", "TEXT_SUFFIXES", "DataFormat", "Dataset", "Text", "find_split", "read_task", "read_texts"]

Text = str | tuple[str, str]

TEXT_SUFFIXES = (".txt", *SUFFIXES)
SPLITS = {"train": ("train",), "dev": ("dev", "validation", "valid", "val"), "test": ("test",)}


@dataclass(frozen=True)
class Dataset:
    """Texts with their labels.

    texts        str, or (str, str) for pairs; all of one sort
    labels       int64[n] class numbers, or float32[n] scores
    label_names  the class names by number; None for regression
    """

    texts: list[Text]
    labels: np.ndarray
    label_names: tuple[str, ...] | None

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def is_pair(self) -> bool:
        return isinstance(self.texts[0], tuple)

    def subset(self, rows: Sequence[int] | np.ndarray) -> Dataset:
        """The given rows, in that order."""
        return Dataset([self.texts[i] for i in rows], self.labels[np.asarray(rows, int)], self.label_names)


def find_split(folder: str | os.PathLike[str], split: str, suffixes: Sequence[str] = SUFFIXES) -> Path | None:
    """The file of a split ("train", "dev" or "test") in a data folder, in any capitals; None when there is none."""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"data folder {str(root)!r} does not exist or is not a folder")
    names = [f"{n}{s}" for n in SPLITS[split] for s in suffixes]
    found = sorted((path for path in root.iterdir() if path.name.lower() in names and path.is_file()), key=str)
    if len(found) > 1:
        raise DataError(f"{str(root)!r} has more than one {split} file: {', '.join(p.name for p in found)}; keep one")
    return found[0] if found else None


def require_split(folder: str | os.PathLike[str], split: str, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """Do as `find_split`, but a missing file is a DataError that says which names were looked for."""
    path = find_split(folder, split, suffixes)
    if path is None:
        names = ", ".join(f"{n}{s}" for n in SPLITS[split] for s in suffixes)
        raise DataError(f"data folder {str(folder)!r} has no {split} file; looked for {names}")
    return path


def read_task(
    task: str | Task,
    path: str | os.PathLike[str],
    label_names: Sequence[str] | None = None,
    regression: bool | None = None,
    form: DataFormat = PLAIN,
) -> Dataset:
    """Read one file of a task, laid out as the task's own or as `form` says.

    For `csv` the data decides what it is: numbers of which at least one has a
    fraction are scores, all else are classes, sorted by name (1.0 is class 1),
    unless `label_names`, `regression` or `form` says so. Pass the first two of the
    model or of the training data, so that class numbers agree.

    Raises DataError, and InputError for a model whose labels cannot be the
    task's or a format that contradicts the task or the model.
    """
    task = get_task(task)
    refuse_per_token(task, "a file of texts and labels")
    file = Path(path)
    wanted = _wants_scores(task, regression, form)
    rows = list(read_rows(task, file, form))
    if not rows:
        raise DataError(f"{file}: no examples in it: add rows below the header")
    texts: list[Text] = []
    for row in rows:
        if (row.text_pair is None) != (rows[0].text_pair is None):
            raise DataError(f"{file}:{row.line}: some examples are pairs and some are single texts: make them alike")
        texts.append(row.text if row.text_pair is None else (row.text, row.text_pair))
    labels = [(row.line, row.label) for row in rows]
    check_present(file, labels, label_names or ())
    if wanted is None:
        wanted = label_names is None and are_scores(file, labels)
    if wanted:
        return Dataset(texts, scores(file, labels), None)
    classes = classes_of(task, label_names, file, labels)
    return Dataset(texts, class_numbers(file, labels, classes), classes.names)


def read_texts(path: str | os.PathLike[str], form: DataFormat = PLAIN) -> list[Text]:
    """Texts without labels, for embedders: one a line (.txt), or the columns `text` and, for pairs, `text_pair`.

    Raises DataError naming the file and, where there is one, the line.
    """
    file = Path(path)
    if form.label_column is not None:
        raise InputError(f"label_column is {form.label_column!r}; texts without labels are read: leave it out")
    if file.suffix.lower() == ".txt":
        if form != PLAIN:
            raise InputError(f"{file} is plain text, one a line: it has no columns, quotes or labels to name")
        texts: list[Text] = [line.strip() for _, line in numbered_lines(read_file(file))]
    else:
        name = form.text_column or "text"
        # The text stands in for the label, which is not looked at.
        rows = read_rows(Task("embed", "any", name, "text_pair", name, ()), file, form)
        texts = [row.text if row.text_pair is None else (row.text, row.text_pair) for row in rows]
    if not texts:
        raise DataError(f"{file}: no texts in it: give at least one")
    return texts


def _wants_scores(task: Task, regression: bool | None, form: DataFormat) -> bool | None:
    """Tell whether labels are scores, as far as the task, the caller and the format say; they must agree."""
    wanted = task.regression if regression is None else regression
    if form.regression is None or form.regression == wanted:
        return wanted
    if wanted is not None:
        kinds = {True: "scores", False: "classes"}
        who = f"task {task.name} has" if task.regression is not None else "the model is for"
        raise InputError(f"regression is {form.regression}; {who} {kinds[wanted]}: leave it out")
    return form.regression
