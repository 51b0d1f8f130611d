"""`approxrt.compress`: what a user calls, around the driver; and the report and card of what comes out."""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import check_target, write_artifact
from approxrt.compression.options import CompressOptions, options_from
from approxrt.errors import MissingDependencyError
from approxrt.progress import Show
from approxrt.tasks.readers import SUFFIXES, TEXT_SUFFIXES, find_split
from approxrt.tasks.registry import Task, get_task, refuse_per_token

if TYPE_CHECKING:
    from approxrt.compression.report import Report


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
    progress: Show | None = None,
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
    options = options_from(objective, options, given)
    options.check()
    known = get_task(task)
    refuse_per_token(known, "compress")
    target = Path(out)
    check_target(target, overwrite)
    # torch is loaded here and not before: refusals cost no second.
    from approxrt.compression.driver import run
    from approxrt.compression.families.opening import Request, open_family, refuse_for_decoders
    from approxrt.compression.report import artifact_card, choose, report_of

    if known.truth == "text":
        refuse_for_decoders(options, teachers)
    started = time.monotonic()
    family = open_family(Request(model, known, train, target, teachers), options, progress, log)
    candidates = run(family)
    best = choose(candidates, family.job.options)
    dev = family.evaluate(Path(best.path), _eval_file(train, eval, known))
    report = report_of(family, candidates, best, dev, time.monotonic() - started)
    _publish(Path(best.path), target, artifact_card(report, family.source, family.job.threads), overwrite)
    return report


def _publish(candidate: Path, target: Path, card: dict[str, Any], overwrite: bool) -> None:
    """The candidate's artifact with its final card at `target`; the candidate stays until the work folder goes."""
    artifact = read_artifact(candidate)
    write_artifact(target, artifact.any_spec, dict(artifact.tensors), artifact.tokenizer_json, card, overwrite)


def _eval_file(train: str | os.PathLike[str], given: str | os.PathLike[str] | None, task: Task) -> Path | None:
    """The file that the report speaks of: as given, or the folder's dev file."""
    if given is not None:
        return Path(given)
    suffixes = SUFFIXES if task.truth == "labels" else TEXT_SUFFIXES
    return find_split(train, "dev", suffixes) if Path(train).is_dir() else None


def _require_packages() -> None:
    for package in ("torch", "transformers"):
        if importlib.util.find_spec(package) is None:
            raise MissingDependencyError(package, "compress", "compressing a model")


def remove_work(out: Path) -> None:
    """Delete what an interrupted or finished run keeps beside `out`."""
    shutil.rmtree(out.with_name(out.name + ".work"), ignore_errors=True)
