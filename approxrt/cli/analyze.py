"""`approxrt analyze`: what of a fine-tuned model its task needs, as JSON and as a page to read."""

from __future__ import annotations

import json as json_format
import os
from pathlib import Path
from typing import Any

import typer

from approxrt.cli import data as data_options
from approxrt.cli import output
from approxrt.tasks.registry import get_task

SUFFIXES = (".html", ".json")


def command(
    checkpoint: str = typer.Argument(..., help="Folder of a fine-tuned Hugging Face checkpoint, or a hub id."),
    task: str = typer.Option(..., "--task", help="sst2, mrpc, rte, cola, stsb, qnli, wnli, csv, or lm (a decoder)."),
    data: Path = typer.Option(
        ..., "--data", help="Folder with train (.tsv, .csv, .jsonl; .txt for lm); dev is not read."
    ),
    out: Path | None = typer.Option(
        None, "--out", help="Report to write: X.html (with X.json beside it), or X.json alone."
    ),
    samples: int = typer.Option(1000, "--samples", help="Held-out texts that losses are measured on; for lm: tokens."),
    seed: int = typer.Option(0, "--seed", help="Decides which texts are held out and drawn."),
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    max_length: int = typer.Option(128, "--max-length", help="Tokens a text (or pair) is cut to."),
    val_fraction: float = typer.Option(0.1, "--val-fraction", help="Share of train to hold out."),
    delimiter: str | None = data_options.DELIMITER,
    text_column: str | None = data_options.TEXT_COLUMN,
    pair_column: str | None = data_options.PAIR_COLUMN,
    label_column: str | None = data_options.LABEL_COLUMN,
    regression: bool | None = data_options.REGRESSION,
    quotes: bool | None = data_options.QUOTES,
    device: str = output.TORCH_DEVICE_OPTION,
    json: bool = output.JSON_OPTION,
) -> None:
    """Rank blocks, heads, neurons, weights and embedding rows by what the task loses without them; write a report."""
    from approxrt.significance.analyze import analyze

    form = data_options.data_format(delimiter, text_column, pair_column, label_column, regression, quotes)
    if get_task(task).truth == "text":
        data_options.refuse_for_text(form)
    if out is not None:
        _check_target(out)
    with output.shares("preparing") as show:
        document = analyze(
            checkpoint,
            task,
            data,
            samples=samples,
            seed=seed,
            threads=threads,
            max_length=max_length,
            val_fraction=val_fraction,
            data_format=form,
            device=device,
            progress=show,
        )
        written = [] if out is None else write(document, out)
    if json:
        output.emit_json(document)
        return
    _show(document)
    for path in written:
        output.stdout.print(f"{path}: written", highlight=False, markup=False, soft_wrap=True)


def write(document: dict[str, Any], out: Path) -> list[Path]:
    """Write X.html and X.json, or X.json alone, each whole or not at all; returns what was written."""
    files = {
        out.with_suffix(".json"): json_format.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    }
    if out.suffix == ".html":
        from approxrt.significance.report.document import render

        files = {out: render(document), **files}
    for path, text in files.items():
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(text, encoding="utf-8")
            os.replace(temporary, path)
        except OSError as error:
            raise _unwritable(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)
    return list(files)


def _check_target(out: Path) -> None:
    """Before the work: --out has a suffix that says what it is, and can be written."""
    if out.suffix not in SUFFIXES:
        output.usage(f"--out is {str(out)!r}; it must end in .html or .json")
    if out.suffix == ".html":
        from approxrt.significance.report.plots import require_matplotlib

        require_matplotlib()
    probe = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for path in (out, out.with_suffix(".json")):
            if path.is_dir():
                raise IsADirectoryError(21, f"{str(path)!r} is a folder")
        probe.write_bytes(b"")
    except OSError as error:
        raise _unwritable(out, error) from error
    finally:
        if probe.parent.is_dir():
            probe.unlink(missing_ok=True)


def _unwritable(path: Path, error: OSError) -> Exception:
    from approxrt.artifact.layout import explain_os_error
    from approxrt.errors import InputError

    return InputError(f"{str(path)!r} cannot be written: {explain_os_error(error)}; give --out another place")


def _show(document: dict[str, Any]) -> None:
    from rich.table import Table

    from approxrt.significance.report.document import findings

    dense = document["dense"]
    names = {block["name"]: block for block in document["blocks"]}
    table = Table("block", "loss without it", "change", "± 2 s.e.", dense["metric"])
    for name in document["ranking"]:
        block = names[name]
        table.add_row(
            name,
            f"{block['loss']:.4f}",
            f"{block['change']:+.4f}",
            f"{2 * block['stderr']:.4f}",
            f"{block['metric']:.4f}",
        )
    output.stdout.print(table)
    for text in findings(document):
        output.stdout.print(f"- {text}", highlight=False, markup=False, soft_wrap=True)
