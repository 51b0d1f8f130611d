"""`approxrt finetune`: train a checkpoint on a task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from approxrt.cli import data as data_options
from approxrt.cli import output


def command(
    checkpoint: str = typer.Argument(..., help="Folder of a Hugging Face checkpoint, or a hub id."),
    task: str = typer.Option(..., "--task", help="sst2, mrpc, rte, cola, stsb, qnli, wnli, csv, ner or qa."),
    data: Path = typer.Option(
        ..., "--data", help="Folder with train and, if there is one, dev (.tsv, .csv, .jsonl; qa: .json)."
    ),
    out: Path = typer.Option(..., "--out", help="Folder to write the fine-tuned checkpoint to."),
    epochs: int = typer.Option(3, "--epochs", help="Passes over the training data."),
    lr: float = typer.Option(5e-5, "--lr", help="Highest learning rate."),
    batch_size: int = typer.Option(32, "--batch-size", help="Examples a step."),
    seed: int = typer.Option(0, "--seed", help="Decides the validation part, the order and dropout."),
    max_length: int = typer.Option(128, "--max-length", help="Tokens a text (or pair) is cut to."),
    val_fraction: float = typer.Option(0.1, "--val-fraction", help="Share of train that selects the best epoch."),
    split: str = typer.Option("grouped", "--split", help="grouped: texts inside one another stay together; or random."),
    limit: int | None = typer.Option(None, "--limit", help="Use at most so many training examples."),
    precision: str = typer.Option(
        "auto", "--precision", help="f32, bf16, or auto: bf16 where the device multiplies it faster."
    ),
    label_all_pieces: bool = typer.Option(
        False, "--label-all-pieces", help="ner: all tokens of a word have its tag. Default: its first."
    ),
    qat: int | None = typer.Option(None, "--qat", help="8: train with int8 weights and activations (Q8BERT)."),
    device: str = output.TORCH_DEVICE_OPTION,
    delimiter: str | None = data_options.DELIMITER,
    text_column: str | None = data_options.TEXT_COLUMN,
    pair_column: str | None = data_options.PAIR_COLUMN,
    label_column: str | None = data_options.LABEL_COLUMN,
    regression: bool | None = data_options.REGRESSION,
    quotes: bool | None = data_options.QUOTES,
    resume: bool = typer.Option(False, "--resume", help="Continue an interrupted run in --out."),
    json: bool = output.JSON_OPTION,
) -> None:
    """Fine-tune a checkpoint on a task; the best epoch on data carved from train is kept."""
    from approxrt.training.finetune import FinetuneOptions, finetune, read_training, total_steps

    form = data_options.data_format(delimiter, text_column, pair_column, label_column, regression, quotes)
    options = FinetuneOptions(
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        max_length=max_length,
        val_fraction=val_fraction,
        split=split,
        limit=limit,
        precision=precision,
        qat=qat,
        label_all_pieces=label_all_pieces,
        device=device,
        data_format=form,
    )
    options.check()
    steps = total_steps(read_training(task, data, form), options)
    with output.progress("loading", steps) as advance:
        report = finetune(checkpoint, task, data, out, options, resume, lambda n, text: advance(n, text))
    if json:
        output.emit_json(report)
    else:
        _show(report, out)


def _show(report: dict[str, Any], out: Path) -> None:
    from rich.table import Table

    names = list(report["validation"])
    table = Table("epoch", "train loss", "val loss", *(f"val {name}" for name in names))
    for epoch in report["epochs"]:
        mark = " (kept)" if epoch["epoch"] == report["best_epoch"] else ""
        values = (f"{epoch['validation'][name]:.4f}" for name in names)
        table.add_row(f"{epoch['epoch'] + 1}{mark}", f"{epoch['train_loss']:.4f}", f"{epoch['val_loss']:.4f}", *values)
    output.stdout.print(table)
    if report["dev"] is not None:
        dev = ", ".join(f"{name} {value:.4f}" for name, value in report["dev"].items())
        output.stdout.print(f"dev ({report['examples']['dev']} examples): {dev}", highlight=False)
    output.stdout.print(f"{out}: written in {report['seconds']:.0f} s", highlight=False, soft_wrap=True)
