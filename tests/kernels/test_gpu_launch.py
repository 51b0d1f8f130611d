"""Which tile sizes kernels run with: rules, the tuned table, tuning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

launch = pytest.importorskip("approxrt.kernels.launch", reason="approxrt is not installed (run from the source tree)")
Config, TunedTable = launch.Config, launch.TunedTable

ONE, TWO = Config({"BLOCK_M": 16}, 4, 3), Config({"BLOCK_M": 32}, 8, 2)


@given(st.integers(1, 20000), st.integers(1, 50000), st.integers(1, 200))
def test_rules_give_what_kernels_take(m: int, n: int, k128: int) -> None:
    k = 128 * k128
    for config in (launch.gemm_int8_rule(m, n, k), *launch.gemm_int8_candidates(m, n, k)):
        assert k % config["BLOCK_K"] == 0 and config["SPLIT_K"] >= 1
        assert all(size & (size - 1) == 0 for name, size in config.blocks.items() if name.startswith("BLOCK"))
        # What the ring of operands takes of a multiprocessor's shared memory
        ring = config.num_stages * config["BLOCK_K"] * (config["BLOCK_M"] + config["BLOCK_N"])
        assert ring <= 227 * 1024
    assert launch.gemm_int4_rule(m, n, k)["BLOCK_M"] <= 128
    rows = launch.row_rule(n)
    assert rows["BLOCK"] >= n and rows["ROWS"] >= 1


def test_few_tokens_are_cut_along_the_inputs() -> None:
    assert launch.gemm_int8_rule(16, 768, 3072)["SPLIT_K"] > 1
    assert launch.gemm_int8_rule(4096, 768, 3072)["SPLIT_K"] == 1
    assert launch.gemm_int8_rule(16, 768, 128)["SPLIT_K"] == 1, "no part is shorter than four blocks"


def test_the_table_remembers_by_device(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "tuned.json"
    first = TunedTable(path, "GPU a")
    first.put("x", ONE)
    TunedTable(path, "GPU b").put("x", TWO)
    assert TunedTable(path, "GPU a").get("x") == ONE and TunedTable(path, "GPU b").get("x") == TWO
    assert TunedTable(path, "GPU c").get("x") is None
    assert [p.name for p in path.parent.iterdir()] == ["tuned.json"]


@pytest.mark.parametrize(
    "text",
    [
        "", "[", "[]", '{"version": 1}', '{"version": 1, "devices": 3}', '{"version": 1, "devices": {"g": [1]}}',
        '{"version": 99, "devices": {"g": {"x": {"blocks": {"BLOCK_M": 16}, "num_warps": 4, "num_stages": 3}}}}',
        '{"version": 1, "devices": {"g": {"x": {"blocks": {"BLOCK_M": -1}, "num_warps": 4, "num_stages": 3}}}}',
        '{"version": 1, "devices": {"g": {"x": {"blocks": {"BLOCK_M": 16}, "num_warps": 5, "num_stages": 3}}}}',
        '{"version": 1, "devices": {"g": {"x": {"blocks": "rm", "num_warps": 4, "num_stages": 3}}}}',
    ],
)  # fmt: skip
def test_a_broken_table_counts_as_empty_and_is_replaced(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tuned.json"
    path.write_text(text)
    table = TunedTable(path, "g")
    assert table.get("x") is None
    table.put("y", ONE)
    assert TunedTable(path, "g").get("y") == ONE


def test_tuning_keeps_the_fastest_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TunedTable(tmp_path / "tuned.json", "g")
    monkeypatch.setattr(launch, "_table", lambda: table)
    broken, slow = Config({"BLOCK_M": 64}), Config({"BLOCK_M": 128})
    times = {16: 2.0, 32: 1.0, 128: 3.0}

    def run(config) -> int:
        if config is broken:
            raise RuntimeError("out of shared memory")
        return config["BLOCK_M"]

    rule = Config({"BLOCK_M": 256})
    assert launch.config("key", rule) is rule
    result = launch.tune("key", [ONE, broken, TWO, slow], run, lambda call: times[call()])
    assert result["ms"] == 1.0 and result["tried"] == 3 and "RuntimeError" in result["failed"][0]
    assert launch.config("key", rule) == TWO
    assert launch.config("key", Config({"BLOCK_N": 1})).blocks == {"BLOCK_N": 1}, "an older kernel's blocks do not fit"
    assert json.loads((tmp_path / "tuned.json").read_text())["devices"]["g"]["key"]["num_warps"] == 8
    with pytest.raises(RuntimeError, match="none of 1 configurations ran"):
        launch.tune("other", [broken], run, lambda call: times[call()])


def test_where_the_table_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("APPROXRT_CACHE", str(tmp_path))
    assert launch.cache_path() == tmp_path / "triton-tuned.json"
    monkeypatch.delenv("APPROXRT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert launch.cache_path() == Path("/var/cache/approxrt/triton-tuned.json")


def test_keys_do_not_name_batches() -> None:
    assert launch.key_of("gemm_int8", m=launch.size_bucket(3000), n=768) == "gemm_int8 m=4096 n=768"
    assert [launch.size_bucket(n) for n in (1, 2, 3, 4096, 4097)] == [1, 2, 4, 4096, 8192]
