"""Linears on the GPU: an artifact's weights re-laid for the kernels at hand, and the kernel that each is given to.

Linears that read the same input (query, key and value) are one product: their rows are stacked. An encoder's int4
weights become int8 here, since its products are of many tokens and bound by tensor cores, not by reading weights; a
decoder's stay int4. A few tokens run on a GEMV, whose sums are those of the GEMMs. Weights with float16 scales of
groups (g4, g8) become float32 and lose nothing: no kernel here reads them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from approxrt.artifact.spec.formats import GROUP_KINDS, LinearSpec
from approxrt.artifact.storage.bsr import bsr_to_dense
from approxrt.artifact.storage.groupwise import dequantize_groups, matrix_parts
from approxrt.artifact.storage.int4 import row_integers, tile_integers, unpack_nibbles
from approxrt.kernels.epilogue import Workspace
from approxrt.kernels.gemm_bsr_int8 import gemm_bsr_int8
from approxrt.kernels.gemm_f32 import gemm_f32
from approxrt.kernels.gemm_int4 import gemm_int4, pack_int4
from approxrt.kernels.gemm_int8 import gemm_int8
from approxrt.kernels.gemv import gemv
from approxrt.kernels.launch import GEMV_TOKENS, K_MULTIPLE, SMS, ceil_div, gemm_bsr_config, round_up
from approxrt.kernels.quantize_rows import quantize_rows
from approxrt.runtime.cuda.layout import choose_layout, longest_part, stacked_tiles, to_blocks, work_items


@dataclass
class Activations:
    """A linear's input in the forms that exist: float rows, and int8 rows with their scales."""

    rows: torch.Tensor
    quantized: tuple[torch.Tensor, torch.Tensor] | None = None


class DeviceLinear(Protocol):
    """y = act(x W^T + b) (+ residual) with weights on the device."""

    kernel: str
    quantizes: bool  # reads `Activations.quantized`
    out_features: int

    def __call__(
        self, x: Activations, y: torch.Tensor, activation: str = "identity", residual: torch.Tensor | None = None
    ) -> None: ...

    def info(self) -> dict[str, Any]: ...


class FloatLinear:
    """float32 weights [N, K]."""

    kernel, quantizes = "gemm_f32", False

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight, self.bias = weight, bias
        self.out_features = weight.shape[0]

    def __call__(
        self, x: Activations, y: torch.Tensor, activation: str = "identity", residual: torch.Tensor | None = None
    ) -> None:
        gemm_f32(x.rows, self.weight, self.bias, y, activation, residual)

    def info(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "bytes": 4 * self.weight.numel()}


class Int8Linear:
    """int8 weights [N, K padded], dense."""

    kernel, quantizes = "gemm_int8", True

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, workspace: Workspace | None = None
    ) -> None:
        self.weight, self.scale, self.bias, self.workspace = weight, scale, bias, workspace
        self.out_features = weight.shape[0]

    def __call__(
        self, x: Activations, y: torch.Tensor, activation: str = "identity", residual: torch.Tensor | None = None
    ) -> None:
        assert x.quantized is not None
        if y.shape[0] <= GEMV_TOKENS:
            gemv(*x.quantized, self.weight, self.scale, self.bias, y, activation, residual)
        else:
            gemm_int8(*x.quantized, self.weight, self.scale, self.bias, y, activation, residual, self.workspace)

    def info(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "bytes": self.weight.numel()}


class Int4Linear:
    """int4 weights that stay int4 (`kernels.gemm_int4.pack_int4`): for decoding, which waits for reading them."""

    kernel, quantizes = "gemm_int4", True

    def __init__(
        self,
        weight: torch.Tensor,
        groups: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        workspace: Workspace,
    ) -> None:
        self.weight, self.groups, self.scale, self.bias, self.workspace = weight, groups, scale, bias, workspace
        self.out_features = weight.shape[0]

    def __call__(
        self, x: Activations, y: torch.Tensor, activation: str = "identity", residual: torch.Tensor | None = None
    ) -> None:
        assert x.quantized is not None
        if y.shape[0] <= GEMV_TOKENS:
            gemv(*x.quantized, self.weight, self.scale, self.bias, y, activation, residual, self.groups)
        else:
            gemm_int4(
                *x.quantized, self.weight, self.groups, self.scale, self.bias, y, activation, residual, self.workspace
            )

    def info(self) -> dict[str, Any]:
        return {"kernel": self.kernel, "bytes": self.weight.numel() + self.groups.numel()}


class BlockSparseLinear:
    """int8 weights in blocks that are kept; work is cut by the number of tokens."""

    kernel, quantizes = "gemm_bsr_int8", True

    def __init__(
        self,
        q: np.ndarray,
        kept: np.ndarray,
        block: tuple[int, int],
        scale: torch.Tensor,
        bias: torch.Tensor,
        workspace: Workspace,
    ) -> None:
        blocks, columns, self.indptr = to_blocks(q, kept, block)
        self.block, self.scale, self.bias, self.workspace = block, scale, bias, workspace
        self.out_features = q.shape[0]
        # An empty tensor has no address to pass to a kernel.
        self.blocks = _put(blocks if len(blocks) else np.zeros((1, *block), np.int8), scale.device)
        self.columns = _put(columns if len(columns) else np.zeros(1, np.int32), scale.device)
        self._items: dict[int | None, torch.Tensor] = {}

    def __call__(
        self, x: Activations, y: torch.Tensor, activation: str = "identity", residual: torch.Tensor | None = None
    ) -> None:
        assert x.quantized is not None
        config = gemm_bsr_config(y.shape[0], self.out_features, *self.block)
        lengths = np.diff(self.indptr).tolist()
        longest = longest_part(lengths, ceil_div(y.shape[0], config["BLOCK_M"]), SMS)
        if longest not in self._items:
            # The first pass of a bucket runs outside of a graph's capture, so this copy does.
            self._items[longest] = _put(work_items(self.indptr, longest), self.scale.device)
        gemm_bsr_int8(
            *x.quantized, self.blocks, self.columns, self._items[longest], self.scale, self.bias, y, activation,
            residual, None if longest is None else self.workspace, config,
        )  # fmt: skip

    def info(self) -> dict[str, Any]:
        return {"kernel": f"{self.kernel} {self.block[0]}x{self.block[1]}", "bytes": self.blocks.numel()}


def build_linear(
    parts: Sequence[tuple[str, LinearSpec]],
    tensors: Mapping[str, np.ndarray],
    device: torch.device,
    workspace: Workspace,
    keep_int4: bool = False,
) -> DeviceLinear:
    """One product of the named linears, whose inputs are the same; if one of them is f32, all run as f32.

    `keep_int4`: s4 weights stay int4 on the device. g4 and g8 run as f32. A linear without a bias tensor (a tied
    head) has none.
    """
    bias = _put(np.concatenate([_bias(*part, tensors) for part in parts]), device)
    if any(linear.kind == "f32" or linear.kind in GROUP_KINDS for _, linear in parts):
        return FloatLinear(_put(np.concatenate([float_rows(*part, tensors) for part in parts]), device), bias)
    scale = _put(np.concatenate([tensors[f"{name}.scale"] for name, _ in parts]), device)
    if keep_int4 and all(linear.kind == "s4" for _, linear in parts):
        q4 = np.concatenate([unpack_nibbles(tensors[f"{name}.q4"], linear.in_features) for name, linear in parts])
        groups = np.concatenate([tensors[f"{name}.group_scale"] for name, _ in parts])
        packed, scales = pack_int4(q4, groups)
        return Int4Linear(_put(packed, device), _put(scales, device), scale, bias, workspace)
    q = np.concatenate([integer_rows(name, linear, tensors) for name, linear in parts])
    kept = stacked_tiles(parts, tensors)
    layout = choose_layout(kept, *q.shape)
    if kept is not None and layout.block is not None:
        return BlockSparseLinear(q, kept, layout.block, scale, bias, workspace)
    padded = np.zeros((q.shape[0], round_up(q.shape[1], K_MULTIPLE)), np.int8)
    padded[:, : q.shape[1]] = q
    return Int8Linear(_put(padded, device), scale, bias, workspace)


def _bias(name: str, linear: LinearSpec, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    bias = tensors.get(f"{name}.bias")
    return np.zeros(linear.out_features, np.float32) if bias is None else bias


def float_rows(name: str, linear: LinearSpec, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """f32[N, K] of a linear of any kind."""
    if linear.kind == "f32":
        return tensors[f"{name}.weight"]
    if linear.kind in GROUP_KINDS:
        return dequantize_groups(matrix_parts(name, tensors), linear.in_features)
    return integer_rows(name, linear, tensors) * tensors[f"{name}.scale"][:, None]


def integer_rows(name: str, linear: LinearSpec, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """i8[N, K] of an integer linear of any kind, zeros where nothing is stored; int4 weights as m * q4."""
    if linear.kind == "s8":
        return tensors[f"{name}.q"]
    if linear.kind == "s4":
        rows = row_integers(tensors[f"{name}.q4"], tensors[f"{name}.group_scale"], linear.in_features)
        return rows.astype(np.int8)
    indices, indptr = tensors[f"{name}.indices"], tensors[f"{name}.indptr"]
    if linear.kind == "bsr_s4":
        tiles = tile_integers(tensors[f"{name}.tiles4"], tensors[f"{name}.group_scale"], indptr).astype(np.int8)
    else:
        tiles = tensors[f"{name}.tiles"]
    return bsr_to_dense(tiles, indices, indptr, linear.out_features, linear.in_features)


def quantized_like(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Room for the int8 form of `rows` [M, K]: (i8 [M, K padded], f32 [M])."""
    m, k = rows.shape
    return (
        torch.empty(m, round_up(k, K_MULTIPLE), dtype=torch.int8, device=rows.device),
        torch.empty(m, dtype=torch.float32, device=rows.device),
    )


def apply(
    linear: DeviceLinear,
    x: Activations,
    y: torch.Tensor,
    activation: str = "identity",
    residual: torch.Tensor | None = None,
) -> None:
    """`linear`, quantising its input first where that has not happened."""
    if linear.quantizes and x.quantized is None:
        x = Activations(x.rows, quantized_like(x.rows))
        assert x.quantized is not None
        quantize_rows(x.rows, *x.quantized)
    linear(x, y, activation, residual)


def _put(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy on the device: an artifact's arrays are read-only views of a mapped file."""
    return torch.tensor(array, device=device)
