"""Run readers on hostile files in a process of their own, and say what each of them took."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from paths import ROOT

_CHILD = """
import json, resource, sys, time
from pathlib import Path
from approxrt.artifact.reader import read_artifact
from approxrt.models.checkpoint import load_checkpoint
from approxrt.models.decoder import is_gguf, load_any_decoder
from approxrt.runtime.encoder_model import EncoderModel
from approxrt.runtime.loading import load
from approxrt.tasks.readers import read_texts
call = eval(sys.argv[1])
for path in sys.argv[2:]:
    peak, begin, wall = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), time.monotonic()
    try:
        call(path)
        name, message = "", ""
    except Exception as error:
        name, message = type(error).__name__, str(error)
    seconds, wall = time.process_time() - begin, time.monotonic() - wall
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1e3
    print(json.dumps([name, message, seconds, wall, grown]), flush=True)
"""
# A reader that waits for somebody is ended.
_TIMEOUT_S = 120


@dataclass(frozen=True)
class Outcome:
    """One call's exception and its message, seconds of CPU and of the clock, and by how many MB memory's peak rose."""

    error: str
    message: str
    seconds: float
    wall: float
    megabytes: float


def run_bounded(call: str, cases: Mapping[str, Path]) -> dict[str, Outcome]:
    """Evaluate `call`, a function of a path, on each case, one after the other in one fresh process.

    Raises subprocess.TimeoutExpired when one of them never ends.
    """
    command = [sys.executable, "-c", _CHILD, call, *map(str, cases.values())]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=_TIMEOUT_S)
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == len(cases), (done.returncode, done.stderr[-2000:], len(lines))
    return {name: Outcome(*json.loads(line)) for name, line in zip(cases, lines, strict=True)}


def assert_refused(outcomes: Mapping[str, Outcome], error: str, parts: Mapping[str, str]) -> None:
    """Each case must be refused with `error` that has its part in the message, in a second and 200 MB."""
    for name, outcome in outcomes.items():
        assert outcome.error == error and parts[name] in outcome.message, (name, outcome)
        # Of the clock more is granted: a machine may be busy.
        assert outcome.seconds < 1 and outcome.wall < 10 and outcome.megabytes < 200, (name, outcome)
