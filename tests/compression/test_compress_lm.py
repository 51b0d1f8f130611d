"""`compress --task lm`: a small decoder that has learnt a text goes in, measured artifacts come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from candidates import kept_candidates
from decoders import build_decoder
from lm_checkpoints import text, trained_llama
from typer.testing import CliRunner

import approxrt
from approxrt.artifact.reader import read_artifact
from approxrt.cli.main import app
from approxrt.compression.families import decoder as family
from approxrt.compression.recipes import decoder_rounds, decoder_training
from approxrt.compression.report import Report
from approxrt.errors import DataError, InputError
from approxrt.runtime.reference.decoder import DecoderReference
from approxrt.significance import decoder_latency
from approxrt.tasks.text import split
from approxrt.training.budget import Budget


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_llama(tmp_path_factory.mktemp("lm") / "checkpoint")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text(text())
    (folder / "dev.txt").write_text(text()[:1500])
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timings of models this small say nothing: they are short, and the table below decides instead."""
    torch.set_num_threads(1)
    monkeypatch.setattr(family, "TIMING_SECONDS", 0.05)

    def latency(spec: Any, kinds: Any, heads: Any, *args: Any, **more: Any) -> decoder_latency.DecoderLatency:
        return decoder_latency.DecoderLatency(dict.fromkeys(kinds, 1e-9), dict.fromkeys(heads, 1e-5))

    monkeypatch.setattr(decoder_rounds, "measure_latency", latency)


def compress(checkpoint: Path, data: Path, out: Path, **options: Any) -> Report:
    return approxrt.compress(checkpoint, data, out=out, task="lm", threads=1, **{"budget": 60.0, **options})


def test_validation_lies_apart() -> None:
    """Pieces of the last fifth, spread over it, none of them beside what calibrates."""
    calibrating, validating = split(list(range(250_000)), 512)
    assert calibrating == list(range(200_000)) and len(validating) == 8192
    pieces = np.array(validating).reshape(16, 512)
    assert (np.diff(pieces, axis=1) == 1).all() and pieces[0, 0] == 200_000 + 8 * 512
    assert (np.diff(pieces[:, 0]) > 2500).all() and pieces[-1, -1] > 249_900
    calibrating, validating = split(list(range(1000)), 64)
    assert calibrating == list(range(800)) and validating == list(range(850, 1000))
    with pytest.raises(DataError, match=r"70 tokens; at least 81"):
        split(list(range(70)), 64)


def test_as_fast_as_the_limit_allows(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    report = compress(checkpoint, data, tmp_path / "a", max_drop=0.05, epochs=1.0)
    chosen, dense = report.chosen, report.dense
    assert report.met == (chosen["drop"] <= 0.05 and chosen["speedup"] >= 0.97)
    rise = chosen["metrics"]["perplexity"] / dense["metrics"]["perplexity"] - 1
    assert chosen["drop"] == pytest.approx(rise) and report.task == "lm"
    assert chosen["bytes"] < 0.35 * dense["f32_bytes"] + 60_000  # tokenizer and headers
    assert report.dev is not None and report.dev["before"]["perplexity"] > 1
    json.dumps(report.to_json(), allow_nan=False)
    loaded = approxrt.load(tmp_path / "a")
    assert isinstance(loaded.generate("the quick", max_new_tokens=5), str)
    card = json.loads((tmp_path / "a" / "card.json").read_text())
    assert card["task"] == "lm" and card["latency"]["ms"] > 0 and card["method"]["plan"] == chosen["about"]


def test_a_smaller_one_learns(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    """Six times smaller: tiles, heads, units go; distillation wins back some of what that costs."""
    report = compress(
        checkpoint, data, tmp_path / "a", objective="size", shrink=5.5, max_drop=0.001, epochs=6.0, lr=1e-3
    )
    candidates = kept_candidates(tmp_path / "a.work")
    untrained = [c for c in candidates if isinstance(c["about"]["plan"], dict) and not c["about"]["trained"]]
    trained = [c for c in candidates if c["about"].get("trained")]
    assert untrained and trained and not report.met
    assert min(c["drop"] for c in trained) < 0.8 * min(c["drop"] for c in untrained)
    path = Path(min(trained, key=lambda c: c["drop"])["path"])
    artifact = read_artifact(path)
    assert {linear.kind for _, linear in artifact.decoder_spec.linears()} - {"s8"}
    ids = list(range(3, 40))
    want = DecoderReference(artifact.decoder_spec, artifact.tensors).next_logits(ids)[-1]
    np.testing.assert_allclose(approxrt.load(path).forward([ids])[0], want, atol=0.05 * np.abs(want).max())


def test_what_cannot_be_had_is_refused(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    for wrong in ({"objective": "accuracy"}, {"shrink": 5.0}, {"target": "cuda"}, {"max_drop": 0.0}):
        with pytest.raises(InputError, match="lm"):
            compress(checkpoint, data, tmp_path / "b", **wrong)
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(DataError, match="tokens"):
        compress(checkpoint, tmp_path / "short.txt", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_interrupt_goes_on(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in training: the same command takes the next step, and makes no candidate twice."""
    wanted: dict[str, Any] = {"objective": "size", "shrink": 5.5, "max_drop": 0.001, "epochs": 4.0, "save_seconds": 0.0}
    original, steps = decoder_training.DecoderDistillation.advance, list[int]()

    def stopped(self: Any, done: float) -> float:
        if len(steps) == 6:
            raise KeyboardInterrupt
        steps.append(self.step)
        return original(self, done)

    monkeypatch.setattr(decoder_training.DecoderDistillation, "advance", stopped)
    with pytest.raises(KeyboardInterrupt):
        compress(checkpoint, data, tmp_path / "a", **wanted)
    before = kept_candidates(tmp_path / "a.work")
    assert len(before) > 2 and not (tmp_path / "a").exists()
    resumed = list[int]()

    def counted(self: Any, done: float) -> float:
        resumed.append(self.step)
        return original(self, done)

    monkeypatch.setattr(decoder_training.DecoderDistillation, "advance", counted)
    monkeypatch.setattr(decoder_rounds, "collect_from_text", None)  # the search is not done again
    report = compress(checkpoint, data, tmp_path / "a", **wanted)
    assert resumed[0] == 6 and resumed == list(range(6, resumed[-1] + 1))
    after = kept_candidates(tmp_path / "a.work")
    assert after[: len(before)] == before and 0 < after[-1]["about"]["trained"] <= resumed[-1] + 1
    assert (tmp_path / "a" / "config.json").exists() and report.seconds > 0
    with pytest.raises(InputError, match="another unfinished run"):
        compress(checkpoint, data, tmp_path / "a", overwrite=True, **{**wanted, "shrink": 5.0})


@pytest.mark.parametrize("at", [1, 2, 4])
def test_the_end_of_the_budget_ends_with_the_best_so_far(
    checkpoint: Path, data: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps once `at` candidates are there: nothing new is begun, and the command's answer is as always."""
    made = tmp_path / "a.work"
    monkeypatch.setattr(Budget, "elapsed", lambda self: 1.0 if len(list(made.glob("candidate-*.json"))) < at else 1e6)
    wanted = [
        "--objective",
        "size",
        "--shrink",
        "7",
        "--max-drop",
        "0.1%",
        "--epochs",
        "1",
        "--keep-work",
        "--threads",
        "1",
        "--json",
    ]
    paths = [str(checkpoint), "--task", "lm", "--data", str(data), "--out", str(tmp_path / "a")]
    result = CliRunner().invoke(app, ["compress", *paths, *wanted])
    document = json.loads(result.stdout)
    assert len(kept_candidates(tmp_path / "a.work")) == at
    assert result.exit_code == 1 and not document["met"] and document["shortfalls"]
    chosen = min(document["pareto"], key=lambda c: abs(c["drop"] - document["chosen"]["drop"]))
    assert chosen["bytes"] == document["chosen"]["bytes"]
    assert approxrt.load(tmp_path / "a").generate("the", max_new_tokens=2)


def test_one_shot_does_not_train(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    report = compress(checkpoint, data, tmp_path / "a", max_drop=0.1, recipe="one-shot", budget=30.0)
    assert not any(c["about"].get("trained") for c in kept_candidates(tmp_path / "a.work"))
    assert report.chosen["drop"] <= 0.1
    assert any("rounded" in c["about"] for c in kept_candidates(tmp_path / "a.work"))


def test_layer_norms_are_not_rotated(data: Path, tmp_path: Path) -> None:
    """A GPT-2, whose head is the embedding table: its blocks have options all the same."""
    folder = build_decoder("gpt2", tmp_path / "checkpoint", positions=64)
    report = compress(folder, data, tmp_path / "a", max_drop=0.3, recipe="one-shot")
    assert any("not rotated" in note for note in report.notes)
    assert len(kept_candidates(tmp_path / "a.work")) > 1
