"""Dense or blocks, and how work is cut: decided on the host."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import random_tensors, small_spec

from approxrt.artifact.spec.formats import LinearSpec
from approxrt.artifact.storage.bsr import bsr_to_dense, dense_to_bsr, expand_mask, grid
from approxrt.runtime.cuda.layout import (
    BLOCKS,
    choose_layout,
    kept_blocks,
    longest_part,
    model_layouts,
    products,
    stacked_tiles,
    to_blocks,
    work_items,
)


def blocky(n: int, k: int, block: tuple[int, int], density: float) -> np.ndarray:
    """Kept 16x4 tiles that are whole blocks."""
    shape = (n // block[0], k // block[1])
    rng = np.random.default_rng(0)
    mask = np.zeros(shape[0] * shape[1], bool)
    mask[rng.permutation(mask.size)[: round(density * mask.size)]] = True
    return np.kron(mask.reshape(shape), np.ones((block[0] // 16, block[1] // 4), bool))


@pytest.mark.parametrize("block", BLOCKS)
def test_whole_blocks_run_sparse(block: tuple[int, int]) -> None:
    layout = choose_layout(blocky(768, 768, block, 0.25), 768, 768)
    assert layout.block == block and layout.cost == 1.0
    assert layout.macs == layout.blocks * block[0] * block[1] == layout.stored_macs


def test_scattered_tiles_run_dense() -> None:
    kept = np.random.default_rng(0).random(grid(768, 768)) < 0.25
    layout = choose_layout(kept, 768, 768)
    assert layout.block is None and layout.macs == 768 * 768
    assert layout.cost == pytest.approx(4, rel=0.05)


def test_stored_dense_runs_dense() -> None:
    layout = choose_layout(None, 100, 60)
    assert layout.block is None and layout.cost == 1.0


def test_high_density_runs_dense() -> None:
    assert choose_layout(blocky(768, 768, (64, 64), 0.9), 768, 768).block is None


def test_few_scattered_tiles_run_sparse_at_a_cost() -> None:
    """A handful of tiles: most blocks are empty though none is full."""
    kept = np.zeros(grid(512, 512), bool)
    kept[3, 7] = kept[20, 90] = True
    layout = choose_layout(kept, 512, 512)
    assert layout.block == (32, 64) and layout.blocks == 2
    assert layout.cost == 32


@given(st.integers(1, 200), st.integers(1, 300), st.sampled_from(BLOCKS), st.floats(0, 1))
def test_blocks_hold_the_matrix(n: int, k: int, block: tuple[int, int], density: float) -> None:
    rng = np.random.default_rng(n * k)
    kept = rng.random(grid(n, k)) < density
    q = rng.integers(-127, 128, (n, k), dtype=np.int8) * expand_mask(kept, n, k)
    q = bsr_to_dense(*dense_to_bsr(q, kept), n, k)
    blocks, columns, indptr = to_blocks(q, kept, block)
    assert len(blocks) == len(columns) == indptr[-1] == kept_blocks(kept, *block).sum()
    back = np.zeros((len(indptr) - 1, -(-k // block[1]), *block), np.int8)
    back[np.repeat(np.arange(len(indptr) - 1), np.diff(indptr)), columns] = blocks
    back = back.transpose(0, 2, 1, 3).reshape(back.shape[0] * block[0], -1)
    np.testing.assert_array_equal(back[:n, :k], q)
    assert not back[n:].any() and not back[:, k:].any()


@given(st.lists(st.integers(0, 40), min_size=1, max_size=30), st.one_of(st.none(), st.integers(1, 50)))
def test_items_cover_every_block_once(lengths: list[int], longest: int | None) -> None:
    indptr = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    items = work_items(indptr, longest)
    seen = np.zeros(indptr[-1], int)
    for row, begin, end, parts in items.tolist():
        assert indptr[row] <= begin <= end <= indptr[row + 1]
        seen[begin:end] += 1
        assert parts == (items[:, 0] == row).sum()
        assert longest is None or end - begin <= longest
    assert (seen == 1).all()
    assert set(items[:, 0]) == set(range(len(lengths)))  # an empty row has its bias to write
    sizes = items[:, 2] - items[:, 1]
    assert (np.diff(sizes) <= 0).all()


def test_cutting_makes_enough_programs() -> None:
    lengths = [12] * 12
    longest = longest_part(lengths, 1, 132)
    assert longest == 4  # not shorter, though 12 * 3 programs are fewer than 132
    assert longest_part([48] * 12, 1, 132) in (4, 5)
    assert longest_part(lengths, 11, 132) is None
    assert longest_part([0, 0], 1, 132) is None
    # One row with nearly everything is cut, others are not
    assert longest_part([100, 1, 1, 1], 1, 8) == 13


def test_stacked_linears_keep_their_tiles() -> None:
    """Query, key and value of 40 rows each: a strip of the stack may hold rows of two."""
    spec = small_spec("bsr_s8", hidden=40)
    tensors = random_tensors(spec)
    parts = next(parts for parts in products(spec) if len(parts) == 3)
    assert [name.rsplit(".", 1)[1] for name, _ in parts] == ["query", "key", "value"]
    kept = stacked_tiles(parts, tensors)
    assert kept is not None and kept.shape == grid(120, 40)
    rows = np.concatenate(
        [
            bsr_to_dense(*(tensors[f"{name}.{part}"] for part in ("tiles", "indices", "indptr")), 40, 40)
            for name, _ in parts
        ]
    )
    assert not (rows * ~expand_mask(kept, 120, 40)).any()
    assert 0 < kept.mean() < 1
    assert stacked_tiles([("x", LinearSpec(40, 40, "s8"))], {}) is None


def test_layouts_of_a_model() -> None:
    spec = small_spec("bsr_s8", hidden=40)
    layouts = model_layouts(spec, random_tensors(spec))
    assert "layers.0.attention.query+layers.0.attention.key+layers.0.attention.value" in layouts
    assert len(layouts) == 6 and layouts["head.out"].cost == 1
