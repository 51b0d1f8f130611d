"""`compress --task lm`: a small decoder that has learnt a text goes in, measured artifacts come out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import build_decoder
from families import CORPUS

import approxrt
from approxrt.analysis import decoder_latency
from approxrt.artifact.reader import read_artifact
from approxrt.compression import lm
from approxrt.compression.report import Report
from approxrt.errors import DataError, InputError
from approxrt.runtime.decoder_reference import DecoderReference


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three layers that has learnt the text of `data`, so that what it has learnt can be lost."""
    import transformers

    folder = build_decoder(
        "llama", tmp_path_factory.mktemp("lm") / "checkpoint", positions=64, layers=3, tie_word_embeddings=True
    )
    from tokenizers import Tokenizer

    torch.set_num_threads(1)
    ids = torch.tensor(Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text()).ids)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    rng = np.random.default_rng(0)
    for _ in range(60):
        batch = torch.stack([ids[s : s + 48] for s in rng.integers(0, len(ids) - 48, 8)])
        loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 3.5
    model.save_pretrained(folder)
    return folder


def text() -> str:
    rng = np.random.default_rng(0)
    return " ".join(CORPUS[i] for i in rng.integers(0, len(CORPUS), 120))


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
    monkeypatch.setattr(lm, "TIMING_SECONDS", 0.05)

    def latency(spec: Any, kinds: Any, *args: Any, **more: Any) -> decoder_latency.DecoderLatency:
        return decoder_latency.DecoderLatency(dict.fromkeys(kinds, 1e-9), {k: 1e-5 for k in kinds if not k.sparse})

    monkeypatch.setattr(lm, "measure_latency", latency)


def compress(checkpoint: Path, data: Path, out: Path, **options: Any) -> Report:
    return approxrt.compress(checkpoint, data, out=out, task="lm", threads=1, **{"budget": 60.0, **options})


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
    candidates = read_candidates(tmp_path / "a.work")
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


def read_candidates(work: Path) -> list[dict[str, Any]]:
    found = []
    while (path := work / f"candidate-{len(found)}.json").exists():
        found.append(json.loads(path.read_text()))
    return found


def test_what_cannot_be_had_is_refused(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    for wrong in ({"objective": "accuracy"}, {"shrink": 5.0}, {"target": "cuda"}, {"max_drop": 0.0}):
        with pytest.raises(InputError, match="lm"):
            compress(checkpoint, data, tmp_path / "b", **wrong)
    (tmp_path / "short.txt").write_text("too short")
    with pytest.raises(DataError, match="tokens"):
        compress(checkpoint, tmp_path / "short.txt", tmp_path / "b")
    assert not (tmp_path / "b").exists()
