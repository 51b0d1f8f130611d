"""`approxrt.load`: an artifact's folder to a model, with what can overlap overlapped.

A fresh process spends most of its first answer on importing numpy and on parsing the tokenizer, which both
hold Python's lock. The other work runs beside them, on other cores and without the lock: the weights are
read and hashed during the imports, and packed during the parsing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from approxrt.artifact.early import open_early
from approxrt.errors import DeviceError, InputError

if TYPE_CHECKING:
    from approxrt.runtime.model import Model


def load(
    path: str | os.PathLike[str],
    device: str = "auto",
    threads: int | None = None,
    cache_kind: str | None = None,
    mmap: bool = False,
) -> Model:
    """Load an artifact. Nothing is executed from it; its files are read once, into memory, and validated there.

    Once `load` has returned, the files may be overwritten, cut or removed: no answer changes.

    device   "cpu", "cuda" (an NVIDIA GPU, with the extra `cuda` installed), or "auto": the CPU
    threads  of the CPU; default: min(CPU affinity, cgroup quota, physical cores)
    cache_kind  of a decoder: how keys and values are kept, "f16" (the default; "f32" for a float32 model) or "int8"
    mmap     read the embedding tables where they lie in model.safetensors, for as long as the model lives, instead of
             copying them. Many processes then share one copy, and rows that no text asks for take no memory. At your
             own risk: a file that is written to changes answers unseen, and one that is cut short kills the process
             (SIGBUS). Replace the artifact by renaming (as `convert` does), and never copy over it

    Raises ArtifactError (listing every fault), DeviceError, MissingDependencyError, InputError.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {device!r}: choose 'auto', 'cpu' or 'cuda'")
    where = "cuda" if device == "cuda" else "cpu"
    if where == "cuda":
        from approxrt.runtime.cuda.engine import require_cuda

        require_cuda()
    weights = open_early(Path(path), mmap)
    from approxrt.artifact.reader import read_artifact
    from approxrt.artifact.spec.decoder import DecoderSpec
    from approxrt.runtime.encoder_model import EncoderModel

    artifact = read_artifact(path, weights, mmap)
    if isinstance(artifact.any_spec, DecoderSpec):
        from approxrt.runtime.decoder_model import DecoderModel

        return DecoderModel(artifact, threads, cache_kind, where)
    if cache_kind is not None:
        raise InputError(f"cache_kind={cache_kind!r} is for decoders; {os.fspath(path)!r} is an encoder: leave it out")
    return EncoderModel(artifact, threads, where)
