"""Random operands of the integer products, on a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from approxrt.kernels.launch import K_MULTIPLE, round_up


@dataclass
class Product:
    """q [M, K], w [N, K] with their scales and the bias; K is a multiple of 128 (padding is random, too)."""

    q: torch.Tensor
    scale: torch.Tensor
    w: torch.Tensor
    w_scale: torch.Tensor
    bias: torch.Tensor

    @staticmethod
    def random(m: int, n: int, k: int, device: str, seed: int = 0) -> Product:
        rng = np.random.default_rng(seed)
        k = round_up(k, K_MULTIPLE)

        def put(array: np.ndarray) -> torch.Tensor:
            return torch.tensor(array, device=device)

        return Product(
            put(rng.integers(-127, 128, (m, k), dtype=np.int8)),
            put(rng.uniform(1e-3, 1e-2, m).astype(np.float32)),
            put(rng.integers(-127, 128, (n, k), dtype=np.int8)),
            put(rng.uniform(1e-3, 1e-2, n).astype(np.float32)),
            put(rng.normal(size=n).astype(np.float32)),
        )

    def sums(self) -> torch.Tensor:
        """Exact: int64 by way of float64, which holds every sum below 2^53."""
        return (self.q.double() @ self.w.double().T).long()

    def room(self, dtype: torch.dtype = torch.float16) -> torch.Tensor:
        return torch.full((self.q.shape[0], self.w.shape[0]), 77, dtype=dtype, device=self.q.device)


def kept_blocks_mask(n: int, k: int, block: tuple[int, int], density: float, seed: int = 0) -> np.ndarray:
    """bool over 16x4 tiles: whole blocks, a share `density` of them, as many in one row as chance has it."""
    rng = np.random.default_rng(seed)
    shape = (-(-n // block[0]), -(-k // block[1]))
    mask = np.zeros(shape[0] * shape[1], bool)
    mask[rng.permutation(mask.size)[: round(density * mask.size)]] = True
    tiles = np.kron(mask.reshape(shape), np.ones((block[0] // 16, block[1] // 4), bool))
    return tiles[: -(-n // 16), : -(-k // 4)]
