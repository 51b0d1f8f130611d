"""`approxrt analyze --task lm` from a tiny checkpoint and a plain text to JSON and a page."""

from __future__ import annotations

import json
import re
from html import escape
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="an analysis needs torch")
pytest.importorskip("transformers", reason="checkpoints are built by transformers")
pytest.importorskip("matplotlib", reason="the report's figures need matplotlib")

from decoders import build_decoder
from families import CORPUS
from pages import read_page
from typer.testing import CliRunner

from approxrt.cli.main import app
from approxrt.errors import InputError
from approxrt.significance.analyze import analyze
from approxrt.significance.report.document import findings


def test_analyze_a_decoder(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path / "checkpoint", positions=64)
    rng = np.random.default_rng(0)
    (tmp_path / "train.txt").write_text(" ".join(CORPUS[i] for i in rng.integers(0, len(CORPUS), 60)))
    arguments = ["analyze", str(folder), "--task", "lm", "--data", str(tmp_path), "--samples", "100", "--threads", "1"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "r.html")])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "r.json").read_text())
    shared, _, alone = (analyze.__doc__ or "").partition("Of encoders alone:")
    documented = re.findall(r"^      (\w+)  ", shared + alone.partition("Of decoders alone:")[2], re.MULTILINE)
    assert set(document) == set(documented)
    assert {row["name"] for row in document["blocks"]} == set(document["ranking"])
    assert len(document["heads"]) == 8 and len(document["groups"]) == 4 and document["units"][0]["units"][0] == 0
    changes = {row["name"]: row["change"] for row in document["blocks"]}
    assert [changes[name] for name in document["ranking"]] == sorted(changes.values())
    dense = document["dense"]
    for row in document["blocks"]:
        assert row["loss"] == pytest.approx(dense["loss"] + row["change"]) and row["second_order"] >= 0
        assert row["metric"] == pytest.approx(np.exp(row["loss"]))
    assert [row["part"] for row in document["units"][:2]] == [0, 1]
    layers, hidden = document["model"]["layers"], document["model"]["hidden_size"]
    assert document["weights"]["head"] % hidden == 0 and document["weights"]["ffn"] % (3 * layers * hidden) == 0
    html = (tmp_path / "r.html").read_text()
    page = read_page(html)
    assert page.headings == ["In short", "What a token costs", "Blocks", "Key-value groups", "Query heads",
                             "Groups of FFN channels", "How it was measured"]  # fmt: skip
    for sentence in findings(document):
        assert escape(sentence) in html and sentence[:40] in result.output


def test_options_that_a_text_has_not(tmp_path: Path) -> None:
    for options, said in (({"max_length": 64}, "max_length (64)"), ({"val_fraction": 0.3}, "val_fraction (0.3)")):
        with pytest.raises(InputError, match=re.escape(f"not available for task 'lm': {said}")):
            analyze(tmp_path, "lm", tmp_path, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="samples is 1; at least 2"):
        analyze(tmp_path, "lm", tmp_path, samples=1)
