"""Data files to rows of text, second text and label: .csv, .tsv and .jsonl.

A file is UTF-8, with or without a byte order mark. Blank lines are passed over. White space around cells (quoted or
not), column names and labels is stripped; texts of .jsonl stay as they are. A row has as many cells as the header: one
with more or fewer was cut in the wrong place and is refused. Every error names file and line.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from approxrt.artifact.files import MAX_DATA_BYTES, read_bounded
from approxrt.artifact.layout import unreadable
from approxrt.errors import DataError, InputError
from approxrt.tasks.format import DataFormat
from approxrt.tasks.registry import Task

SUFFIXES = (".tsv", ".csv", ".jsonl")
DELIMITERS = {".tsv": "\t", ".csv": ","}
# What a header in one cell was probably cut with.
_LIKELY = {";": "semicolon", "\t": "tab", ",": "comma", "|": "pipe"}


@dataclass(frozen=True)
class Row:
    """One example as its file has it; `line` is where it begins."""

    line: int
    text: str
    text_pair: str | None
    label: str


def read_rows(task: Task, file: Path, form: DataFormat) -> Iterator[Row]:
    """Every example of a file. Raises DataError, and InputError for a format that the task or the suffix excludes."""
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{file}: a file ending in {file.suffix or 'nothing'} cannot be read; use {', '.join(SUFFIXES)}"
        )
    if form.pair_column is not None and task.inputs == "single":
        raise InputError(f"pair_column is {form.pair_column!r}; task {task.name} takes single texts: leave it out")
    text = read_file(file)
    if suffix == ".jsonl":
        if form.delimiter is not None:
            raise InputError(f"delimiter is {form.delimiter!r}; {file} is .jsonl, which has none: leave it out")
        return _json_rows(task, file, text, form)
    return _cell_rows(task, file, text, form)


def read_file(file: Path) -> str:
    """The file's text without its byte order mark. Raises DataError."""
    try:
        data = read_bounded(file, MAX_DATA_BYTES)
    except OSError as error:
        raise DataError(unreadable(str(file), error)) from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{file}:{line}: not UTF-8 text ({error.reason}): save the file as UTF-8") from None


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, numbered from 1.

    Only \\n, \\r\\n and, in a file without any \\n, \\r end a line: str.splitlines would cut at rarer characters too.
    """
    end = "\n" if "\n" in text else "\r"
    for number, line in enumerate(text.split(end), 1):
        if line.strip():
            yield number, line.removesuffix("\r")


# -- cells --------------------------------------------------------------------


def _cell_rows(task: Task, file: Path, text: str, form: DataFormat) -> Iterator[Row]:
    suffix = file.suffix.lower()
    delimiter = form.delimiter or DELIMITERS[suffix]
    # GLUE's own files quote nothing: a quotation mark is a part of the text.
    quotes = form.quotes if form.quotes is not None else not (suffix == ".tsv" and task.unquoted_tsv)
    lines = _quoted_lines(file, text, delimiter) if quotes else _plain_lines(text, delimiter)
    header = list(task.columns) if task.columns and suffix == ".tsv" and not form.names_columns else None
    line = 1
    if header is None:
        first = next(lines, None)
        if first is None:
            raise DataError(f"{file}: the file is empty; a header line and examples are needed")
        line, header = first[0], [name.strip() for name in first[1]]
    found = _find_columns(task, f"{file}:{line}", header, form, delimiter)
    for line, cells in lines:
        if len(cells) != len(header):
            raise DataError(_wrong_count(f"{file}:{line}", cells, header, delimiter, quotes))
        second = None if found.pair is None else cells[found.pair].strip()
        yield Row(line, cells[found.text].strip(), second, cells[found.label].strip())


def _plain_lines(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in numbered_lines(text):
        yield number, line.split(delimiter)


def _quoted_lines(file: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    # The module's limit on cells is for all of the process; raising it takes nothing from anybody.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    end = 0
    try:
        for cells in reader:
            start, end = end + 1, reader.line_num
            if any(cell.strip() for cell in cells):
                yield start, cells
    except csv.Error as error:
        raise DataError(
            f"{file}:{end + 1}: a cell in quotation marks does not end as one ({error}): write a quotation mark inside "
            "it twice, or read the file with quotes=False (--no-quotes) if they belong to the texts"
        ) from None


def _wrong_count(place: str, cells: list[str], header: list[str], delimiter: str, quotes: bool) -> str:
    shown = ", ".join(header[:12])
    message = f"{place}: {len(cells)} cells where the header has {len(header)} ({shown}): "
    if len(cells) < len(header):
        return message + "write the missing ones"
    name = _LIKELY.get(delimiter, repr(delimiter))
    if quotes:
        return message + f"put a text with a {name} in it in quotation marks, or give the delimiter (--delimiter)"
    return message + f"take the {name} out of the texts, or write the file as .csv or .jsonl"


# -- JSON ---------------------------------------------------------------------


def _json_rows(task: Task, file: Path, text: str, form: DataFormat) -> Iterator[Row]:
    names: list[str] | None = None
    found: _Columns | None = None
    for line, content in numbered_lines(text):
        place = f"{file}:{line}"
        try:
            entry = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{place}: not JSON ({error}); every line is an object of its own") from None
        if not isinstance(entry, dict):
            raise DataError(f"{place}: a JSON object is needed, such as {{'text': ..., 'label': ...}}")
        if found is None or names != list(entry):
            names = list(entry)
            found = _find_columns(task, place, names, form, None)
        values = list(entry.values())
        pair = None if found.pair is None else values[found.pair]
        if not isinstance(values[found.text], str) or not isinstance(pair, str | None):
            raise DataError(f"{place}: texts must be strings: write them in quotation marks")
        yield Row(line, values[found.text], pair, _json_label(place, values[found.label]))


def _json_label(place: str, label: Any) -> str:
    if isinstance(label, bool) or not isinstance(label, str | int | float):
        raise DataError(f"{place}: label {label!r} is neither a name nor a number: write one of them")
    return str(label).strip()


# -- columns ------------------------------------------------------------------


@dataclass(frozen=True)
class _Columns:
    """Positions in a row."""

    text: int
    pair: int | None
    label: int


def _find_columns(task: Task, place: str, header: list[str], form: DataFormat, delimiter: str | None) -> _Columns:
    """The columns that are named by the user, else by the task, else by the plain names."""
    plain_pair = "text_pair" if task.inputs != "single" else None
    for text, pair, label in ((task.text, task.text_pair, task.label), ("text", plain_pair, "label")):
        wanted = (form.text_column or text, form.pair_column or pair, form.label_column or label)
        at = [None if name is None else _position(place, header, name) for name in wanted]
        needs_pair = task.inputs == "pair" or form.pair_column is not None
        if at[0] is not None and at[2] is not None and (at[1] is not None or not needs_pair):
            return _Columns(at[0], at[1], at[2])
    names = [form.text_column or task.text, form.label_column or task.label]
    if task.inputs == "pair" or form.pair_column is not None:
        names.insert(1, form.pair_column or task.text_pair or "text_pair")
    names = list(dict.fromkeys(names))
    missing = [name for name in names if _position(place, header, name) is None]
    needed, absent, there = (", ".join(map(repr, part)) for part in (names, missing, header[:12]))
    raise DataError(
        f"{place}: task {task.name} needs the column{'s' if len(names) > 1 else ''} {needed}; missing: {absent}; "
        f"the header has: {there}{_mend(header, delimiter)}"
    )


def _position(place: str, header: list[str], name: str) -> int | None:
    """Return where a column stands: by its exact name, else by one in other capitals."""
    exact = [i for i, other in enumerate(header) if other == name]
    found = exact or [i for i, other in enumerate(header) if other.lower() == name.lower()]
    if len(found) > 1:
        raise DataError(f"{place}: the header has {len(found)} columns called {name!r}: rename all but one")
    return found[0] if found else None


def _mend(header: list[str], delimiter: str | None) -> str:
    if delimiter is not None and len(header) == 1:
        for character, name in _LIKELY.items():
            if character != delimiter and character in header[0]:
                return f"; is the delimiter a {name}? then say so (--delimiter {name})"
    return "; name the file's own with text_column, pair_column and label_column (--text-column NAME, ...)"
