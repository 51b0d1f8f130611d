"""A token's embedding from int8, int4 or float rows, normalised and quantised in the same pass.

    e = word[id] + position[p] (+ token_type[t]);  h = LayerNorm(e);  q, s_t = quantised h

word rows: float [V, E]; or i8 [V, E] with scale f32 [V]; or int4, u8 [V, ceil(E/2)] nibbles q4 + 8 (even column low),
group_scale u8 [V, ceil(E/32)] and scale f32 [V]: word = scale * m * q4. position, token_type float tables [.., E].
A decoder has neither position, token types nor norm: `gather` alone.
"""

import torch
import triton
import triton.language as tl

from approxrt.kernels import launch
from approxrt.kernels.layer_norm import normalize, store_quantized
from approxrt.kernels.numerics import narrow

FLOAT, INT8, INT4 = 0, 1, 2


@triton.jit
def word_rows(ids, cols, inside, word_ptr, group_ptr, scale_ptr, ldw, ldg, KIND: tl.constexpr):
    """f32 [rows, BLOCK] of the rows `ids` [rows, 1]; ids in int64, as a table may pass 2^31 elements."""
    if KIND == 2:
        packed = tl.load(word_ptr + ids * ldw + cols[None, :] // 2, mask=inside, other=0x88).to(tl.int32)
        nibble = (packed >> (cols[None, :] % 2 * 4)) & 15
        m = tl.load(group_ptr + ids * ldg + cols[None, :] // 32, mask=inside, other=0).to(tl.int32)
        values = (m * (nibble - 8)).to(tl.float32) * tl.load(scale_ptr + ids)
    elif KIND == 1:
        values = tl.load(word_ptr + ids * ldw + cols[None, :], mask=inside, other=0).to(tl.float32)
        values = values * tl.load(scale_ptr + ids)
    else:
        values = tl.load(word_ptr + ids * ldw + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    return values


@triton.jit
def embedding_kernel(
    ids_ptr, positions_ptr, types_ptr, word_ptr, group_ptr, scale_ptr, position_ptr, type_ptr, gamma_ptr, beta_ptr,
    h_ptr, q_ptr, q_scale_ptr, M, E, ldw, ldg, ldh, ldq, eps,
    KIND: tl.constexpr, POSITION: tl.constexpr, TYPES: tl.constexpr, NORM: tl.constexpr, WRITE_Q: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0) * ROWS + tl.arange(0, ROWS))[:, None]
    cols = tl.arange(0, BLOCK)
    inside = (rows < M) & (cols[None, :] < E)
    ids = tl.load(ids_ptr + rows, mask=rows < M, other=0).to(tl.int64)
    e = word_rows(ids, cols, inside, word_ptr, group_ptr, scale_ptr, ldw, ldg, KIND)
    if POSITION:
        at = tl.load(positions_ptr + rows, mask=rows < M, other=0)
        e += tl.load(position_ptr + at * E + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    if TYPES:
        at = tl.load(types_ptr + rows, mask=rows < M, other=0)
        e += tl.load(type_ptr + at * E + cols[None, :], mask=inside, other=0.0).to(tl.float32)
    if NORM:
        gamma = tl.load(gamma_ptr + cols, mask=cols < E, other=0.0)
        beta = tl.load(beta_ptr + cols, mask=cols < E, other=0.0)
        e = normalize(e, inside, gamma, beta, E, eps, False)
    tl.store(h_ptr + rows * ldh + cols[None, :], narrow(e, h_ptr.dtype.element_ty), mask=inside)
    if WRITE_Q:
        store_quantized(e, rows, cols, M, q_ptr, ldq, q_scale_ptr)


class WordTable:
    """Word embeddings of any kind on a device; `kind` and tensors as the module says."""

    def __init__(
        self, words: torch.Tensor, width: int, scale: torch.Tensor | None = None, groups: torch.Tensor | None = None
    ) -> None:
        self.words, self.width = words, width
        self.scale = words if scale is None else scale
        self.groups = words if groups is None else groups
        self.kind = FLOAT if scale is None else INT8 if groups is None else INT4


def embedding(
    table: WordTable,
    ids: torch.Tensor,
    h: torch.Tensor,
    *,
    positions: torch.Tensor | None = None,
    types: torch.Tensor | None = None,
    position_table: torch.Tensor | None = None,
    type_table: torch.Tensor | None = None,
    norm: tuple[torch.Tensor, torch.Tensor, float] | None = None,
    quantized: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> None:
    """ids, positions, types i32 [M] -> h [M, E] and, if given, `quantized` = (q, scale). `norm`: gamma, beta, eps."""
    m = ids.shape[0]
    gamma, beta, eps = norm if norm is not None else (h, h, 0.0)
    q, scale = quantized if quantized is not None else (h, h)
    config = launch.row_rule(max(table.width, q.shape[1]) if quantized is not None else table.width)
    with_positions, with_types = position_table is not None, type_table is not None
    embedding_kernel[(launch.ceil_div(m, config["ROWS"]),)](
        ids, positions if with_positions else ids, types if with_types else ids,
        table.words, table.groups, table.scale,
        position_table if with_positions else h, type_table if with_types else h, gamma, beta,
        h, q, scale, m, table.width, table.words.stride(0), table.groups.stride(0), h.stride(0), q.stride(0), eps,
        table.kind, with_positions, with_types, norm is not None, quantized is not None,
        enable_fp_fusion=False, **config.kwargs(),
    )  # fmt: skip
