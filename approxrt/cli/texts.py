"""Read the texts of commands that answer them: arguments, or one a line on standard input."""

from __future__ import annotations

import sys
from typing import Any

import typer

from approxrt.cli import output
from approxrt.errors import InputError

TEXTS_ARGUMENT = typer.Argument(None, help="Texts; without any, one a line is read from standard input.")


def truncate_option() -> Any:
    """--truncate / --no-truncate."""
    return typer.Option(True, help="Cut texts over the model's limit (and say so), or refuse them.")


def gather(texts: list[str] | None, pair: bool, asking: str = "--pair") -> list[str] | list[tuple[str, str]]:
    """The texts, or pairs of them; an InputError where there are none or pairs do not come out even.

    `asking` is what needs pairs, for the error.
    """
    if texts is None or not texts:
        if sys.stdin.isatty():
            output.usage("give texts as arguments, or one a line on standard input")
        lines = [line.rstrip("\r\n") for line in sys.stdin]
        if not lines:
            raise InputError("standard input is empty: give at least one text")
        return [_split_pair(line, i, asking) for i, line in enumerate(lines, 1)] if pair else lines
    if not pair:
        return texts
    if len(texts) % 2:
        raise InputError(f"{asking} needs an even number of texts, got {len(texts)}")
    return list(zip(texts[::2], texts[1::2], strict=True))


def _split_pair(line: str, number: int, asking: str) -> tuple[str, str]:
    first, tab, second = line.partition("\t")
    if not tab:
        raise InputError(f"standard input, line {number}: {asking} needs two texts with a tab between them")
    return first, second
