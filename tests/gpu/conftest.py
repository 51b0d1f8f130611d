"""Tests of the GPU's kernels and runtime: compiled where there is a GPU, else under triton's interpreter on the CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def interpreter_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton looks at the variable at every launch; other tests of the process must not see it."""
    import gpu_support

    if gpu_support.INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    yield
