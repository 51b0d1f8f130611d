"""Options of commands that read task data, for files that are laid out otherwise than the task's own."""

from __future__ import annotations

import typer

from approxrt.errors import InputError
from approxrt.tasks.format import PLAIN, DataFormat

DELIMITER = typer.Option(
    None, "--delimiter", help="Between cells: one character, or tab, semicolon, ... Default: by suffix."
)
TEXT_COLUMN = typer.Option(None, "--text-column", help="Name of the column of texts. Default: the task's, or text.")
PAIR_COLUMN = typer.Option(
    None, "--pair-column", help="Name of the column of second texts. Default: the task's, or text_pair."
)
LABEL_COLUMN = typer.Option(None, "--label-column", help="Name of the column of labels. Default: the task's, or label.")
REGRESSION = typer.Option(
    None, "--regression/--classes", help="csv: labels are scores, or classes. Default: scores if any has a fraction."
)
QUOTES = typer.Option(
    None, "--quotes/--no-quotes", help="Quotation marks quote a cell, or are text. Default: text in GLUE's .tsv alone."
)


def data_format(
    delimiter: str | None,
    text_column: str | None,
    pair_column: str | None,
    label_column: str | None,
    regression: bool | None,
    quotes: bool | None,
) -> DataFormat:
    """Return the options as one value. Raises InputError for what cannot be."""
    return DataFormat(delimiter, text_column, pair_column, label_column, regression, quotes)


def refuse_for_tokens(task: str, form: DataFormat) -> None:
    """Raise InputError where a task of words or spans, whose files have one layout, is given another."""
    if form != PLAIN:
        raise InputError(
            f"task {task!r} reads words with tags, or questions, from files of their own layouts: leave out "
            "--delimiter, --...-column, --regression and --quotes"
        )


def refuse_for_text(form: DataFormat) -> None:
    """Raise InputError where task lm, which reads plain text, is given a format."""
    if form != PLAIN:
        raise InputError("task 'lm' reads plain text: leave out --delimiter, --...-column, --regression and --quotes")
