"""The parts of a decoder's step on a GPU: buckets, tables, rows of the cache."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from approxrt.runtime.cuda.decode_plan import SPARE_ROWS, RowPool, StepViews, fill_step, step_bucket

RUNS = st.lists(st.tuples(st.integers(1, 90), st.integers(0, 700)), min_size=1, max_size=9)


@given(RUNS, st.booleans(), st.booleans(), st.sampled_from([16, 64]))
def test_a_step_fits_its_bucket(runs: list[tuple[int, int]], single: bool, all_logits: bool, block_m: int) -> None:
    new = [1 if single else count for count, _ in runs]
    before = [length for _, length in runs]
    first = (1 + np.cumsum([0, *[a + b for a, b in zip(new, before, strict=True)]])[:-1]).tolist()
    ids = [list(range(10 * i, 10 * i + count)) for i, count in enumerate(new)]
    bucket = step_bucket(new, before, block_m, all_logits)
    block = np.full(bucket.integers, -9, np.int32)
    outputs = fill_step(block, bucket, ids, before, first, block_m, all_logits)
    views, total = StepViews.of(block, bucket), sum(new)
    assert views.ids[:total].tolist() == [token for run in ids for token in run]
    assert not views.ids[total:].any() and not views.slots[total:].any() and not views.positions[total:].any()
    ends = np.cumsum(new)
    want = list(range(total)) if all_logits else (ends - 1).tolist()
    assert outputs == len(want) and views.outputs[:outputs].tolist() == want
    start = 0
    for i, count in enumerate(new):
        at = slice(start, start + count)
        assert views.positions[at].tolist() == list(range(before[i], before[i] + count))
        assert (views.slots[at] - views.positions[at] == first[i]).all()
        start += count
    assert (bucket.parts > 0) == all(count == 1 for count in new)
    covered = np.zeros(bucket.tokens, int)
    if bucket.parts:
        assert bucket.parts * 256 > max(before)
        for i, (row, key_row, keys) in enumerate(views.work.tolist()):
            covered[row] += 1
            assert (key_row, keys) == ((first[i], before[i] + 1) if i < len(new) else (0, 0))
    else:
        for row, queries, key_row, keys, position in views.work.tolist():
            covered[row : row + queries] += 1
            if keys:
                i = int(np.searchsorted(ends, row, side="right"))
                assert (key_row, keys) == (first[i], before[i] + new[i])
                assert position == views.positions[row]
            else:
                assert row >= total or queries == 0
    assert (covered == 1).all()


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 20)), max_size=60))
def test_rows_belong_to_one(calls: list[tuple[bool, int]]) -> None:
    pool, held = RowPool(64), []
    for take, count in calls:
        if take:
            first = pool.take(count)
            if first is not None:
                held.append((first, count))
        elif held:
            pool.give_back(*held.pop(count % len(held)))
        rows = [row for first, n in held for row in range(first, first + n)]
        assert len(set(rows)) == len(rows) and all(SPARE_ROWS <= row < 64 for row in rows)
        assert pool.free == 64 - SPARE_ROWS - len(rows)
    for run in held:
        pool.give_back(*run)
    assert pool.take(64 - SPARE_ROWS) == SPARE_ROWS, "neighbours grow together"
