"""Checkpoint in, artifact out, with no data: int8 or int4 weights, and tiles pruned by magnitude."""

from __future__ import annotations

import dataclasses
import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from approxrt.artifact.spec.decoder import AnySpec, DecoderSpec
from approxrt.artifact.spec.encoder import INPUTS
from approxrt.artifact.spec.formats import TILE_K, TILE_N, LinearKind
from approxrt.artifact.storage.groupwise import kind_of
from approxrt.artifact.writer import check_target, write_artifact
from approxrt.errors import CheckpointWarning, InputError
from approxrt.models.checkpoint import PRETRAINING_HEADS, Checkpoint, find_folder, load_checkpoint
from approxrt.models.decoder import DecoderCheckpoint, is_gguf, load_decoder, names_a_decoder
from approxrt.models.sentence import encoder_folder
from approxrt.models.weights import read_json
from approxrt.pruning.magnitude import prune_tiles
from approxrt.quantization.rotation import can_rotate, rotate_lazily
from approxrt.quantization.rtn import Spec, quantize_model
from approxrt.runtime.cuda.layout import PRUNE_BLOCK
from approxrt.tasks.lm import read_text
from approxrt.verification.decoder import verify_decoder
from approxrt.verification.encoder import verify_encoder
from approxrt.version import __version__

_METHODS = {
    4: "int4 with 8-bit scales of groups of 32 and one scale an output channel, chosen by squared error",
    5: "int4 with float16 scales and offsets of groups of 32, embedding table and head int8 with such scales",
    8: "int8 per output channel, clip ratio by squared error",
    32: "f32",
}

# What the user calls by bits.
_KINDS: dict[int, LinearKind] = {4: "s4", 5: "g4", 8: "s8", 32: "f32"}
_TABLE_KINDS: dict[int, LinearKind] = {6: "g6", 8: "g8"}

# What is pruned as one, outputs x inputs, by target.
_BLOCKS = {"cpu": (TILE_N, TILE_K), "cuda": PRUNE_BLOCK}

# (weights done, weights in all, what was done last)
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Settings:
    """Hold what is asked for; see `convert`."""

    bits: int = 8
    density: float = 1.0
    inputs: str | None = None
    target: str = "cpu"
    table_bits: int = 8

    def check(self) -> None:
        """Raise InputError for a value that does not exist, or goes with no other."""
        if self.target not in _BLOCKS:
            raise InputError(f"target is {self.target!r}; it must be one of {', '.join(_BLOCKS)}")
        if self.bits not in _KINDS:
            raise InputError(f"bits is {self.bits!r}; it must be one of {', '.join(map(str, _KINDS))}")
        if self.table_bits not in _TABLE_KINDS or (self.table_bits != 8 and self.bits != 5):
            raise InputError(
                f"table_bits is {self.table_bits!r} with bits={self.bits}; it must be "
                f"{' or '.join(map(str, _TABLE_KINDS))}, and 8 unless bits=5"
            )
        share = self.density
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise InputError(f"density is {share!r}; it must be over 0 and at most 1 (1 keeps every tile)")
        if share < 1 and self.bits in (5, 32):
            raise InputError(
                f"density {share} with bits={self.bits}: block-sparse linears are int8 or int4; use bits=8 or 4, or "
                "density=1"
            )
        if self.inputs is not None and self.inputs not in INPUTS:
            raise InputError(f"inputs is {self.inputs!r}; it must be one of {', '.join(INPUTS)}")


def convert(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    bits: int = 8,
    density: float = 1.0,
    overwrite: bool = False,
    inputs: str | None = None,
    progress: Progress | None = None,
    target: str = "cpu",
    table_bits: int = 8,
    head_preview: str | os.PathLike[str] | None = None,
) -> Path:
    """Turn the checkpoint `model` (a folder, a hub id or, of a decoder, a .gguf file) into an artifact at `out`.

    bits      8: linears and word embeddings int8, an encoder's head f32. 4: the same in int4. 32: all f32.
              5: int4 with a float16 scale and offset for 32 weights, 5 bits a weight; a decoder's embedding table and
              head int8 with such scales. Q4_0, Q4_1 and Q8_0 tensors of a .gguf file have this form and stay as they
    are. table_bits  with bits=5, what the embedding table and head get: 8, or 6, which are faster to read and round.
    head_preview  a text file, UTF-8: a decoder whose head is its embedding table (bits=5, table_bits=8) gets a preview
              that is fitted to it (`approxrt.quantization.low_rank_head`), and reads half of its head a token.
    density   share of tiles that each linear of the layers keeps, in (0, 1]; below 1 it needs bits=8 or 4.
    overwrite replace an artifact at `out`.
    inputs    "single", "pair" or "any": what an encoder accepts; None takes the checkpoint's word.
    target    "cpu" prunes tiles of 16x4 weights, "cuda" blocks of 64x64, which a GPU's tensor cores take. Both engines
              read either: a GPU runs scattered tiles dense (`approxrt inspect` says at what cost).

    Returns the artifact's path. Before it gets its name the artifact is loaded and compared with the original
    (`approxrt.verification`), which needs torch and transformers; the card's `fidelity` says how near it is.

    Raises InputError for wrong arguments, CheckpointError or UnsupportedModelError
    for what cannot be read, DataError for the text, ArtifactError when `out` cannot be written.
    """
    settings = Settings(bits, density, inputs, target, table_bits)
    settings.check()
    if head_preview is not None and (bits, table_bits) != (5, 8):
        raise InputError(
            f"head_preview with bits={bits}, table_bits={table_bits}: a previewed head needs an embedding table in "
            "int8 with scales of groups; use bits=5 and table_bits=8, or leave the preview out"
        )
    text = None if head_preview is None else read_text(Path(head_preview))
    check_target(Path(out), overwrite)
    checkpoint, rotated = _load(model, bits == 5), False
    if isinstance(checkpoint, Checkpoint):
        if text is not None:
            raise InputError(
                f"head_preview is for decoders, and {checkpoint.source['name']!r} is an encoder: leave it out"
            )
        if checkpoint.spec.per_token and inputs not in (None, checkpoint.spec.inputs):
            raise InputError(
                f"inputs is {inputs!r}; a model for {checkpoint.spec.task_type} takes {checkpoint.spec.inputs!r}: "
                "leave it out"
            )
        encoder = checkpoint.spec if inputs is None else dataclasses.replace(checkpoint.spec, inputs=inputs)
        if checkpoint.assumed_pooling:
            warnings.warn(_assumption(checkpoint), CheckpointWarning, stacklevel=2)
        converted: tuple[AnySpec, dict[str, np.ndarray]] = _quantize(encoder, checkpoint.tensors, settings, progress)
    else:
        if inputs is not None:
            name = checkpoint.source["name"]
            raise InputError(f"inputs={inputs!r} is for encoders, and {name!r} is a decoder: leave it out")
        decoder, tensors = checkpoint.spec, checkpoint.tensors
        # int8 loses by outliers of activations, which rotation spreads. Magnitudes of tiles mean something in the
        # coordinates that the model was trained in only, and so do int4 grids that a quantised file has already:
        # SmolLM2's Q4_1 has a perplexity of 47 in plain int4 when it is rotated first.
        rotated = bits == 8 and density == 1 and can_rotate(decoder)
        if rotated:
            decoder, tensors = rotate_lazily(decoder, tensors)
        converted = _quantize(decoder, tensors, settings, progress, checkpoint.grouped)
    previewed: dict[str, Any] = {}
    if text is not None:
        with_head, parts, previewed = _previewed(*converted, checkpoint.tokenizer_json, text)
        converted = with_head, parts
    weight_bytes = sum(array.nbytes for array in converted[1].values())
    card = _card(checkpoint, settings, weight_bytes)
    if isinstance(checkpoint, Checkpoint) and checkpoint.assumed_pooling:
        card["assumed"] = {"pooling": checkpoint.spec.head.pooling, "unused_tensors": list(checkpoint.unused)}
    if rotated:
        card["method"]["activations"] = "rotated"
    if isinstance(checkpoint, DecoderCheckpoint) and bits == 5:
        linears = {name: linear.kind for name, linear in converted[0].linears()}
        linears["embeddings.word"] = cast(LinearKind, converted[0].embedding_kind)
        kept = [name for name, parts in checkpoint.grouped.items() if linears[name] == kind_of(parts)]
        card["method"] |= {"table_bits": table_bits, "matrices_as_in_the_file": len(kept), **previewed}
    pruned = density < 1 or head_preview is not None

    def check(folder: Path) -> Mapping[str, Any]:
        if isinstance(checkpoint, Checkpoint):
            return verify_encoder(checkpoint, folder)
        return verify_decoder(folder, checkpoint, bits, pruned)

    return write_artifact(out, *converted, checkpoint.tokenizer_json, card, overwrite, check)


def _assumption(checkpoint: Checkpoint) -> str:
    """Say what an encoder becomes whose folder does not say how it is pooled."""
    architecture = str(checkpoint.source["architecture"])
    unused, shown = checkpoint.unused, ""
    if architecture.endswith(PRETRAINING_HEADS):
        names = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
        shown = f", and its pre-training head ({architecture}) is left out" + (f" ({names})" if names else "")
    return (
        f"{checkpoint.source['name']} says nothing of how its hidden states become one vector: the artifact is an "
        f"encoder whose embeddings are their mean{shown}. `approxrt finetune` makes a classifier of the checkpoint"
    )


def _previewed(
    spec: AnySpec, tensors: dict[str, np.ndarray], tokenizer_json: bytes, text: str
) -> tuple[DecoderSpec, dict[str, np.ndarray], dict[str, Any]]:
    """Return (spec, tensors, what the card says) of a decoder with a preview of its head."""
    from tokenizers import Tokenizer

    from approxrt.artifact.memory import InMemory
    from approxrt.quantization.low_rank_head import with_preview

    assert isinstance(spec, DecoderSpec)
    ids: list[int] = Tokenizer.from_str(tokenizer_json.decode("utf-8")).encode(text).ids
    spec, tensors, preview = with_preview(InMemory(spec, tensors), ids)
    card = {"kl_nats": preview.kl, "words_refined": preview.rows, "same_best_word": preview.agreement}
    return spec, tensors, {"head_preview": card}


def _load(model: str | os.PathLike[str], grouped: bool) -> Checkpoint | DecoderCheckpoint:
    if is_gguf(model):
        return load_decoder(model, None, grouped)
    folder = find_folder(model)
    if names_a_decoder(read_json(encoder_folder(folder) / "config.json")):
        return load_decoder(model, folder)
    return load_checkpoint(model)


def _quantize(
    spec: Spec,
    tensors: Mapping[str, np.ndarray],
    settings: Settings,
    progress: Progress | None,
    grouped: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> tuple[Spec, dict[str, np.ndarray]]:
    pruned = settings.density < 1
    masks = prune_tiles(spec, tensors, settings.density, block=_BLOCKS[settings.target]) if pruned else {}
    total, done = max(1, sum(math.prod(shape) for _, _, shape in spec.dense_tensors())), 0

    def advance(elements: int, name: str) -> None:
        nonlocal done
        done += elements
        if progress:
            progress(done, total, name)

    kind, table_kind = _KINDS[settings.bits], _TABLE_KINDS[settings.table_bits]
    return quantize_model(spec, tensors, kind, masks, advance, grouped, table_kind)


def _card(checkpoint: Checkpoint | DecoderCheckpoint, settings: Settings, weight_bytes: int) -> dict[str, Any]:
    """Return what was done to which model. `accuracy` and `latency` are null until somebody measures them."""
    bits, density, target = settings.bits, settings.density, settings.target
    tiles = "x".join(map(str, _BLOCKS[target]))
    before = checkpoint.source["weight_bytes"]
    return {
        "approxrt_version": __version__,
        "source": checkpoint.source,
        "task": checkpoint.source["finetuning_task"],
        "method": {
            "bits": bits,
            "density": density,
            "weights": _METHODS[bits],
            "pruning": None if density == 1 else f"{tiles} tiles by magnitude, the same share of every layer's linear",
            "target": target,
        },
        "sizes": {
            "checkpoint_weight_bytes": before,
            "f32_weight_bytes": 4 * checkpoint.source["parameters"],
            "artifact_weight_bytes": weight_bytes,
        },
        "accuracy": None,
        "latency": None,
    }
