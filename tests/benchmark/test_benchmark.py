"""The benchmark: engines agree with PyTorch, failures are named, documents are complete, the README is current."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint
from paths import ROOT
from typer.testing import CliRunner

import approxrt
from approxrt.benchmark.limits import limit_ms, products
from approxrt.benchmark.measure import measure
from approxrt.benchmark.ratios import ratios
from approxrt.benchmark.report import document, tables
from approxrt.benchmark.results import Row
from approxrt.cli.main import app
from approxrt.errors import InputError
from approxrt.peers import engines
from approxrt.peers.engines import parse_peers
from approxrt.peers.source import Source, pad


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "checkpoint"
    build_checkpoint("bert", folder)
    return folder


@pytest.fixture(scope="module")
def artifacts(checkpoint: Path) -> list[Path]:
    paths = [checkpoint.parent / "f32", checkpoint.parent / "int8"]
    approxrt.convert(checkpoint, paths[0], bits=32)
    approxrt.convert(checkpoint, paths[1], bits=8)
    return paths


@pytest.fixture(scope="module")
def doc(checkpoint: Path, artifacts: list[Path]) -> dict[str, Any]:
    result = measure(artifacts, parse_peers("torch-eager"), checkpoint, (1, 3), (4, 9), threads=1, budget=0.4)
    return json.loads(json.dumps(document(result), allow_nan=False))


def test_every_engine_has_a_row_for_every_workload(doc: dict[str, Any]) -> None:
    assert doc["left_out"] == {}
    names = ("approxrt:f32", "approxrt:int8", "torch-eager")
    expected = {(n, w) for n in names for w in ("1 x 4", "1 x 9", "3 x 4", "3 x 9")}
    assert {(row["engine"], row["workload"]) for row in doc["rows"]} == expected
    for row in doc["rows"]:
        assert 0 < row["p20_ms"] <= row["median_ms"] <= row["p80_ms"]
        assert row["repetitions"] >= 3
        assert row["texts_per_s"] == pytest.approx(row["batch"] / row["median_ms"] * 1e3)


def test_ratios_are_of_the_same_workload(doc: dict[str, Any]) -> None:
    median = {(row["engine"], row["workload"]): row["median_ms"] for row in doc["rows"]}
    for row in doc["rows"]:
        for ours, ratio in row["speedup_of"].items():
            assert ratio == pytest.approx(row["median_ms"] / median[ours, row["workload"]])
        assert set(row["speedup_of"]) == {"approxrt:f32", "approxrt:int8"}


def test_groups_of_peers_have_their_ratios() -> None:
    """Over the best peer, int8 and f32 apart, OpenVINO's int8 and eager torch: each against its own workload."""
    ms = {
        "1 x 4": {"approxrt": 2.0, "torch-eager": 20.0, "onnxruntime-int8": 5.0, "openvino-int8": 6.0, "x-f32": 4.0},
        "2 x 4": {"approxrt": 4.0, "torch-eager": 8.0},
    }
    rows = [
        Row(engine, workload, 1, 4, 3, value, value, value, 1.0, limit_ms=0.5 if engine == "approxrt" else None)
        for workload, engines in ms.items()
        for engine, value in engines.items()
    ]
    first, second = ratios(rows, ["approxrt"])
    assert (first["workload"], first["engine"]) == ("1 x 4", "approxrt")
    assert first["over"] == {
        "best": {"peer": "x-f32", "ratio": 2.0},
        "openvino_int8": {"peer": "openvino-int8", "ratio": 3.0},
        "best_int8": {"peer": "onnxruntime-int8", "ratio": 2.5},
        "best_f32": {"peer": "x-f32", "ratio": 2.0},
        "torch_eager": {"peer": "torch-eager", "ratio": 10.0},
    }
    assert (first["limit_ms"], first["share_of_limit"]) == (0.5, 0.25)
    assert set(second["over"]) == {"best", "best_f32", "torch_eager"}


def test_ratios_and_limits_are_in_the_document(doc: dict[str, Any]) -> None:
    rows = {(row["engine"], row["workload"]): row for row in doc["rows"]}
    assert len(doc["ratios"]) == 2 * 4
    for entry in doc["ratios"]:
        row = rows[entry["engine"], entry["workload"]]
        eager = rows["torch-eager", entry["workload"]]["median_ms"]
        assert entry["over"]["torch_eager"]["ratio"] == pytest.approx(eager / row["median_ms"])
        assert entry["share_of_limit"] == pytest.approx(row["limit_ms"] / row["median_ms"])
        assert entry["share_of_limit"] > 0
        assert set(row["peak_gmacs"]) == {"int8", "f32"}
    assert rows["torch-eager", "1 x 4"]["limit_ms"] is None


def test_products_are_those_that_a_pass_executes(tmp_path: Path, checkpoint: Path) -> None:
    """hidden 64, FFN 96, 2 layers, 3 labels, CLS pooling: counted by hand for sequences of 3 and 5 tokens."""
    approxrt.convert(checkpoint, tmp_path / "a", bits=8)
    model = approxrt.load(tmp_path / "a", threads=1)
    square, wide = 64 * 64, 64 * 96
    tokens, texts = 8, 2
    linears = tokens * (4 * square + 2 * wide) + tokens * 2 * square + texts * (2 * square + 2 * wide)
    attention = 2 * 64 * (9 + 25) + 2 * 64 * tokens
    head = {x["name"]: x for x in model.info["linears"] if x["name"].startswith("head.")}
    kinds = {
        kind: texts * sum(x["macs"] for x in head.values() if (x["kind"] == "f32") == (kind == "f32"))
        for kind in ("int8", "f32")
    }
    expected = {"int8": linears + attention + kinds["int8"], "f32": kinds["f32"]}
    assert products(model.info, True, [64, 64], [3, 5]) == expected
    everywhere = products(model.info, False, [64, 64], [3, 5])
    assert everywhere["int8"] == expected["int8"] + 6 * (2 * square + 2 * wide) + 2 * 64 * (34 - tokens)
    assert limit_ms({"int8": 2e9, "f32": 1e9}, {"int8": 4.0, "f32": 2.0}) == pytest.approx(1000)


def test_workloads_one_by_one(checkpoint: Path, artifacts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "approxrt.cli.main", "bench", str(artifacts[1]), "--json", "--out", str(out)]
    command += ["--workload", "1x5, 3X4,1x5", "--budget", "0.1", "--threads", "2"]
    printed = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert [(row["batch"], row["seq"]) for row in printed["rows"]] == [(1, 5), (3, 4)]
    assert [entry["over"] for entry in printed["ratios"]] == [{}, {}]


def test_answers_are_compared_with_torch(doc: dict[str, Any]) -> None:
    by_name = {engine["name"]: engine for engine in doc["engines"]}
    assert by_name["torch-eager"]["max_deviation"] < 1e-5
    assert by_name["approxrt:f32"]["max_deviation"] < 1e-3
    assert by_name["approxrt:f32"]["max_deviation"] < by_name["approxrt:int8"]["max_deviation"]


def test_load_and_memory_come_from_a_fresh_process(doc: dict[str, Any]) -> None:
    pytest.importorskip("psutil")
    by_name = {engine["name"]: engine for engine in doc["engines"]}
    ours, torch = by_name["approxrt:int8"], by_name["torch-eager"]
    assert 0 < ours["load_s"] <= ours["first_answer_s"]
    assert ours["rss_mb"] < torch["rss_mb"]


def test_table_names_everything(doc: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    doc = {**doc, "left_out": {"openvino": "not installed: openvino"}}
    for item in tables(doc):
        console.print(item)
    text = console.export_text()
    for word in (
        "approxrt:int8",
        "torch-eager",
        "3 x 9",
        "left out: openvino: not installed: openvino",
        "torch eager",
        "share of",
    ):
        assert word in text


@pytest.mark.slow
@pytest.mark.compiles
def test_compiled_torch_equals_eager(checkpoint: Path, artifacts: list[Path]) -> None:
    result = measure(artifacts[:1], parse_peers("torch-compile"), checkpoint, (2,), (8,), threads=1, budget=0.1)
    assert result.left_out == {}
    assert {engine["name"]: engine["max_deviation"] for engine in result.engines}["torch-compile"] < 1e-4


@pytest.mark.parametrize("family", ["onnxruntime", "openvino"])
@pytest.mark.slow
def test_peer_equals_torch(family: str, checkpoint: Path, artifacts: list[Path]) -> None:
    missing = engines.missing_packages(family)
    if missing:
        pytest.skip(f"{family} needs {', '.join(missing)}: pip install 'approxrt[bench]'")
    result = measure(artifacts[:1], parse_peers(family), checkpoint, (2,), (8,), threads=1, budget=0.1)
    assert result.left_out == {}
    deviation = {engine["name"]: engine["max_deviation"] for engine in result.engines}
    assert deviation[f"{family}-f32"] < 1e-4
    assert deviation[f"{family}-f32"] < deviation[f"{family}-int8"] < 1.0


def test_padding_does_not_change_torchs_answer(checkpoint: Path) -> None:
    """Real texts reach peers in padded batches: the mask must make that harmless."""
    import torch

    source = Source(checkpoint)
    texts = [source.sample_ids[0], source.sample_ids[9]]
    assert len(texts[0]) != len(texts[1])
    ids, mask = pad(texts)
    with torch.inference_mode():
        answer = source.module()(torch.from_numpy(ids), torch.from_numpy(mask)).numpy()
    np.testing.assert_allclose(answer, [source.reference[0], source.reference[9]], atol=1e-5)


@pytest.mark.slow
def test_real_texts(checkpoint: Path, artifacts: list[Path]) -> None:
    texts = Source(checkpoint).sample_ids
    result = measure(artifacts[1:], parse_peers("torch-eager"), checkpoint, (1, 8), texts=texts, threads=1, budget=0.1)
    rows = {(row.engine, row.batch): row for row in result.rows}
    for batch in (1, 8):
        row = rows["approxrt", batch]
        assert row.seq is None
        assert row.texts_per_s == pytest.approx(len(texts) / row.median_ms * 1e3)
        assert ("torch-eager", batch) in rows


@pytest.mark.slow
def test_real_texts_once_more_at_each_engines_best_batch(checkpoint: Path, artifacts: list[Path]) -> None:
    texts = Source(checkpoint).sample_ids
    result = measure(artifacts[1:], parse_peers("torch-eager"), checkpoint, (1, 8), texts=texts, threads=1, budget=0.1)
    at_best = {row.engine: row for row in result.rows if row.workload == "data, best batch"}
    for name in ("approxrt", "torch-eager"):
        before = [row for row in result.rows if row.engine == name and row.workload != "data, best batch"]
        assert at_best[name].batch == min(before, key=lambda row: row.median_ms).batch
        assert at_best[name].texts_per_s == pytest.approx(len(texts) / at_best[name].median_ms * 1e3)
    entry = next(entry for entry in result.ratios if entry["workload"] == "data, best batch")
    ratio = at_best["torch-eager"].median_ms / at_best["approxrt"].median_ms
    assert entry["over"]["best"] == {"peer": "torch-eager", "ratio": pytest.approx(ratio)}


def test_a_peer_that_is_not_installed_is_named(
    checkpoint: Path, artifacts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from approxrt.peers import openvino_engine

    monkeypatch.setattr(openvino_engine, "PACKAGES", ("no_such_package_here",))
    result = measure(artifacts[1:], parse_peers("openvino"), checkpoint, (1,), (4,), threads=1, budget=0.05)
    assert "no_such_package_here" in result.left_out["openvino"]
    assert [row.engine for row in result.rows] == ["approxrt"]


def test_a_peer_that_breaks_is_left_out(
    checkpoint: Path, artifacts: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from approxrt.peers import torch_engine

    def broken(variant: str, source: Source, work: Path) -> Path:
        raise RuntimeError(f"no way to prepare {variant}")

    monkeypatch.setattr(torch_engine, "prepare", broken)
    result = measure(artifacts[1:], parse_peers("torch-eager"), checkpoint, (1,), (4,), threads=1, budget=0.05)
    assert "no way to prepare eager" in result.left_out["torch-eager"]
    assert [row.engine for row in result.rows] == ["approxrt"]


def test_checkpoint_of_another_model_is_refused(artifacts: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    build_checkpoint("bert", other, num_labels=5)
    with pytest.raises(InputError, match="must be what the artifact was made from"):
        measure(artifacts[1:], parse_peers("torch-eager"), other, (1,), (4,), threads=1, budget=0.05)


def test_unknown_engine_lists_the_known() -> None:
    with pytest.raises(InputError, match=r"'tensorrt'.*torch, onnxruntime, openvino"):
        parse_peers("torch,tensorrt")
    assert [peer.name for peer in parse_peers("openvino, torch-eager,openvino")] == [
        "torch-eager",
        "openvino-f32",
        "openvino-int8",
    ]
    assert {peer.family for peer in parse_peers("all")} == set(engines.FAMILIES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "tensorrt"], ["tensorrt", "onnxruntime"]),
        (["--against", "torch"], ["--checkpoint"]),
        (["--against", "torch", "--checkpoint", "/no/such/folder"], ["/no/such/folder"]),
        (["--batch", "1,x"], ["--batch"]),
        (["--seq", "0"], ["--seq"]),
        (["--workload", "16"], ["--workload", "1x16"]),
        (["--workload", "1x16,2x-3"], ["--workload", "1x16"]),
        (["--workload", "0x16"], ["--workload", "positive"]),
        (["--workload", "1x16", "--data", "dev.csv"], ["--workload", "--batch"]),
        (["--data", "dev.csv"], ["--task"]),
    ],
)
def test_wrong_usage_exits_2(artifacts: list[Path], arguments: list[str], words: list[str]) -> None:
    result = CliRunner().invoke(app, ["bench", str(artifacts[1]), *arguments])
    assert result.exit_code == 2
    for word in words:
        assert word in result.output


def test_command_writes_one_document(artifacts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bench.json"
    command = [sys.executable, "-m", "approxrt.cli.main", "bench", str(artifacts[1]), "--json", "--out", str(out)]
    command += ["--batch", "1", "--seq", "5", "--budget", "0.1", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    printed = json.loads(done.stdout)
    assert printed == json.loads(out.read_text())
    assert printed["schema"] == "approxrt.bench/1"
    assert printed["machine"]["cores"] >= 1
    assert "torch" not in {row["engine"] for row in printed["rows"]}
    assert [(row["engine"], row["workload"]) for row in printed["rows"]] == [("approxrt", "1 x 5")]


def test_importing_the_command_loads_no_peer() -> None:
    code = (
        "import sys, approxrt.cli.bench, approxrt.benchmark.measure, approxrt.benchmark.report\n"
        "print([m for m in ('torch', 'onnxruntime', 'openvino', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def readme_tables() -> Any:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "bench" / "readme_tables.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["README.md", "docs/benchmarks.md"])
def test_tables_show_the_committed_results(name: str) -> None:
    module = readme_tables()
    text = (ROOT / name).read_text(encoding="utf-8")
    assert module.updated(text, module.FILES[name](ROOT / "bench" / "results")) == text, "run: make readme"


def test_readme_table_of_a_document(doc: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "latency-minilm-zen4.json").write_text(json.dumps({**doc, "title": "Tiny", "checkpoint": "x"}))
    module = readme_tables()
    text = module.updated(f"before\n{module.BEGIN}\nstale\n{module.END}\nafter\n", module.render(tmp_path))
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "stale" not in text
    median = {(row["engine"], row["workload"]): row["median_ms"] for row in doc["rows"]}
    best = min(ms for (name, workload), ms in median.items() if workload == "1 x 9" and name.startswith("torch"))
    ours = median["approxrt:int8", "1 x 9"]
    assert f"{ours:.1f} ({best / ours:.2f}x)" in text


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering"])
def test_heads_that_read_every_token_are_timed_and_compared(tmp_path: Path, head: str) -> None:
    """Their logits are averaged over a text on both sides; the profiler sees their passes, too."""
    from approxrt.benchmark.profile import profile_artifacts
    from approxrt.peers.approxrt_engine import open_engine

    folder = build_checkpoint("bert", tmp_path / "c", head=head, num_labels=2)
    artifact = Path(approxrt.convert(folder, tmp_path / "a", bits=32))
    source = Source(folder)
    ours = np.concatenate([open_engine("", artifact, 1).run(np.array([ids])) for ids in source.sample_ids[:3]])
    np.testing.assert_allclose(ours, np.stack(source.reference[:3]), rtol=0, atol=2e-4)
    found = measure([artifact], parse_peers("torch-eager"), folder, (1,), (8,), threads=1, budget=0.2)
    assert found.left_out == {} and {row.engine for row in found.rows} == {"approxrt", "torch-eager"}
    (profile,) = profile_artifacts([artifact], [(1, 8)], threads=1, budget=0.1)
    assert profile["ops"]


def test_random_ids_are_no_padding() -> None:
    """Models that count positions without padding refuse it inside a text."""
    from approxrt.benchmark.workloads import full_workloads

    def ids_of(workload: Any) -> np.ndarray:
        seen: list[np.ndarray] = []
        engine = type("Engine", (), {"run": staticmethod(seen.append)})
        workload.calls(type("One", (), {"engine": engine}))()
        return seen[0]

    plain, avoided = (ids_of(full_workloads([(8, 64)], 20, paddings)[0]) for paddings in ((), (1, 19)))
    assert (plain == 1).any() and not np.isin(avoided, (1, 19)).any()
    same = ~np.isin(plain, (1, 19))
    assert (plain[same] == avoided[same]).all()
