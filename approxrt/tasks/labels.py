"""Labels as files have them, to class numbers or scores; what could mean two things is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from approxrt.errors import DataError, InputError
from approxrt.tasks.registry import Task, plain_label

_WHOLE = re.compile(r"([+-]?[0-9]+)(\.0*)?", re.ASCII)
_GENERIC = re.compile(r"(label_)?([0-9]+)", re.ASCII)
# What tables are written with where a value is missing.
_MISSING = ("nan", "<na>")

# (line, label) of every example
Labels = Sequence[tuple[int, str]]


@dataclass(frozen=True)
class Classes:
    """Names by class number, and the class number of every word that may stand in a file."""

    names: tuple[str, ...]
    words: dict[str, int]

    @property
    def named_by_numbers(self) -> bool:
        """Tell whether a name is a whole number, so that class numbers are not taken."""
        return any(_whole(name) for name in self.names)


def check_present(file: Path, labels: Labels, known: Sequence[str] = ()) -> None:
    """Raise DataError for a label that is missing: empty, or what a table writes for it."""
    missing = [(line, label) for line, label in labels if _is_missing(label) and label not in known]
    if missing:
        line, label = missing[0]
        what = f"is {label!r}, a missing value" if label else "is empty"
        more = f" ({len(missing) - 1} more rows have none)" if len(missing) > 1 else ""
        raise DataError(f"{file}:{line}: the label {what}{more}: write one, or remove the row")


def _is_missing(label: str) -> bool:
    return not label or label.lower() in _MISSING


def are_scores(file: Path, labels: Labels) -> bool:
    """Tell whether all are numbers and at least one has a fraction. Raises DataError for fractions among other
    words."""
    fraction = next(((at, x) for at, x in labels if _number(x) is not None and not _whole(x)), None)
    if fraction is None:
        return False
    for line, label in labels:
        if _number(label) is None:
            raise DataError(
                f"{file}:{line}: label {label!r} is not a finite number, and {fraction[1]!r} (line {fraction[0]}) is a "
                "score: write scores only, or read all of them as classes with regression=False (--classes)"
            )
    return True


def scores(file: Path, labels: Labels) -> np.ndarray:
    """float32 [n]. Raises DataError for what is no finite number."""
    values = []
    for line, label in labels:
        value = _number(label)
        if value is None:
            raise DataError(f"{file}:{line}: label {label!r} is not a finite number, which a score must be")
        values.append(value)
    return np.array(values, np.float32)


def class_numbers(file: Path, labels: Labels, classes: Classes) -> np.ndarray:
    """int64 [n]. Raises DataError for a label that no class has."""
    numbers = []
    for line, label in labels:
        number = classes.words.get(label)
        if number is None:
            # 1.0 is what tables make of 1 where a cell of the column was empty.
            number = classes.words.get(_whole(label) or label)
        if number is None:
            shown = ", ".join(list(classes.words)[:10]) + (" ..." if len(classes.words) > 10 else "")
            ambiguous = _whole(label) is not None and classes.named_by_numbers
            mend = ": where names are numbers, write names, not numbers of classes" if ambiguous else ""
            raise DataError(f"{file}:{line}: unknown label {label!r}; known: {shown}{mend}")
        numbers.append(number)
    return np.array(numbers, np.int64)


def classes_of(task: Task, label_names: Sequence[str] | None, file: Path, labels: Labels) -> Classes:
    """The classes of a task, of a model, or of the file's own labels."""
    if task.labels is not None:
        names = _in_order_of(task, label_names)
        words = {name: names.index(name) for name in task.labels}
        raw = {raw: words[name] for raw, name in zip(task.raw_labels or task.labels, task.labels, strict=True)}
        return Classes(names, words | raw)
    if label_names is None:
        return _own_classes(file, labels)
    names = tuple(label_names)
    words = {name: i for i, name in enumerate(names)}
    if len(words) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"two classes of the model are called {twice!r}: labels cannot tell them apart; rename one")
    numbers = [_whole(name) for name in names]
    if not any(numbers):
        # Classes are also addressed by number, but where a name is one: then a label could mean two classes.
        return Classes(names, {str(i): i for i in range(len(names))} | words)
    return Classes(names, {whole: i for i, whole in enumerate(numbers) if whole and numbers.count(whole) == 1} | words)


def _own_classes(file: Path, labels: Labels) -> Classes:
    """Sorted, as numbers where all are whole; 1 and 1.0 are one class."""
    numeric = all(_whole(label) for _, label in labels)
    first: dict[str, tuple[int, str]] = {}  # by what must not be written in two ways
    for line, label in labels:
        name = (_whole(label) or label) if numeric else label
        key = str(int(name)) if numeric else name.casefold()
        at, other = first.setdefault(key, (line, name))
        if other != name:
            what = "one number in two spellings" if numeric else "different in their capitals alone"
            raise DataError(
                f"{file}:{line}: label {name!r} and label {other!r} (line {at}) are {what}: write them alike"
            )
    names = tuple(sorted((name for _, name in first.values()), key=(lambda x: (int(x), x)) if numeric else None))
    return Classes(names, {name: i for i, name in enumerate(names)})


def _in_order_of(task: Task, label_names: Sequence[str] | None) -> tuple[str, ...]:
    """The task's class names in the order of a model's logits.

    A model may use the task's own names, in any order and writing (POSITIVE, Not-Entailment), or number its classes
    (LABEL_0, 0, ...), which is taken to be GLUE's order. Other names do not say which class is which: an InputError.
    """
    assert task.labels is not None
    if label_names is None:
        return task.labels
    shown = ", ".join(list(label_names)[:8])
    if len(label_names) != len(task.labels):
        raise InputError(
            f"task {task.name} has {len(task.labels)} classes ({', '.join(task.labels)}), "
            f"the model has {len(label_names)} labels ({shown})"
        )
    given = tuple(plain_label(name) for name in label_names)
    own = {plain_label(name): name for name in task.labels}
    if sorted(given) == sorted(own):
        return tuple(own[name] for name in given)
    numbers = [_GENERIC.fullmatch(name) for name in given]
    if all(match is not None and int(match[2]) == i for i, match in enumerate(numbers)):
        return task.labels
    raise InputError(
        f"task {task.name} has the classes {', '.join(task.labels)}; the model's labels ({shown}) do not say which is "
        "which: rename them in the checkpoint's id2label, or read the data with task csv and the model's names"
    )


def _whole(label: str) -> str | None:
    """The whole number that a label is, without a fraction of zeros: 3.0 and 3 give 3. None for all else."""
    match = _WHOLE.fullmatch(label)
    return match[1] if match else None


def _number(label: str) -> float | None:
    try:
        # float() would read 1_000 too.
        value = math.nan if "_" in label else float(label)
    except ValueError:
        value = math.nan
    return value if math.isfinite(value) else None
