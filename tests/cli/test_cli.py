"""The command line: answers, JSON, exit codes. Each test runs the real program in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from families import build_tokenizer
from paths import ROOT
from specs import random_tensors, small_spec

from approxrt._C import detected_isa
from approxrt.artifact.writer import write_artifact


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = build_tokenizer("bert")
    spec = small_spec(vocab_size=tokenizer.get_vocab_size(), max_positions=64, max_length=24, inputs="any")
    folder = tmp_path_factory.mktemp("cli") / "artifact"
    return write_artifact(folder, spec, random_tensors(spec), tokenizer.to_str().encode(), {"note": "random"})


def run(*arguments: object, stdin: str = "", env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    code = "from approxrt.cli.main import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "COLUMNS": "200", **(env or {})}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, env=environment, check=False)


def succeed(*arguments: object, **options) -> str:
    done = run(*arguments, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_and_version() -> None:
    text = succeed("--help")
    for command in ("finetune", "analyze", "convert", "inspect", "eval", "bench", "classify", "embed", "doctor"):
        assert command in text
    assert succeed("--version").startswith("approxrt 0.")


def test_classify(artifact: Path) -> None:
    document = json.loads(succeed("classify", artifact, "a good film", "bad", "--top-k", 2, "--json"))
    assert [entry["text"] for entry in document] == ["a good film", "bad"]
    assert {p["label"] for p in document[0]["predictions"]} == {"no", "yes"}
    best = document[0]["predictions"][0]
    assert succeed("classify", artifact, "a good film").startswith(f"{best['label']} {best['score']:.4f}")


def test_classify_from_standard_input_and_pairs(artifact: Path) -> None:
    lines = json.loads(succeed("classify", artifact, "--json", stdin="a good film\nbad\n"))
    assert [entry["text"] for entry in lines] == ["a good film", "bad"]
    pairs = json.loads(succeed("classify", artifact, "--pair", "--json", stdin="a\tb\n"))
    assert pairs[0]["text"] == ["a", "b"]
    done = run("classify", artifact, "--pair", "a", "b", "c")
    assert done.returncode == 1
    assert "even number of texts, got 3" in done.stderr


def test_truncation_is_told_or_refused(artifact: Path) -> None:
    long = "good bad " * 50
    assert "cut to the model's limit" in succeed("classify", artifact, long)
    done = run("classify", artifact, long, "--no-truncate")
    assert done.returncode == 1
    assert "the limit is 24" in done.stderr


def test_embed(artifact: Path, tmp_path: Path) -> None:
    vectors = np.array(json.loads(succeed("embed", artifact, "a good film", "bad", "--json"))["embeddings"])
    assert vectors.shape == (2, 40)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    succeed("embed", artifact, "a good film", "bad", "--out", tmp_path / "v.npy")
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), vectors, rtol=1e-5, atol=1e-7)
    done = run("embed", artifact, "x", "--out", tmp_path / "missing" / "v.npy")
    assert done.returncode == 1
    assert "cannot write" in done.stderr


def test_eval(artifact: Path, tmp_path: Path) -> None:
    data = tmp_path / "dev.csv"
    data.write_text("text,label\na good film,yes\nbad,no\nthe play,yes\n")
    answers = json.loads(succeed("classify", artifact, "a good film", "bad", "the play", "--json"))
    right = [a["predictions"][0]["label"] == label for a, label in zip(answers, ("yes", "no", "yes"), strict=True)]
    result = json.loads(succeed("eval", artifact, "--task", "csv", "--data", data, "--against", artifact, "--json"))
    assert result["metrics"]["accuracy"] == pytest.approx(np.mean(right))
    assert result["flip_rate"] == 0
    assert result["examples"] == 3


def test_eval_refuses_bad_data(artifact: Path, tmp_path: Path) -> None:
    data = tmp_path / "dev.csv"
    data.write_text("text,label\na good film,maybe\n")
    done = run("eval", artifact, "--task", "csv", "--data", data)
    assert done.returncode == 1
    assert "maybe" in done.stderr and f"{data}:2" in done.stderr
    done = run("eval", artifact, "--task", "stsb", "--data", data)
    assert done.returncode == 1
    assert "regression" in done.stderr
    done = run("eval", artifact, "--task", "nothing", "--data", data)
    assert done.returncode in (1, 2)
    assert "nothing" in done.stderr and "sst2" in done.stderr


def test_inspect(artifact: Path) -> None:
    document = json.loads(succeed("inspect", artifact, "--json"))
    assert document["mac_share"]["s8"] == 1.0
    assert "layers.0.ffn.up" in succeed("inspect", artifact)


def test_doctor() -> None:
    document = json.loads(succeed("doctor", "--json"))
    assert document["cpu"]["in_use"] == (os.environ.get("APPROXRT_ISA") or detected_isa())
    assert document["threads"]["default"] >= 1
    forced = json.loads(succeed("doctor", "--json", env={"APPROXRT_ISA": "scalar"}))
    assert set(forced["kernels"].values()) == {"scalar"}
    assert "levels" in succeed("doctor")


def test_errors_have_their_exit_codes(artifact: Path, tmp_path: Path) -> None:
    missing = run("classify", tmp_path / "nowhere", "x", "--json")
    assert missing.returncode == 1
    error = json.loads(missing.stdout)["error"]
    assert error["type"] == "ArtifactError"
    assert "does not exist" in error["message"]
    assert "Traceback" not in missing.stderr
    assert run("classify").returncode == 2
    assert run("nothing").returncode == 2
    assert run("classify", artifact, "x", "--top-k", "many").returncode == 2
    empty = run("classify", artifact)
    assert empty.returncode == 1
    assert "standard input is empty" in empty.stderr
    wrong = run("classify", artifact, "x", env={"APPROXRT_ISA": "mmx"})
    assert wrong.returncode == 1
    assert "mmx" in wrong.stderr
