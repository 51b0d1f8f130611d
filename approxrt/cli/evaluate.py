"""`approxrt eval`: an artifact's quality on a labelled file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer

from approxrt.cli import data as data_options
from approxrt.cli import output
from approxrt.tasks.format import PLAIN, DataFormat
from approxrt.tasks.registry import PER_TOKEN_TASKS, get_task


def command(
    artifact: Path = typer.Argument(..., help="Folder of the artifact."),
    task: str = typer.Option(..., "--task", help="sst2, mrpc, rte, cola, stsb, qnli, wnli, csv, ner, qa, or lm."),
    data: Path = typer.Option(
        ..., "--data", help="Labelled file: .tsv, .csv or .jsonl; ner: CoNLL's columns, too; qa: SQuAD; lm: plain text."
    ),
    against: Path | None = typer.Option(
        None, "--against", help="A second artifact: report the share of flipped answers."
    ),
    threads: int | None = typer.Option(None, "--threads", help="Default: affinity, quota and cores, the smallest."),
    context: int = typer.Option(512, "--context", help="lm: tokens of a window."),
    stride: int = typer.Option(256, "--stride", help="lm: tokens between windows, the least that are scored of each."),
    max_tokens: int | None = typer.Option(None, "--max-tokens", help="lm: only the text's first tokens."),
    delimiter: str | None = data_options.DELIMITER,
    text_column: str | None = data_options.TEXT_COLUMN,
    pair_column: str | None = data_options.PAIR_COLUMN,
    label_column: str | None = data_options.LABEL_COLUMN,
    regression: bool | None = data_options.REGRESSION,
    quotes: bool | None = data_options.QUOTES,
    device: str = output.DEVICE_OPTION,
    json: bool = output.JSON_OPTION,
) -> None:
    """Evaluate an artifact on a labelled file, or a decoder's perplexity on a text (--task lm).

    With --against also that of a second artifact, and for classifiers the flip rate between them.
    """
    form = data_options.data_format(delimiter, text_column, pair_column, label_column, regression, quotes)
    if get_task(task).truth == "text":
        data_options.refuse_for_text(form)
        lm = evaluate_lm(artifact, data, context, stride, max_tokens, threads, against, device)
        if json:
            output.emit_json(lm)
        else:
            _show_lm(lm)
        return
    if get_task(task).truth in PER_TOKEN_TASKS:
        data_options.refuse_for_tokens(task, form)
        result = evaluate_tokens(artifact, task, data, against, threads, device)
    else:
        result = evaluate(artifact, task, data, against, threads, device, form)
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
    artifact: Path,
    task: str,
    data: Path,
    against: Path | None = None,
    threads: int | None = None,
    device: str = "auto",
    form: DataFormat = PLAIN,
) -> dict[str, Any]:
    """Metrics of `artifact` on `data`; with `against` also its metrics and the flip rate between them."""
    from approxrt.errors import InputError
    from approxrt.runtime.loading import load
    from approxrt.tasks.metrics import compute_metrics, flip_rate
    from approxrt.tasks.readers import read_task
    from approxrt.tasks.registry import labelled_task

    wanted = labelled_task(task, "eval")
    model = load(artifact, device=device, threads=threads)
    regression = model.spec.task_type == "regression"
    if model.spec.per_token:
        use = "ner" if model.spec.task_type == "token_classification" else "qa"
        raise InputError(
            f"task {task!r} has one label a text; {str(artifact)!r} is for {model.spec.task_type}: use --task {use}"
        )
    if wanted.regression is not None and wanted.regression != regression:
        raise InputError(
            f"task {task!r} is {'a regression' if wanted.regression else 'a classification'}; "
            f"{str(artifact)!r} is for {model.spec.task_type}"
        )
    dataset = read_task(task, data, None if regression else model.labels, regression, form)
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
        other, _ = _logits(load(against, device=device, threads=threads), dataset.texts)
        result["against"] = {"artifact": str(against), "metrics": compute_metrics(task, other, dataset.labels)}
        if not regression:
            result["flip_rate"] = flip_rate(outputs, other)
    return result


def evaluate_tokens(
    artifact: Path,
    task: str,
    data: Path,
    against: Path | None = None,
    threads: int | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Metrics of entities (task ner) or answers (qa); with `against` also its own, and the share of words with another
    tag, or of questions with another answer, between the two.
    """
    from approxrt.errors import InputError
    from approxrt.runtime.loading import load
    from approxrt.tasks.tokens import compare, read

    wanted = get_task(task)
    models = []
    for path in [artifact] if against is None else [artifact, against]:
        models.append(model := load(path, device=device, threads=threads))
        if model.spec.task_type != PER_TOKEN_TASKS[wanted.truth]:
            raise InputError(
                f"task {task!r} is for {PER_TOKEN_TASKS[wanted.truth]}; {str(path)!r} is for {model.spec.task_type}"
            )
    dataset = read(wanted, data)
    measured, answers = [], []
    for name, model in zip((str(artifact), str(against)), models, strict=False):
        start = time.perf_counter()
        with output.progress("evaluating", len(dataset.examples)) as advance:
            metrics, found = dataset.evaluate(model, advance)
        seconds = time.perf_counter() - start
        pace = len(dataset.examples) / seconds
        measured.append({"artifact": name, "metrics": metrics, "texts_per_second": pace})
        answers.append(found)
    result: dict[str, Any] = {"task": task, "data": str(data), "examples": len(dataset.examples), **measured[0]}
    if against is not None:
        result["against"] = {key: measured[1][key] for key in ("artifact", "metrics")}
        result["flip_rate"] = compare(*answers)
    return result


def evaluate_lm(
    artifact: Path,
    data: Path,
    context: int = 512,
    stride: int = 256,
    max_tokens: int | None = None,
    threads: int | None = None,
    against: Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Perplexity of a decoder on a plain text (`approxrt.tasks.lm`), of its first `max_tokens` if given."""
    from approxrt.errors import InputError
    from approxrt.runtime.decoder_model import DecoderModel
    from approxrt.runtime.loading import load
    from approxrt.tasks.lm import engine_score, perplexity, read_text

    if max_tokens is not None and max_tokens < 2:
        raise InputError(f"max_tokens is {max_tokens}; it must be at least 2")
    text = read_text(data)
    results = []
    for path in [artifact] if against is None else [artifact, against]:
        model = load(path, device=device, threads=threads)
        if not isinstance(model, DecoderModel):
            raise InputError(f"task 'lm' is for decoders; {str(path)!r} is an encoder")
        if context > model.decoder_spec.max_positions:
            raise InputError(f"context is {context}; the model has positions for {model.decoder_spec.max_positions}")
        ids = model.tokenize(text)[:max_tokens]
        start = time.perf_counter()
        with output.progress("evaluating", len(ids)) as advance:
            found = perplexity(engine_score(model.engine), ids, context, stride, advance)
        found["tokens_per_second"] = found["tokens"] / (time.perf_counter() - start)
        results.append({"artifact": str(path), **found})
    result = {**results[0], "task": "lm", "data": str(data)}
    if against is not None:
        result["against"] = results[1]
    return result


def _show_lm(result: dict[str, Any]) -> None:
    for entry in [result, result["against"]] if "against" in result else [result]:
        output.stdout.print(
            f"perplexity {entry['perplexity']:.4f}  ({entry['tokens']} tokens, context {entry['context']}, stride "
            f"{entry['stride']}, {entry['tokens_per_second']:.0f} tokens/s)  {entry['artifact']}",
            highlight=False,
            soft_wrap=True,
        )


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
