"""The formats that weights are stored in: which tensors each has, and what they stand for.

Linear kinds, with N = out_features, K = in_features:

  f32      weight f32[N, K]
  s8       q i8[N, K], scale f32[N]; W[o, i] = scale[o] * q[o, i], q in [-127, 127]
  bsr_s8   tiles i8[nnz, 16, 4], indices u16[nnz], indptr i32[ceil(N/16) + 1], scale f32[N];
           CSR over tiles: strip g (outputs 16g..16g+15) owns tiles indptr[g]..indptr[g+1]-1,
           tile t covers inputs 4*indices[t]..4*indices[t]+3, indices ascend within a strip;
           rows and columns past N and K are stored as zeros
  s4       q4 u8[N, ceil(K/2)], group_scale u8[N, ceil(K/32)], scale f32[N];
           W[o, i] = scale[o] * m * q4, m = group_scale[o, i/32] in [1, 18], q4 in [-7, 7]: m * q4 is an
           int8, and sums of products are those of s8. A nibble is q4 + 8, the even input in the byte's
           low one; an odd K leaves a last nibble of 8
  bsr_s4   tiles4 u8[nnz, 16, 2], group_scale u8[groups, 16], indices, indptr and scale as bsr_s8;
           every 8 stored tiles of a strip (32 weights an output) share a row of group_scale, the strip's
           last ones may be fewer; rows and columns past N and K are stored as nibbles of 8
  g4       q4 u8[N, ceil(K/2)], group_scale f16[N, ceil(K/32)], group_offset f16[N, ceil(K/32)];
           W[o, i] = group_scale[o, i/32] * q4 + group_offset[o, i/32], q4 in [0, 15] with the even input in the
           byte's low nibble; an odd K leaves a last nibble of 0. What Q4_0 and Q4_1 of .gguf files say, exactly
  g6       q4 u8[N, ceil(K/2)], q2 u8[N, ceil(K/4)], group_scale f16[N, ceil(K/32)];
           W[o, i] = group_scale[o, i/32] * (q4 + 16 q2 - 32), q4 as of g4, q2 in [0, 3] with the first of four inputs
           in the byte's low bits, zeros behind K in both
  g8       q i8[N, K], group_scale f16[N, ceil(K/32)]; W[o, i] = group_scale[o, i/32] * q. Likewise Q8_0

and always `bias f32[N]`. Word embeddings are `f32` (weight f32[V, E]), `s8`
(q i8[V, E], scale f32[V]: one scale a row), `s4` (q4, group_scale and scale as
above with N = V, K = E, but group scales up to 255: no 8-bit product is formed),
`g4`, `g6` or `g8`, as above, or, in an encoder, `s2`: two bits a weight, and four in
the rows of `wide` i32[F], which ascend. F is `wide_words`, and

  q2 u8[V - F, ceil(E/4)]  the other rows in the order of their ids; a weight is
                           scale * m * (2 q - 3), q in [0, 3] with the first of four in the byte's low bits and zeros
                           behind E
  q4 u8[F, ceil(E/2)]      the rows of `wide`, as of s4
  group_scale u8[V, ceil(E/32)], scale f32[V]     of all rows by their ids, as of s4

Positions are `f32` (embeddings.position.weight f32[P, E]) or `s8` (q i8[P, E], scale f32[P]: one a row).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

TILE_N = 16


TILE_K = 4


GROUP_TILES = 8


GROUP_WEIGHTS = GROUP_TILES * TILE_K  # of one output that share an int4 group scale


MAX_GROUP_SCALE = 18  # 18 * 7 = 126


MAX_ROW_GROUP_SCALE = 255  # of embedding rows


LinearKind = Literal["f32", "s8", "bsr_s8", "s4", "bsr_s4", "g4", "g6", "g8"]


LINEAR_KINDS: tuple[LinearKind, ...] = ("f32", "s8", "bsr_s8", "s4", "bsr_s4", "g4", "g6", "g8")


GROUP_KINDS: tuple[LinearKind, ...] = ("g4", "g6", "g8")


# Tensors whose length is the number of tiles kept, which the data decides: `dense_tensors` does not list them.
TILE_PARTS: dict[LinearKind, tuple[str, ...]] = {
    "bsr_s8": ("tiles", "indices"),
    "bsr_s4": ("tiles4", "indices", "group_scale"),
}


@dataclass(frozen=True)
class LinearFormat:
    """Hold what rounding has to know of a kind: bits of an integer, its limits, and whether 32 share a float16
    scale."""

    kind: LinearKind
    bits: int
    limits: tuple[int, int]
    grouped: bool = False


# The dense kinds that weights are rounded to; stored by tiles, s8 and s4 are called bsr_s8 and bsr_s4.
FORMATS: dict[LinearKind, LinearFormat] = {
    form.kind: form
    for form in (
        LinearFormat("s8", 8, (-127, 127)),
        LinearFormat("s4", 4, (-7, 7)),
        LinearFormat("g4", 4, (0, 15), grouped=True),
        LinearFormat("g6", 6, (0, 63), grouped=True),
        LinearFormat("g8", 8, (-127, 127), grouped=True),
    )
}
TILED: dict[LinearKind, LinearKind] = {"s8": "bsr_s8", "s4": "bsr_s4"}

# Of embedding tables: a decoder's may be its head, too, so it is of a kind that linears have.
TableKind = Literal["f32", "s8", "s4", "g4", "g6", "g8"]


TABLE_KINDS: tuple[TableKind, ...] = ("f32", "s8", "s4", "g4", "g6", "g8")


EmbeddingKind = Literal["f32", "s8", "s4", "g4", "g6", "g8", "s2"]


EMBEDDING_KINDS: tuple[EmbeddingKind, ...] = (*TABLE_KINDS, "s2")


PositionKind = Literal["f32", "s8"]


POSITION_KINDS: tuple[PositionKind, ...] = ("f32", "s8")


@dataclass(frozen=True)
class LinearSpec:
    """y = x W^T + b, with x [tokens, in_features] and y [tokens, out_features]."""

    in_features: int
    out_features: int
    kind: LinearKind = "f32"


def embedding_tensors(kind: EmbeddingKind, v: int, e: int, wide: int = 0) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Return (name, dtype, shape) of the embedding table of `v` rows of `e`, `wide` of which have four bits in kind
    s2."""
    if kind == "f32":
        yield "embeddings.word.weight", "F32", (v, e)
    elif kind == "s4":
        yield from _int4_rows("embeddings.word", v, e)
    elif kind in GROUP_KINDS:
        yield from _group_rows("embeddings.word", kind, v, e)
    elif kind == "s2":
        yield "embeddings.word.q2", "U8", (v - wide, -(-e // 4))
        yield "embeddings.word.q4", "U8", (wide, -(-e // 2))
        yield "embeddings.word.wide", "I32", (wide,)
        yield "embeddings.word.group_scale", "U8", (v, -(-e // GROUP_WEIGHTS))
        yield "embeddings.word.scale", "F32", (v,)
    else:
        yield "embeddings.word.q", "I8", (v, e)
        yield "embeddings.word.scale", "F32", (v,)


def linear_tensors(name: str, linear: LinearSpec) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Return (name, dtype, shape) of a linear's tensors whose shape is known without its data."""
    n, k = linear.out_features, linear.in_features
    if linear.kind == "f32":
        yield f"{name}.weight", "F32", (n, k)
    elif linear.kind == "s4":
        yield from _int4_rows(name, n, k)
    elif linear.kind in GROUP_KINDS:
        yield from _group_rows(name, linear.kind, n, k)
    else:
        yield f"{name}.scale", "F32", (n,)
        if linear.kind == "s8":
            yield f"{name}.q", "I8", (n, k)
        else:
            yield f"{name}.indptr", "I32", (-(-n // TILE_N) + 1,)
    yield f"{name}.bias", "F32", (n,)


def _int4_rows(name: str, n: int, k: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Tensors of an [n, k] int4 matrix stored by rows."""
    yield f"{name}.q4", "U8", (n, -(-k // 2))
    yield f"{name}.group_scale", "U8", (n, -(-k // GROUP_WEIGHTS))
    yield f"{name}.scale", "F32", (n,)


def _group_rows(name: str, kind: str, n: int, k: int) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Tensors of an [n, k] matrix with float16 scales of 32 weights."""
    groups = (n, -(-k // GROUP_WEIGHTS))
    yield f"{name}.group_scale", "F16", groups
    if kind in ("g4", "g6"):
        yield f"{name}.q4", "U8", (n, -(-k // 2))
    if kind == "g4":
        yield f"{name}.group_offset", "F16", groups
    elif kind == "g6":
        yield f"{name}.q2", "U8", (n, -(-k // 4))
    else:
        yield f"{name}.q", "I8", (n, k)
