"""`approxrt.compress`: the public function around `approxrt.compression.pipeline`."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from approxrt.compression.options import CompressOptions
from approxrt.compression.report import Report, artifact_card, choose, pareto, shortfalls
from approxrt.errors import InputError, MissingDependencyError
from approxrt.tasks.format import PLAIN

Progress = Callable[[float, str], None]


def compress(
    model: str | os.PathLike[str],
    train: str | os.PathLike[str],
    eval: str | os.PathLike[str] | None = None,
    *,
    out: str | os.PathLike[str],
    task: str,
    objective: str = "speed",
    options: CompressOptions | None = None,
    teachers: tuple[str, ...] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
    **given: Any,
) -> Report:
    """Make the checkpoint `model` faster, smaller or more accurate for its task, and write the artifact `out`.

    train      a folder with a train file (and perhaps dev), or the training file itself; validation is carved from it
    eval       a labelled file for the report alone; default: the folder's dev file. Nothing is selected with it
    task       sst2, mrpc, rte, cola, stsb, qnli, wnli, csv, embed (a plain encoder: keep its vectors), or lm (a
               decoder, by a plain text: `approxrt.compression.lm`)
    objective  "speed", "size", "accuracy", or some joined by commas; `given` are fields of CompressOptions:
               speedup=4, shrink=14, max_drop=0.005, budget=1800, recipe="one-shot", target="cuda", seed=0, ...
    teachers   further checkpoints of the same task; their logits are averaged with the model's to teach

    An interrupted call goes on where it was when it is repeated (its state lies in `OUT.work`). When a constraint is
    missed the best candidate is written all the same and `Report.met` is false. Raises InputError for options that make
    no sense or exclude each other, DataError for data that cannot serve, CompressionError for what cannot be reached.
    """
    _require_packages()
    if options is None:
        known = {field.name for field in dataclasses.fields(CompressOptions)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise InputError(f"unknown options: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        options = CompressOptions(objective=tuple(o.strip() for o in objective.split(",")), **given)
    options.check()
    if task == "lm":
        return _compress_lm(model, train, eval, Path(out), options, teachers, overwrite, progress, log)
    target = Path(out)
    from approxrt.artifact.writer import check_target
    from approxrt.compression import outcome
    from approxrt.compression.pipeline import Compression

    check_target(target, overwrite)
    started = time.monotonic()
    compression = Compression(model, task, train, target, options, teachers, progress, log)
    candidates = compression.run()
    best = choose(candidates, options)
    metric = next(iter(best.metrics))
    notes = outcome.notes(compression, best)
    dev = outcome.evaluate_dev(compression, Path(best.path), _eval_file(train, eval, compression.data.embeds))
    missed = shortfalls(best, options, metric)
    if compression.data.seen and dev is not None and not compression.data.embeds:
        # Validation is no test of a checkpoint that has learnt from it. The choice is made; what is promised is checked
        # on the only data that neither model has seen.
        before, after = dev["before"][metric], dev["after"][metric]
        drop = (before - after) / abs(before) if before else 0.0
        missed = shortfalls(dataclasses.replace(best, drop=drop), options, metric, dev["file"])
        notes.append(f"the limit on the drop was checked on {dev['file']}, after everything was decided")
    report = Report(
        artifact=str(target),
        task=compression.data.task.name,
        met=not missed,
        shortfalls=tuple(missed),
        options=options.identity() | {"budget": options.budget, "threads": compression.threads},
        dense=compression.baseline(),
        chosen=dataclasses.asdict(best) | {"path": str(target)},
        pareto=tuple(dataclasses.asdict(c) for c in pareto(candidates)),
        dev=dev,
        notes=tuple(notes),
        seconds=round(time.monotonic() - started, 1),
    )
    card = artifact_card(report, compression.checkpoint.source, compression.machine())
    _publish(Path(best.path), target, card, overwrite)
    return report


def _compress_lm(
    model: str | os.PathLike[str],
    data: str | os.PathLike[str],
    eval: str | os.PathLike[str] | None,
    target: Path,
    options: CompressOptions,
    teachers: tuple[str, ...],
    overwrite: bool,
    progress: Progress | None,
    log: Callable[[str], None] | None,
) -> Report:
    """Of a decoder; what is not there for them is refused by name."""
    from approxrt.artifact.writer import check_target
    from approxrt.compression.lm import LmCompression

    refused = {
        "objective": options.objective not in (("speed",), ("size",)),
        "shrink without objective size": options.shrink is not None and options.objective != ("size",),
        "speedup with objective size": options.speedup is not None and options.objective != ("speed",),
        "target=cuda": options.target != "cpu",
        "method": options.method != "ours",
        "vocabulary=task": options.vocabulary == "task",
        "teachers": bool(teachers),
        "data_format": options.data_format != PLAIN,
    }
    wrong = [name for name, given in refused.items() if given]
    if wrong:
        raise InputError(
            f"not available for task 'lm': {', '.join(wrong)}; objective speed or size with speedup or shrink, "
            "max_drop, budget and recipe are"
        )
    if not options.max_drop > 0:
        raise InputError(f"max_drop is {options.max_drop}; for task 'lm' it must be over 0 (0.01 for one per cent)")
    check_target(target, overwrite)
    # Without a number: as far as max_drop allows.
    options = dataclasses.replace(
        options,
        speedup=options.speedup or (1.0 if options.objective == ("speed",) else None),
        shrink=options.shrink or (1.0 if options.objective == ("size",) else None),
    )
    started = time.monotonic()
    compression = LmCompression(model, data, target, options, progress, log)
    candidates = compression.run()
    best = choose(candidates, options)
    missed = shortfalls(best, options, "perplexity")
    report = Report(
        artifact=str(target),
        task="lm",
        met=not missed,
        shortfalls=tuple(missed),
        options=options.identity() | {"budget": options.budget, "threads": compression.threads},
        dense=compression.baseline(),
        chosen=dataclasses.asdict(best) | {"path": str(target)},
        pareto=tuple(dataclasses.asdict(c) for c in pareto(candidates)),
        dev=compression.evaluate(Path(best.path), _lm_eval_file(data, eval)),
        notes=tuple(compression.notes),
        seconds=round(time.monotonic() - started, 1),
        finished=compression.finished,
    )
    card = artifact_card(report, compression.checkpoint.source, compression.machine())
    _publish(Path(best.path), target, card, overwrite)
    return report


def _lm_eval_file(data: str | os.PathLike[str], given: str | os.PathLike[str] | None) -> Path | None:
    from approxrt.tasks.readers import TEXT_SUFFIXES, find_split

    if given is not None:
        return Path(given)
    return find_split(data, "dev", TEXT_SUFFIXES) if Path(data).is_dir() else None


def _publish(candidate: Path, target: Path, card: dict[str, Any], overwrite: bool) -> None:
    """The candidate's artifact with its final card at `target`; the candidate stays until the work folder goes."""
    from approxrt.artifact.layout import TOKENIZER
    from approxrt.artifact.reader import read_artifact
    from approxrt.artifact.writer import write_artifact

    artifact = read_artifact(candidate)
    tokenizer = (candidate / TOKENIZER).read_bytes()
    write_artifact(target, artifact.any_spec, dict(artifact.tensors), tokenizer, card, overwrite)


def _eval_file(train: str | os.PathLike[str], given: str | os.PathLike[str] | None, embeds: bool) -> Path | None:
    from approxrt.tasks.readers import SUFFIXES, TEXT_SUFFIXES, find_split

    if given is not None:
        return Path(given)
    suffixes = TEXT_SUFFIXES if embeds else SUFFIXES
    return find_split(train, "dev", suffixes) if Path(train).is_dir() else None


def _require_packages() -> None:
    import importlib.util

    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "compress", "compressing a model")


def remove_work(out: Path) -> None:
    """Delete what an interrupted or finished run keeps beside `out`."""
    shutil.rmtree(out.with_name(out.name + ".work"), ignore_errors=True)
