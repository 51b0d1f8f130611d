"""Data files to texts and labels: GLUE's .tsv, .csv and .jsonl. Every error names the file and the line."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from approxrt.errors import DataError, InputError
from approxrt.tasks.registry import Task, get_task

Text = str | tuple[str, str]

SUFFIXES = (".tsv", ".csv", ".jsonl")
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
    """The file of a split ("train", "dev" or "test") in a data folder; None when there is none."""
    root = Path(folder)
    if not root.is_dir():
        raise DataError(f"data folder {str(root)!r} does not exist or is not a folder")
    found = [root / f"{n}{s}" for n in SPLITS[split] for s in suffixes if (root / f"{n}{s}").is_file()]
    if len(found) > 1:
        raise DataError(f"{str(root)!r} has more than one {split} file: {', '.join(p.name for p in found)}; keep one")
    return found[0] if found else None


def require_split(folder: str | os.PathLike[str], split: str, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """As `find_split`, but a missing file is a DataError that says which names were looked for."""
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
) -> Dataset:
    """Read one file of a task.

    For `csv` the data decides what it is (numbers that are not all whole are
    scores, all else are classes, sorted by name), unless `label_names` or
    `regression` says so: pass those of the model or of the training data, so
    that class numbers agree. Raises DataError, and InputError for a model whose
    labels cannot be the task's.
    """
    task = get_task(task)
    file = Path(path)
    rows = list(_rows(task, file))
    if not rows:
        raise DataError(f"{file}: no examples in it")
    texts: list[Text] = []
    for line, row in rows:
        first, second = row.text, row.text_pair
        if (second is None) != (rows[0][1].text_pair is None):
            raise DataError(f"{file}:{line}: some examples are pairs and some are single texts")
        texts.append(first if second is None else (first, second))
    raw = [(line, row.label) for line, row in rows]
    if regression is None:
        regression = task.regression
    if regression is None:
        regression = label_names is None and _are_scores([label for _, label in raw])
    if regression:
        return Dataset(texts, np.array([_score(file, *item) for item in raw], np.float32), None)
    names, words = _classes(task, label_names, [label for _, label in raw])
    labels = np.array([_class(file, line, label, names, words) for line, label in raw], np.int64)
    return Dataset(texts, labels, names)


def read_texts(path: str | os.PathLike[str]) -> list[Text]:
    """Texts without labels, for embedders: one a line (.txt), or the columns `text` and, for pairs, `text_pair`.

    Raises DataError naming the file and, where there is one, the line.
    """
    file = Path(path)
    if file.suffix == ".txt":
        texts: list[Text] = [line.strip() for _, line in _lines(_read(file))]
    else:
        rows = [row for _, row in _rows(_UNLABELLED, file)]
        texts = [row.text if row.text_pair is None else (row.text, row.text_pair) for row in rows]
    if not texts:
        raise DataError(f"{file}: no texts in it")
    return texts


# The text stands in for the label, which is not looked at.
_UNLABELLED = Task("embed", "any", "text", "text_pair", "text", ())


# -- labels -------------------------------------------------------------------


def _classes(task: Task, label_names: Sequence[str] | None, raw: list[str]) -> tuple[tuple[str, ...], dict[str, int]]:
    """(class names, word in the file -> class number)."""
    if task.labels is not None and task.raw_labels is not None:
        names = _in_order_of(task, label_names)
        words = {name: names.index(name) for name in task.labels}
        return names, words | {raw: words[name] for raw, name in zip(task.raw_labels, task.labels, strict=True)}
    if label_names is None:
        numeric = all(_is_int(label) for label in raw)
        names = tuple(sorted(set(raw), key=(lambda x: (int(x), x)) if numeric else None))
        return names, {name: i for i, name in enumerate(names)}
    names = tuple(label_names)
    # A model whose labels are LABEL_0, LABEL_1, ... is also addressed by number.
    words = {str(i): i for i in range(len(names))} | {name: i for i, name in enumerate(names)}
    return names, words


def _in_order_of(task: Task, label_names: Sequence[str] | None) -> tuple[str, ...]:
    """The task's class names in the order of a model's logits.

    A model that uses the task's own names (in any case: POSITIVE, positive) may
    have them in another order; one with other names (LABEL_0, ...) is taken to
    have GLUE's.
    """
    assert task.labels is not None
    if label_names is None:
        return task.labels
    if len(label_names) != len(task.labels):
        raise InputError(
            f"task {task.name} has {len(task.labels)} classes ({', '.join(task.labels)}), "
            f"the model has {len(label_names)} labels ({', '.join(list(label_names)[:8])})"
        )
    given = tuple(name.lower() for name in label_names)
    return given if sorted(given) == sorted(task.labels) else task.labels


def _class(file: Path, line: int, label: str, names: tuple[str, ...], words: dict[str, int]) -> int:
    if label not in words:
        shown = ", ".join(list(words)[:10]) + (" ..." if len(words) > 10 else "")
        raise DataError(f"{file}:{line}: unknown label {label!r}; known: {shown}")
    return words[label]


def _score(file: Path, line: int, label: str) -> float:
    try:
        value = float(label)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{file}:{line}: label {label!r} is not a finite number, which a score must be")
    return value


def _are_scores(raw: list[str]) -> bool:
    """Numbers, of which at least one is not whole."""
    try:
        return all(math.isfinite(float(label)) for label in raw) and not all(_is_int(label) for label in raw)
    except ValueError:
        return False


def _is_int(label: str) -> bool:
    return label.removeprefix("-").isdecimal()


# -- rows ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    text: str
    text_pair: str | None
    label: str


def _rows(task: Task, file: Path) -> Iterator[tuple[int, _Row]]:
    """(line number, row) of every example."""
    text = _read(file)
    if file.suffix == ".jsonl":
        yield from _json_rows(task, file, text)
        return
    if file.suffix == ".tsv":
        lines: Iterator[tuple[int, list[str]]] = _tab_lines(text)
    elif file.suffix == ".csv":
        lines = _comma_lines(file, text)
    else:
        raise DataError(
            f"{file}: a file ending in {file.suffix or 'nothing'} cannot be read; use {', '.join(SUFFIXES)}"
        )
    header = list(task.columns) if task.columns and file.suffix == ".tsv" else None
    if header is None:
        first = next(lines, None)
        if first is None:
            raise DataError(f"{file}: the file is empty; a header line and examples are needed")
        header = [name.strip() for name in first[1]]
    columns = _columns(task, file, header)
    last = max(index for index in columns if index is not None)
    for line, cells in lines:
        if len(cells) <= last:
            raise DataError(f"{file}:{line}: {len(cells)} columns; {last + 1} are needed ({', '.join(header)})")
        first_index, second_index, label_index = columns
        second = None if second_index is None else cells[second_index].strip()
        yield line, _Row(cells[first_index].strip(), second, cells[label_index].strip())


def _columns(task: Task, file: Path, header: list[str]) -> tuple[int, int | None, int]:
    """Positions of text, text_pair and label: by the task's own names, or by the plain ones."""
    for text, pair, label in (
        (task.text, task.text_pair, task.label),
        ("text", "text_pair" if task.inputs != "single" else None, "label"),
    ):
        needed = [text, label] + ([pair] if pair and task.inputs == "pair" else [])
        if all(name in header for name in needed):
            return header.index(text), header.index(pair) if pair in header else None, header.index(label)
    wanted = [task.text] + ([task.text_pair] if task.text_pair and task.inputs == "pair" else []) + [task.label]
    missing = [name for name in wanted if name not in header]
    raise DataError(
        f"{file}: task {task.name} needs the columns {', '.join(map(repr, wanted))}; missing: "
        f"{', '.join(map(repr, missing))}; the header has: {', '.join(map(repr, header[:12]))}"
    )


def _read(file: Path) -> str:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {(error.strerror or str(error)).lower()}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not UTF-8 text ({error.reason})") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank. Only \\n and \\r\\n end a line: str.splitlines would cut at rarer characters too."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


def _tab_lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """GLUE's files quote nothing: a quotation mark is a part of the text."""
    for number, line in _lines(text):
        yield number, line.split("\t")


def _comma_lines(file: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    end = 0
    try:
        for cells in reader:
            start, end = end + 1, reader.line_num
            if any(cell.strip() for cell in cells):
                yield start, cells
    except csv.Error as error:
        raise DataError(f"{file}:{reader.line_num}: {error}") from None


def _json_rows(task: Task, file: Path, text: str) -> Iterator[tuple[int, _Row]]:
    columns: list[str] | None = None
    for line, content in _lines(text):
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{line}: not JSON ({error})") from None
        if not isinstance(entry, dict):
            raise DataError(f"{file}:{line}: a JSON object is needed")
        names = list(entry)
        if columns != names:
            try:
                first, second, label = _columns(task, file, names)
            except DataError as error:
                raise DataError(f"{file}:{line}: {str(error).split(': ', 1)[1]}") from None
            columns = names
        values = list(entry.values())
        pair = None if second is None else values[second]
        if not isinstance(values[first], str) or not isinstance(pair, str | None):
            raise DataError(f"{file}:{line}: texts must be strings")
        if isinstance(values[label], bool) or not isinstance(values[label], str | int | float):
            raise DataError(f"{file}:{line}: label {values[label]!r} is neither a name nor a number")
        yield line, _Row(values[first], pair, str(values[label]))
