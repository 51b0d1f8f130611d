"""A small decoder whose weights lie on grids of groups, as those of a quantised .gguf file do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from approxrt.artifact.storage.groupwise import dequantize_groups
from approxrt.models.decoder import DecoderCheckpoint, load_decoder
from approxrt.quantization.groupwise import quantize_groups4, quantize_groups8


def grouped_checkpoint(folder: Path) -> DecoderCheckpoint:
    """The checkpoint at `folder` with linears in g4 and the embedding table in g8: `tensors` are what these stand
    for."""
    loaded = load_decoder(folder, folder)
    grouped, tensors = {}, dict(loaded.tensors)
    for name in ("embeddings.word", *(name for name, _ in loaded.spec.linears())):
        weight = tensors[f"{name}.weight"]
        round_ = quantize_groups8 if name == "embeddings.word" else quantize_groups4
        grouped[name] = round_(weight)
        tensors[f"{name}.weight"] = dequantize_groups(grouped[name], weight.shape[1])
    return dataclasses.replace(loaded, tensors=tensors, grouped=grouped)
