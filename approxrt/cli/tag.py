"""`approxrt tag`: entities in texts."""

from __future__ import annotations

from pathlib import Path

import typer

from approxrt.cli import output
from approxrt.cli.texts import TEXTS_ARGUMENT, gather, truncate_option


def command(
    artifact: Path = typer.Argument(..., help="Folder of the artifact."),
    texts: list[str] | None = TEXTS_ARGUMENT,
    aggregation: str = typer.Option(
        "simple", "--aggregation", help="simple, first, average, max; or none: every token by itself."
    ),
    stride: int | None = typer.Option(
        None, "--stride", help="Read texts over the limit in windows that share so many tokens."
    ),
    truncate: bool = truncate_option(),
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    device: str = output.DEVICE_OPTION,
    json: bool = output.JSON_OPTION,
) -> None:
    """Find entities in texts given as arguments, or one a line on standard input."""
    from approxrt.runtime.loading import load

    items = gather(texts, False)
    model = load(artifact, device=device, threads=threads)
    answers = model.tag(items, aggregation, stride=stride, truncate=truncate)
    if json:
        output.emit_json([{"text": item, "entities": found} for item, found in zip(items, answers, strict=True)])
        return
    for item, found in zip(items, answers, strict=True):
        output.stdout.print(item, markup=False, highlight=False, soft_wrap=True)
        for entity in found:
            label = entity.get("entity_group", entity.get("entity"))
            place = f"{entity['start']}-{entity['end']}"
            shown = f"  {label} {entity['score']:.4f}  {place}  {item[entity['start'] : entity['end']]}"
            output.stdout.print(shown, markup=False, highlight=False, soft_wrap=True)
