"""Instruction-set levels as test parameters, and what float32 may err by."""

from __future__ import annotations

import numpy as np
import pytest

from approxrt import _C

SUPPORTED = tuple(_C.supported_isas())
ALL = ("scalar", "avx2", "avxvnni", "avx512", "avx512vnni", "amx")
EPS = float(np.finfo(np.float32).eps)


def _each(levels: tuple[str, ...]) -> pytest.MarkDecorator:
    """Levels that this CPU lacks are left out here: `test_isa.test_kernels_of_this_level_are_tested` says which."""
    return pytest.mark.parametrize("isa", [isa for isa in levels if isa in SUPPORTED])


# AMX has kernels for quantised linears alone: for every other family its level is avx512vnni's, by the same functions.
every_level = _each(tuple(isa for isa in ALL if isa != "amx"))
every_level_of_linears = _each(ALL)


def sum_tolerance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Bound on the error of float32 dot products a @ b.T in any order: K eps sum |a||b| (Higham 2002, 3.1)."""
    return (a.shape[-1] + 2) * EPS * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64).T)
