"""kernels/quantize_rows.py equals the reference's quantiser bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from gpu_support import empty, on_device, torch

from approxrt.kernels.quantize_rows import quantize_rows
from approxrt.runtime.reference.encoder import quantize_tokens


@pytest.mark.parametrize(("m", "k"), [(1, 1), (3, 63), (9, 64), (5, 65), (16, 384)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_equals_reference(m: int, k: int, dtype: torch.dtype) -> None:
    rng = np.random.default_rng(m * k)
    x = (rng.normal(size=(m, k)) * 10.0 ** rng.uniform(-3, 3, (m, 1))).astype(np.float32)
    x = torch.from_numpy(x).to(dtype).float().numpy()
    want_q, want_scale = quantize_tokens(x)
    q, scale = empty(m, -(-k // 64) * 64, dtype=torch.int8), empty(m)
    quantize_rows(on_device(x).to(dtype), q, scale)
    np.testing.assert_array_equal(q[:, :k].cpu().numpy(), want_q)
    assert not q[:, k:].any()
    np.testing.assert_array_equal(scale.cpu().numpy(), want_scale)


def test_zeros_ties_and_strides() -> None:
    """A row of zeros, one below the floor, ties that round to even, and rows with a stride."""
    wide = np.zeros((4, 96), np.float32)
    wide[1, :3] = 1e-31, -5e-31, 0
    wide[2, :5] = 127, 0.5, 1.5, 2.5, -0.5
    wide[3] = np.linspace(-3, 3, 96)
    x = on_device(wide)[:, :70]
    want_q, want_scale = quantize_tokens(wide[:, :70])
    q, scale = empty(4, 128, dtype=torch.int8), empty(4)
    quantize_rows(x, q, scale)
    assert want_q[2, :5].tolist() == [127, 0, 2, 2, 0]
    np.testing.assert_array_equal(q[:, :70].cpu().numpy(), want_q)
    np.testing.assert_array_equal(scale.cpu().numpy(), want_scale)
    assert scale[:2].tolist() == [0, 0] and not q[:, 70:].any()
