"""`approxrt match-signs`: a decoder's artifact to one whose attention matches signs in long texts."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from approxrt.cli import output


def command(
    artifact: Path = typer.Argument(..., help="Folder of a decoder's artifact."),
    data: Path = typer.Option(..., "--data", help="Plain text (.txt), or a folder with a train file."),
    out: Path = typer.Option(..., "--out", help="Folder to write the artifact to."),
    keep: int = typer.Option(128, "--keep", help="Keys of its choice that a query attends to."),
    window: int = typer.Option(32, "--window", help="Last keys that a query always attends to."),
    context: int | None = typer.Option(
        None, "--context", help="Tokens that the model is used with; default: 2560, at most its positions."
    ),
    max_drop: str = typer.Option("1%", "--max-drop", help="Largest relative rise of perplexity at that context."),
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace an artifact at --out."),
    json: bool = output.JSON_OPTION,
) -> None:
    """Let a decoder attend to the keys whose signs match best, from the length on where that is faster.

    Exit code 1, and nothing written, where it does not pay or costs more perplexity than allowed.
    """
    from rich.table import Table

    from approxrt.compression.options import parse_drop
    from approxrt.sign_attention.decoder_search import match_signs

    report = match_signs(
        artifact, data, out, keep=keep, window=window, context=context, max_drop=parse_drop(max_drop),
        threads=threads, overwrite=overwrite, log=output.log,
    )  # fmt: skip
    if json:
        output.emit_json(report.to_json())
    elif report.met:
        table = Table("", "all keys", f"{report.keep} keys", "")
        before, after = report.dense, report.chosen
        rise = f"{100 * (after['perplexity'] / before['perplexity'] - 1):+.2f} %"
        table.add_row("perplexity (validation)", f"{before['perplexity']:.3f}", f"{after['perplexity']:.3f}", rise)
        rates = before["tokens_per_second"], after["tokens_per_second"]
        label = f"tokens/s at {report.context} tokens"
        table.add_row(label, f"{rates[0]:.1f}", f"{rates[1]:.1f}", f"{rates[1] / rates[0]:.2f}x")
        output.stdout.print(table)
        output.stdout.print(
            f"{report.artifact}: {len(report.layers)} layers match {report.codes} signs a key from {report.sign_from} "
            f"tokens on; written in {report.seconds:.0f} s",
            highlight=False,
            soft_wrap=True,
        )
    if not report.met:
        for line in report.shortfalls:
            output.log(f"missed: {line}")
        sys.exit(1)
