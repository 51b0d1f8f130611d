"""`approxrt eval`: an artifact's quality on a labelled file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer

from approxrt.cli import output


def command(
    artifact: Path = typer.Argument(..., help="Folder of the artifact."),
    task: str = typer.Option(..., "--task", help="sst2, mrpc, rte, cola, stsb, qnli, wnli or csv."),
    data: Path = typer.Option(..., "--data", help="Labelled file: .tsv, .csv or .jsonl."),
    against: Path | None = typer.Option(
        None, "--against", help="A second artifact: report the share of flipped answers."
    ),
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    json: bool = output.JSON_OPTION,
) -> None:
    """Evaluate an artifact on a labelled file; with --against also the flip rate between two artifacts."""
    result = evaluate(artifact, task, data, against, threads)
    if json:
        output.emit_json(result)
        return
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in result["metrics"].items())
    output.stdout.print(
        f"{metrics}  ({result['examples']} examples, {result['texts_per_second']:.0f} texts/s)", highlight=False
    )
    if against is not None:
        other = "  ".join(f"{name} {value:.4f}" for name, value in result["against"]["metrics"].items())
        output.stdout.print(f"{other}  ({against})", highlight=False, soft_wrap=True)
        if "flip_rate" in result:
            output.stdout.print(f"flip rate {result['flip_rate']:.4f}", highlight=False)


def evaluate(
    artifact: Path, task: str, data: Path, against: Path | None = None, threads: int | None = None
) -> dict[str, Any]:
    """Metrics of `artifact` on `data`; with `against` also its metrics and the flip rate between them."""
    from approxrt.errors import InputError
    from approxrt.runtime.loading import load
    from approxrt.tasks.metrics import compute_metrics, flip_rate
    from approxrt.tasks.readers import read_task
    from approxrt.tasks.registry import get_task

    wanted = get_task(task)
    model = load(artifact, device="cpu", threads=threads)
    regression = model.spec.task_type == "regression"
    if wanted.regression is not None and wanted.regression != regression:
        raise InputError(
            f"task {task!r} is {'a regression' if wanted.regression else 'a classification'}; "
            f"{str(artifact)!r} is for {model.spec.task_type}"
        )
    dataset = read_task(task, data, label_names=None if regression else model.labels, regression=regression)
    outputs, seconds = _logits(model, dataset.texts)
    result: dict[str, Any] = {
        "artifact": str(artifact),
        "task": task,
        "data": str(data),
        "examples": len(dataset.texts),
        "metrics": compute_metrics(task, outputs, dataset.labels),
        "texts_per_second": len(dataset.texts) / seconds,
    }
    if against is not None:
        other, _ = _logits(load(against, device="cpu", threads=threads), dataset.texts)
        result["against"] = {"artifact": str(against), "metrics": compute_metrics(task, other, dataset.labels)}
        if not regression:
            result["flip_rate"] = flip_rate(outputs, other)
    return result


def _logits(model: Any, texts: list[Any], chunk: int = 512) -> tuple[Any, float]:
    """Logits of all texts and the seconds they took, with a progress bar; a note tells what was cut."""
    import warnings

    import numpy as np

    parts, start = [], time.perf_counter()
    with warnings.catch_warnings(record=True) as caught, output.progress("evaluating", len(texts)) as advance:
        warnings.simplefilter("always")
        for begin in range(0, len(texts), chunk):
            parts.append(model.logits(texts[begin : begin + chunk]))
            advance(len(parts[-1]))
    seconds = time.perf_counter() - start
    for warning in caught:
        output.log(str(warning.message))
    return np.concatenate(parts), seconds
