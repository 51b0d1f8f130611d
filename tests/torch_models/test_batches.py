"""Batches hold every text once, those of like length together, and no more than they may."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="devices are torch's")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from approxrt.torch_models import batches  # noqa: E402
from approxrt.torch_models.batches import BatchLimit, batches_by_length  # noqa: E402


@given(st.lists(st.integers(1, 200), min_size=1, max_size=60), st.integers(1, 9), st.sampled_from([None, 64, 300]))
def test_every_text_once_within_the_limit(lengths: list[int], texts: int, tokens: int | None) -> None:
    sizes = np.array(lengths)
    found = list(batches_by_length(sizes, BatchLimit(texts, tokens)))
    assert sorted(np.concatenate(found)) == list(range(len(sizes)))
    assert np.array_equal(np.sort(sizes, kind="stable"), sizes[np.concatenate(found)])
    assert all(len(part) <= texts for part in found)
    if tokens is not None:
        assert all(len(part) == 1 or len(part) * sizes[part].max() <= tokens for part in found)


def test_a_gpu_s_memory_sets_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = BatchLimit(64, 8192)
    assert limit.on(torch.device("cpu"), 384) == limit
    free = 8 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 2 * free))
    found = limit.on(torch.device("cuda"), 384, layers=6)
    assert found.texts == found.tokens and found.tokens is not None
    each = 4 * batches.LIVE_VECTORS * 384 * 6
    assert 8192 <= found.tokens <= free * batches.MEMORY_SHARE / each + 8192
    assert limit.on(torch.device("cuda"), 384).tokens == found.tokens * 6 or found.tokens == 8192
    free = 1 << 20
    assert limit.on(torch.device("cuda"), 384) == BatchLimit(8192, 8192)
    free = 1 << 45
    assert limit.on(torch.device("cuda"), 384).tokens == batches.MOST_TOKENS
