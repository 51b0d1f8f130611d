"""The 4- and 8-bit tensors of a .gguf file as they are, not turned to floats and rounded again.

Q4_0, Q4_1 and Q8_0 hold blocks of 32 weights of a row (ggml-common.h of llama.cpp), little-endian:

  Q4_0   f16 d, 16 bytes     w = d * (q - 8)
  Q4_1   f16 d, f16 m, 16 bytes     w = d * q + m
  Q8_0   f16 d, 32 int8     w = d * q

with weight j of a block in the low nibble of byte j, weight 16 + j in the high one. These are the artifact's g4 and g8.
llama.cpp interleaves the rows of a Llama model's query and key heads for its own rotary positions; they are put back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.artifact.storage.groupwise import pack_unsigned
from approxrt.models.gguf_file import GgufFile
from approxrt.models.gguf_model import to_halves

_LAYER_PARTS = {
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.output",
    "ffn_gate": "ffn.gate",
    "ffn_up": "ffn.up",
    "ffn_down": "ffn.down",
}
_TABLES = {"token_embd.weight": "embeddings.word", "output.weight": "head.out"}
_BLOCK_BYTES = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}


def grouped_tensors(file: GgufFile, spec: DecoderSpec) -> dict[str, dict[str, np.ndarray]]:
    """Return the parts of a g4 or g8, by the artifact's name, of each matrix that is in one of the forms."""
    return dict(_parts(file, spec))


def _parts(file: GgufFile, spec: DecoderSpec) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for tensor in file.tensors.values():
        name = artifact_name(tensor.name)
        if name is None or tensor.kind not in _BLOCK_BYTES or len(tensor.shape) != 2:
            continue
        parts = split_blocks(tensor.rows, tensor.kind)
        if not all(np.isfinite(array).all() for array in parts.values()):
            continue
        if spec.architecture == "llama" and name.endswith(("attention.query", "attention.key")):
            layer = spec.layers[int(name.split(".")[1])]
            heads = layer.num_heads if name.endswith("query") else layer.num_kv_heads
            parts = {part: to_halves(array, heads) for part, array in parts.items()}
        yield name, parts


def artifact_name(name: str) -> str | None:
    """The artifact's name of a linear or of the embedding table; None of all other tensors."""
    if name in _TABLES:
        return _TABLES[name]
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    part = _LAYER_PARTS.get(found[2]) if found else None
    return f"layers.{found[1]}.{part}" if found and part else None


def split_blocks(data: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    """u8[N, bytes] of a row's blocks -> the parts of a g4 (Q4_0, Q4_1) or g8 (Q8_0) matrix."""
    n = len(data)
    blocks = data.reshape(n, -1, _BLOCK_BYTES[kind])
    scale = _halves(blocks[..., :2])
    if kind == "Q8_0":
        return {"q": np.ascontiguousarray(blocks[..., 2:].view(np.int8).reshape(n, -1)), "group_scale": scale}
    if kind == "Q4_0":
        # -8 d is d with another exponent, unless it overflows: then it is infinite, and the caller sees that.
        with np.errstate(over="ignore"):
            offset = (scale * np.float16(-8)).astype(np.float16)
        nibbles = blocks[..., 2:]
    else:
        offset, nibbles = _halves(blocks[..., 2:4]), blocks[..., 4:]
    q = np.concatenate([nibbles & 15, nibbles >> 4], axis=-1).reshape(n, -1)
    return {"q4": pack_unsigned(q), "group_scale": scale, "group_offset": offset}


def _halves(raw: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.ascontiguousarray(raw).view("<f2")[..., 0])
