"""Where the GPU's tests run, and what they share.

Triton decides when a kernel is decorated whether it will be interpreted, so the variable is set while triton and
all kernels are imported, here, and only here.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the GPU runtime needs torch")
pytest.importorskip("approxrt.kernels", reason="approxrt is not installed (run from the source tree)")

INTERPRETED = not torch.cuda.is_available()
DEVICE = "cpu" if INTERPRETED else "cuda"


def _import_kernels() -> None:
    import approxrt.kernels

    for module in pkgutil.iter_modules(approxrt.kernels.__path__):
        importlib.import_module(f"approxrt.kernels.{module.name}")


if not INTERPRETED:
    _import_kernels()
else:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("the GPU's kernels need triton", allow_module_level=True)
    if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
        raise RuntimeError("triton is loaded already, for a GPU: run tests/gpu before tests that import it, or alone")
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        _import_kernels()
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]

EPS16 = 2.0**-11  # half a unit in float16's last place, relative
EPS32 = 2.0**-24


def on_device(array: np.ndarray) -> torch.Tensor:
    """A copy: the interpreter tells storages apart by their address."""
    return torch.tensor(array, device=DEVICE)


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Filled with what shows up in a comparison if a kernel does not write it."""
    return torch.full(shape, 77, dtype=dtype, device=DEVICE)


def random_int8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-127, 128, shape, dtype=np.int8)


def padded(q: np.ndarray, multiple: int = 64) -> np.ndarray:
    """Columns padded with zeros, as the GEMMs want them."""
    return np.pad(q, ((0, 0), (0, -q.shape[1] % multiple)))
