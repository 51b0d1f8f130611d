"""Open a checkpoint and its data as the family that the task asks for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from approxrt.compression.families.decoder import DecoderFamily, read_inputs, within_reach
from approxrt.compression.families.encoder import EncoderFamily
from approxrt.compression.families.encoder_inputs import prepare, read_source
from approxrt.compression.job import Job, Notes
from approxrt.compression.options import CompressOptions
from approxrt.compression.state import Work
from approxrt.errors import InputError
from approxrt.progress import Progress, Show
from approxrt.runtime.threads import resolve_threads
from approxrt.tasks.format import PLAIN
from approxrt.tasks.registry import Task, get_task
from approxrt.torch_models.device import resolve_device
from approxrt.training.budget import Budget

Log = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """Say what is compressed: a checkpoint for a task by its data, to the artifact `out`; further teachers."""

    model: str | os.PathLike[str]
    task: str | Task
    data: str | os.PathLike[str]
    out: Path
    teachers: tuple[str, ...] = ()


def open_family(
    request: Request, options: CompressOptions, progress: Show | None = None, log: Log | None = None
) -> EncoderFamily | DecoderFamily:
    """Read everything that a compression begins with. Raises InputError for what the family has not."""
    budget, threads = Budget(options.budget), resolve_threads(options.threads)
    device = resolve_device(options.device)

    def job(options: CompressOptions, identity: dict[str, Any]) -> Job:
        work = Work(request.out, options.identity() | identity)
        say = log or (lambda text: None)
        return Job(options, request.out, work, budget, Notes(work, say), Progress.of(progress), say, threads, device)

    task = get_task(request.task)
    if task.truth == "text":
        options = within_reach(options)
        inputs = read_inputs(request.model, request.data)
        tokens = [len(inputs.calibrating), len(inputs.validating)]
        identity = {"task": task.name, "checkpoint": inputs.checkpoint.source["name"], "tokens": tokens}
        return DecoderFamily(job(options, identity), inputs)
    source = read_source(request.model, task, request.data, options)
    texts = (source.data.train, source.data.validation, source.texts.train)
    identity = {
        "task": source.data.task.name,
        "checkpoint": source.folder.resolve().name,
        "examples": [len(part) for part in texts],
        "teachers": [Path(teacher).name for teacher in request.teachers],
    }
    opened = job(options, identity)
    return EncoderFamily(opened, prepare(source, opened), request.teachers)


def refuse_for_decoders(options: CompressOptions, teachers: tuple[str, ...]) -> None:
    """Raise InputError naming every option that a decoder's compression does not have."""
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
