"""Checkpoint in, artifact out, with no data: int8 or int4 weights, and tiles pruned by magnitude."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from approxrt import __version__
from approxrt.approx.prune import prune_tiles
from approxrt.approx.quantize import BITS, quantize_model
from approxrt.artifact.spec import INPUTS
from approxrt.artifact.writer import check_target, write_artifact
from approxrt.errors import InputError
from approxrt.models.checkpoint import Checkpoint, load_checkpoint

_METHODS = {
    4: "int4 with 8-bit scales of groups of 32 and one scale an output channel, chosen by squared error",
    8: "int8 per output channel, clip ratio by squared error",
    32: "f32",
}

# (weights done, weights in all, what was done last)
Progress = Callable[[int, int, str], None]


def convert(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    bits: int = 8,
    density: float = 1.0,
    overwrite: bool = False,
    inputs: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Turn the checkpoint `model` (a folder or a hub id) into an artifact at `out`; returns its path.

    bits      8: linears and word embeddings int8, the head f32. 4: the same in int4. 32: all f32.
    density   share of 16x4 tiles that each linear of the encoder keeps, in (0, 1];
              below 1 it needs bits=8 or 4.
    overwrite replace an artifact at `out`.
    inputs    "single", "pair" or "any": what the model accepts; None takes the checkpoint's word.

    Raises InputError for wrong arguments, CheckpointError or UnsupportedModelError
    for what cannot be read, ArtifactError when `out` cannot be written.
    """
    _check_arguments(bits, density, inputs)
    check_target(Path(out), overwrite)
    checkpoint = load_checkpoint(model)
    spec = checkpoint.spec
    if inputs is not None:
        spec = dataclasses.replace(spec, inputs=inputs)
    masks = prune_tiles(spec, checkpoint.tensors, density) if density < 1 else {}
    total, done = checkpoint.source["parameters"], 0

    def advance(elements: int, name: str) -> None:
        nonlocal done
        done += elements
        if progress:
            progress(done, total, name)

    spec, tensors = quantize_model(spec, checkpoint.tensors, bits, masks, advance)
    weight_bytes = sum(array.nbytes for array in tensors.values())
    card = _card(checkpoint, bits, density, weight_bytes)
    return write_artifact(out, spec, tensors, checkpoint.tokenizer_json, card, overwrite)


def _check_arguments(bits: int, density: float, inputs: str | None) -> None:
    if bits not in BITS:
        raise InputError(f"bits is {bits!r}; it must be one of {', '.join(map(str, BITS))}")
    if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
        raise InputError(f"density is {density!r}; it must be over 0 and at most 1 (1 keeps every tile)")
    if density < 1 and bits == 32:
        raise InputError(
            f"density {density} with bits=32: block-sparse linears are int8 or int4; use bits=8 or 4, or density=1"
        )
    if inputs is not None and inputs not in INPUTS:
        raise InputError(f"inputs is {inputs!r}; it must be one of {', '.join(INPUTS)}")


def _card(checkpoint: Checkpoint, bits: int, density: float, weight_bytes: int) -> dict[str, Any]:
    """What was done to which model. `accuracy` and `latency` are null until somebody measures them."""
    before = checkpoint.source["weight_bytes"]
    return {
        "approxrt_version": __version__,
        "source": checkpoint.source,
        "task": checkpoint.source["finetuning_task"],
        "method": {
            "bits": bits,
            "density": density,
            "weights": _METHODS[bits],
            "pruning": None if density == 1 else "16x4 tiles by magnitude, the same share of every encoder linear",
        },
        "sizes": {
            "checkpoint_weight_bytes": before,
            "f32_weight_bytes": 4 * checkpoint.source["parameters"],
            "artifact_weight_bytes": weight_bytes,
        },
        "accuracy": None,
        "latency": None,
    }
