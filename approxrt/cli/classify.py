"""`approxrt classify`: labels for texts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import typer

from approxrt.cli import output
from approxrt.cli.texts import TEXTS_ARGUMENT, gather, truncate_option


def command(
    artifact: Path = typer.Argument(..., help="Folder of the artifact."),
    texts: list[str] | None = TEXTS_ARGUMENT,
    pair: bool = typer.Option(False, "--pair", help="Texts come in pairs: A1 B1 A2 B2, or tab-separated lines."),
    top_k: int = typer.Option(1, "--top-k", help="How many labels a text, best first."),
    truncate: bool = truncate_option(),
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    device: str = output.DEVICE_OPTION,
    json: bool = output.JSON_OPTION,
) -> None:
    """Classify texts given as arguments, or one a line on standard input."""
    from approxrt.runtime.loading import load

    items = gather(texts, pair)
    answers = load(artifact, device=device, threads=threads).classify(items, top_k=top_k, truncate=truncate)
    if json:
        output.emit_json(
            [
                {"text": item, "predictions": [dataclasses.asdict(p) for p in answer]}
                for item, answer in zip(items, answers, strict=True)
            ]
        )
        return
    for item, answer in zip(items, answers, strict=True):
        labels = "  ".join(f"{p.label} {p.score:.4f}" for p in answer)
        note = "  (cut to the model's limit)" if answer[0].truncated else ""
        shown = item if isinstance(item, str) else " | ".join(item)
        output.stdout.print(f"{labels}{note}\t{shown}", markup=False, highlight=False, soft_wrap=True)
