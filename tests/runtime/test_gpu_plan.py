"""The GPU runtime's decisions on the host: buckets, tiles of queries, the block of integers, graphs, errors."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from approxrt.errors import DeviceError, MissingDependencyError
from approxrt.runtime.cuda.graphs import GraphCache
from approxrt.runtime.cuda.plan import PassViews, attention_tiles, bucket_of, fill_pass, round_tokens

LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=40)


@given(st.integers(1, 1 << 20))
def test_buckets_pad_little(tokens: int) -> None:
    bucket = round_tokens(tokens)
    assert bucket >= tokens and bucket % 16 == 0
    assert bucket - tokens < max(16, tokens / 8)
    assert round_tokens(bucket) == bucket


def test_buckets_are_few() -> None:
    assert [round_tokens(n) for n in (1, 16, 17, 128, 129, 144, 145, 256, 257, 4096)] == [
        16, 16, 32, 128, 144, 144, 160, 256, 288, 4096,
    ]  # fmt: skip
    assert len({round_tokens(n) for n in range(1, 16385)}) == 8 + 7 * 8


@given(LENGTHS, st.sampled_from([16, 64, 128]))
def test_tiles_cover_every_query_once(lengths: list[int], block_m: int) -> None:
    tiles = attention_tiles(lengths, block_m)
    starts = np.cumsum([0, *lengths])
    seen = np.zeros(starts[-1], int)
    for row, queries, key_row, keys, position in tiles.tolist():
        assert 1 <= queries <= block_m
        sequence = int(np.searchsorted(starts, row, side="right")) - 1
        assert (key_row, keys) == (starts[sequence], lengths[sequence])
        assert position == row - key_row and row + queries <= key_row + keys
        seen[row : row + queries] += 1
    assert (seen == 1).all()
    assert tiles[:, 3].tolist() == sorted(tiles[:, 3], reverse=True)


@given(LENGTHS, st.sampled_from([16, 64, 128]), st.booleans())
def test_a_pass_fits_its_bucket(lengths: list[int], block_m: int, with_types: bool) -> None:
    ids = [np.full(n, i + 1, np.int32) for i, n in enumerate(lengths)]
    types = [np.ones(n, np.int32) for n in lengths] if with_types else None
    bucket = bucket_of(lengths, block_m)
    block = np.full(bucket.integers, -9, np.int32)
    fill_pass(block, bucket, ids, types, block_m)
    views, total = PassViews.of(block, bucket), sum(lengths)
    assert views.ids.tolist() == np.concatenate(ids).tolist() + [0] * (bucket.tokens - total)
    assert views.types[:total].tolist() == [int(with_types)] * total
    assert views.positions[: lengths[0]].tolist() == list(range(lengths[0]))
    assert not views.positions[total:].any()
    assert views.cu_seqlens.tolist() == [*np.cumsum([0, *lengths]), *[total] * (bucket.sequences - len(lengths))]
    # Every row of the bucket is some tile's: the padding's have no keys.
    covered = np.zeros(bucket.tokens, int)
    for row, queries, _, keys, _ in views.tiles.tolist():
        covered[row : row + queries] += 1
        assert (keys == 0) == (row >= total or queries == 0)
    assert (covered == 1).all()


def test_graphs_are_captured_the_second_time_and_the_oldest_goes() -> None:
    log: list[tuple[str, str]] = []

    def note(what: str):
        return lambda key: log.append((what, key)) or f"{what} {key}"

    graphs = GraphCache(note("capture"), note("run"), note("replay"), limit=2)
    assert graphs("a") == "run a"
    assert graphs("a") == "replay capture a"
    assert log == [("run", "a"), ("capture", "a"), ("replay", "capture a")]
    for key in "abbcc":
        graphs(key)
    assert len(graphs) == 2
    log.clear()
    graphs("c")
    graphs("a")  # left when c came, as it was used before b
    assert log == [("replay", "capture c"), ("capture", "a"), ("replay", "capture a")]


def test_cuda_without_a_gpu_says_what_to_install() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    import approxrt

    pytest.importorskip("triton")
    with pytest.raises(DeviceError, match=r"sees no GPU.*CUDA build of torch.*device='cpu'"):
        approxrt.load("anywhere", device="cuda")


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_cuda_without_its_packages_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from approxrt.runtime.cuda.engine import require_cuda

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(MissingDependencyError, match=rf"'{package}'.*pip install 'approxrt\[cuda\]'"):
        require_cuda()


def test_the_plan_needs_neither_torch_nor_triton() -> None:
    code = (
        "import sys; import approxrt.runtime.cuda.plan, approxrt.runtime.cuda.graphs, approxrt.runtime.cuda.engine;"
        "assert not {'torch', 'triton'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
