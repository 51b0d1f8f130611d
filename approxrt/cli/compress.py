"""`approxrt compress`: a checkpoint, data and a constraint to a measured artifact."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import typer

from approxrt.cli import data as data_options
from approxrt.cli import output


def command(
    checkpoint: str = typer.Argument(..., help="Folder of a fine-tuned Hugging Face checkpoint, or a hub id."),
    task: str = typer.Option(..., "--task", help="sst2, mrpc, rte, cola, stsb, qnli, wnli, csv, embed, or lm."),
    data: Path = typer.Option(..., "--data", help="Folder with train and, for the report, dev; or the train file."),
    out: Path = typer.Option(..., "--out", help="Folder to write the artifact to."),
    objective: str = typer.Option("speed", "--objective", help="speed, size, accuracy, or some joined by commas."),
    speedup: float | None = typer.Option(
        None, "--speedup", help="Times faster than the fastest float32 engine here, padding removed. Speed: 4."
    ),
    shrink: float | None = typer.Option(
        None, "--shrink", help="Times smaller than the float32 weights, the whole folder counted. Size: 10."
    ),
    max_drop: str = typer.Option("0.5%", "--max-drop", help="Largest relative loss of the metric on validation."),
    budget: str = typer.Option("30m", "--budget", help="Time for everything: 90s, 30m, 2h."),
    recipe: str = typer.Option("train", "--recipe", help="train, or one-shot: no training, minutes, a larger loss."),
    target: str = typer.Option("cpu", "--target", help="cpu (tiles of 16x4) or cuda (structures only)."),
    method: str = typer.Option("ours", "--method", help="ours; magnitude or paper: baselines to compare with."),
    vocabulary: str | None = typer.Option(
        None, "--vocabulary", help="full, or task: only tokens that the training texts use. With a size limit: task."
    ),
    teacher: list[str] = typer.Option([], "--teacher", help="A further checkpoint that teaches; may be repeated."),
    seed: int = typer.Option(0, "--seed", help="Decides split, order and samples."),
    max_length: int = typer.Option(128, "--max-length", help="Tokens a text (or pair) is cut to."),
    val_fraction: float = typer.Option(0.1, "--val-fraction", help="Share of train that checks constraints."),
    limit: int | None = typer.Option(None, "--limit", help="Use at most so many training examples."),
    epochs: float | None = typer.Option(None, "--epochs", help="Passes over train; default: what the budget allows."),
    lr: float = typer.Option(1e-4, "--lr", help="Highest learning rate."),
    batch_size: int = typer.Option(32, "--batch-size", help="Examples a step."),
    delimiter: str | None = data_options.DELIMITER,
    text_column: str | None = data_options.TEXT_COLUMN,
    pair_column: str | None = data_options.PAIR_COLUMN,
    label_column: str | None = data_options.LABEL_COLUMN,
    regression: bool | None = data_options.REGRESSION,
    quotes: bool | None = data_options.QUOTES,
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    device: str = output.TORCH_DEVICE_OPTION,
    keep_work: bool = typer.Option(False, "--keep-work", help="Keep OUT.work with all candidates."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an artifact at --out."),
    json: bool = output.JSON_OPTION,
) -> None:
    """Make a fine-tuned model faster, smaller or more accurate, within limits that are measured on the result."""
    from approxrt.compression.api import compress, remove_work
    from approxrt.compression.options import CompressOptions, parse_drop, parse_duration

    options = CompressOptions(
        objective=tuple(o.strip() for o in objective.split(",")),
        speedup=speedup,
        shrink=shrink,
        max_drop=parse_drop(max_drop),
        budget=parse_duration(budget),
        recipe=recipe,
        target=target,
        method=method,
        vocabulary=vocabulary,
        seed=seed,
        max_length=max_length,
        val_fraction=val_fraction,
        limit=limit,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        threads=threads,
        device=device,
        data_format=data_options.data_format(delimiter, text_column, pair_column, label_column, regression, quotes),
    )
    with output.shares("preparing") as show:
        report = compress(
            checkpoint,
            data,
            out=out,
            task=task,
            options=options,
            teachers=tuple(teacher),
            overwrite=overwrite,
            progress=show,
            log=output.log,
        )
    if report.finished and not keep_work:
        remove_work(out)
    if json:
        output.emit_json(report.to_json())
    else:
        show_report(report)
    if not report.met:
        for line in report.shortfalls:
            output.log(f"missed: {line}")
        output.log(f"the best of {len(report.pareto)} candidates was written to {out}")
        sys.exit(1)


def show_report(report: Any) -> None:
    """A table of before and after, and the notes."""
    from rich.table import Table

    chosen, dense = report.chosen, report.dense
    table = Table("", "float32", "artifact", "")
    for name, before in dense["metrics"].items():
        table.add_row(f"{name} (validation)", f"{before:.4f}", f"{chosen['metrics'][name]:.4f}", "")
    if report.dev is not None:
        for name, before in report.dev["before"].items():
            table.add_row(f"{name} (dev)", f"{before:.4f}", f"{report.dev['after'][name]:.4f}", "")
    table.add_row("MB", f"{dense['f32_bytes'] / 1e6:.1f}", f"{chosen['bytes'] / 1e6:.2f}", f"{chosen['shrink']:.1f}x")
    before = chosen["times"][dense["fastest"]]["median_ms"]
    table.add_row(f"ms ({dense['fastest']})", f"{before:.1f}", f"{chosen['ms']:.1f}", f"{chosen['speedup']:.2f}x")
    output.stdout.print(table)
    for note in report.notes:
        output.stdout.print(f"note: {note}", highlight=False, soft_wrap=True)
    output.stdout.print(f"{report.artifact}: written in {report.seconds:.0f} s", highlight=False, soft_wrap=True)
