"""A batch is divided among threads: complete, in order, and balanced, or else shared by all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from specs import TOKENIZER_JSON, random_tensors, small_spec

from approxrt._C import plan_groups
from approxrt.artifact.reader import read_artifact
from approxrt.artifact.writer import write_artifact
from approxrt.runtime.cpu.engine import CpuEngine


def plan(lengths: list[int], threads: int) -> tuple[bool, list[tuple[int, int]]]:
    return plan_groups(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32), threads)


def slowest(lengths: list[int], groups: list[tuple[int, int]], threads: int) -> int:
    """Tokens of the thread that has most, groups being taken in order as threads become free."""
    busy = [0] * threads
    for begin, end in groups:
        busy[busy.index(min(busy))] += sum(lengths[begin:end])
    return max(busy)


@given(lengths=st.lists(st.integers(1, 512), min_size=1, max_size=70), threads=st.integers(1, 9))
def test_every_sequence_is_in_one_group_and_threads_are_busy(lengths: list[int], threads: int) -> None:
    apart, groups = plan(lengths, threads)
    assert [begin for begin, _ in groups] == [0, *(end for _, end in groups[:-1])]
    assert groups[-1][1] == len(lengths)
    assert all(begin < end for begin, end in groups)
    if apart:
        assert 0.85 * slowest(lengths, groups, threads) * threads <= sum(lengths)
    else:
        assert threads > 1
        assert groups == [(0, len(lengths))]


def test_one_text_is_shared_by_all_threads() -> None:
    assert plan([128], 2) == (False, [(0, 1)])
    assert plan([128], 1) == (True, [(0, 1)])


def test_many_texts_go_apart_in_groups_that_fit_a_cache() -> None:
    apart, groups = plan([16] * 32, 2)
    assert apart
    assert len(groups) % 2 == 0
    assert max(end - begin for begin, end in groups) * 16 <= 96
    assert plan([128] * 4, 2) == (True, [(i, i + 1) for i in range(4)])


@pytest.mark.parametrize("lengths", [[128] * 3, [300, 10, 10]])
def test_what_cannot_be_balanced_is_shared(lengths: list[int]) -> None:
    assert plan(lengths, 2) == (False, [(0, len(lengths))])


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_how_work_is_divided_changes_no_answer(tmp_path: Path, threads: int) -> None:
    """Few tokens or many, blocks of any size: the same bits."""
    spec = small_spec(kind="bsr_s8", max_positions=64)
    artifact = read_artifact(write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, {}))
    rng = np.random.default_rng(0)
    ids = [rng.integers(1, spec.vocab_size, n).tolist() for n in (1, 5, 17, 40, 33, 9)]
    for output in ("logits", "pooled"):
        expected = CpuEngine(artifact, threads=1).forward(ids, None, output)
        for tuning in (
            {"few_tokens": 0},
            {"few_tokens": 1 << 20},
            {"group_tokens": 1, "block_tokens": 1, "team_block_tokens": 1},
            {"group_tokens": 1000, "block_tokens": 1000, "team_block_tokens": 1000},
        ):
            engine = CpuEngine(artifact, threads, tuning)
            np.testing.assert_array_equal(engine.forward(ids, None, output), expected)
            for i in (0, 3):
                np.testing.assert_array_equal(engine.forward([ids[i]], None, output)[0], expected[i])


def test_bad_tuning(tmp_path: Path) -> None:
    spec = small_spec()
    artifact = read_artifact(write_artifact(tmp_path / "a", spec, random_tensors(spec), TOKENIZER_JSON, {}))
    with pytest.raises(ValueError, match="unknown tuning 'speed'"):
        CpuEngine(artifact, 1, {"speed": 9})
    with pytest.raises(ValueError, match="block_tokens must be at least 1"):
        CpuEngine(artifact, 1, {"block_tokens": 0})
