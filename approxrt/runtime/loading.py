"""`approxrt.load`: an artifact's folder to a model, with what can overlap overlapped.

A fresh process spends most of its first answer on importing numpy and on parsing the tokenizer, which both
hold Python's lock. The other work runs beside them, on other cores and without the lock: the weights are
hashed during the imports, and packed during the parsing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from approxrt.artifact.layout import WEIGHTS
from approxrt.artifact.mapped import MappedFile
from approxrt.errors import DeviceError

if TYPE_CHECKING:
    from approxrt.runtime.model import Model


def load(path: str | os.PathLike[str], device: str = "auto", threads: int | None = None) -> Model:
    """Load an artifact. Nothing is executed from it; its files are validated and memory-mapped.

    device   "cpu", "cuda" (an NVIDIA GPU, with the extra `cuda` installed), or "auto": the CPU
    threads  of the CPU; default: min(CPU affinity, cgroup quota, physical cores)

    Raises ArtifactError (listing every fault), DeviceError, MissingDependencyError, InputError.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {device!r}: choose 'auto', 'cpu' or 'cuda'")
    if device == "cuda":
        from approxrt.runtime.cuda import require_cuda

        require_cuda()
    try:
        weights = MappedFile(Path(path) / WEIGHTS)
    except OSError:
        weights = None  # the reader meets the same error and says it among the others
    from approxrt.artifact.reader import read_artifact
    from approxrt.runtime.model import Model

    return Model(read_artifact(path, weights), threads, "cuda" if device == "cuda" else "cpu")
