"""Open an artifact's weights before anything else, so that they are read and hashed while modules are imported."""

from __future__ import annotations

from pathlib import Path

from approxrt.artifact.copied import CopiedFile
from approxrt.artifact.files import read_config
from approxrt.artifact.layout import CONFIG, WEIGHTS
from approxrt.artifact.mapped import MappedFile, WeightsFile


def open_file(path: Path, mmap: bool) -> WeightsFile:
    """Open a file of weights: mapped, or copied to this process's memory. Raises OSError."""
    return MappedFile(path) if mmap else CopiedFile(path)


def open_early(folder: Path, mmap: bool) -> WeightsFile | None:
    """Open the weights of the artifact at `folder`; None where its config.json does not say their size.

    No giant is read that way that is not part of an artifact. What is wrong is said by
    `approxrt.artifact.reader.read_artifact`, which reads config.json for good.
    """
    try:
        config = read_config(folder / CONFIG)
        if config["files"][WEIGHTS]["size"] != (folder / WEIGHTS).stat().st_size:
            return None
        return open_file(folder / WEIGHTS, mmap)
    except (OSError, ValueError, LookupError, TypeError):
        return None
