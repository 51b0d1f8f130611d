"""`approxrt analyze` from a tiny checkpoint and a csv to JSON and a page; bad input is refused before the work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="an analysis needs torch")
pytest.importorskip("matplotlib", reason="the report's figures need matplotlib")

from families import build_checkpoint  # noqa: E402
from pages import read_page  # noqa: E402
from typer.testing import CliRunner, Result  # noqa: E402

from approxrt.artifact.storage.bsr import to_tiles  # noqa: E402
from approxrt.cli.main import app  # noqa: E402
from approxrt.errors import ApproxrtError, InputError, MissingDependencyError  # noqa: E402
from approxrt.significance import analyze as significance  # noqa: E402
from approxrt.significance.families import encoder as encoder_family  # noqa: E402
from approxrt.significance.pareto import spread  # noqa: E402
from approxrt.significance.report import document as report  # noqa: E402
from approxrt.significance.report import plots  # noqa: E402

HOSTILE = "<script>alert('x')</script> & $co$"


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def write_data(folder: Path, labels: tuple[Any, ...], rows: int = 120) -> Path:
    rng = np.random.default_rng(0)
    words = ["good", "bad", "film", "rain", "town", "story", "price"]
    lines = ["text\tlabel"] + [f"{' '.join(rng.choice(words, 5))}\t{labels[i % len(labels)]}" for i in range(rows)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.tsv").write_text("\n".join(lines) + "\n")
    return folder


def name_labels(checkpoint: Path, labels: tuple[str, ...]) -> Path:
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    (checkpoint / "config.json").write_text(json.dumps(config))
    return checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("analyze") / "a <b>model"
    build_checkpoint("bert", folder, hidden=32, heads=2, layers=2, ffn=48, num_labels=2)
    return name_labels(folder, (HOSTILE, "fine"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), (HOSTILE, "fine"))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["analyze", *map(str, arguments)])


def fails(*arguments: object) -> str:
    result = run(*arguments)
    assert isinstance(result.exception, ApproxrtError), result.output  # `main` turns it into exit code 1
    return str(result.exception)


@pytest.fixture(scope="module")
def written(
    checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], str, Result]:
    out = tmp_path_factory.mktemp("out") / "new" / "report.html"
    options = ("--task", "csv", "--data", data, "--samples", 48, "--val-fraction", 0.4, "--threads", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoder_family, "PART_SAMPLES", 40)
        patch.setenv("XDG_CACHE_HOME", str(out.parent.parent / "cache"))
        result = run(checkpoint, *options, "--out", out, "--json")
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.parent.iterdir()) == ["report.html", "report.json"]
    return json.loads(out.with_suffix(".json").read_text()), out.read_text(), result


def test_the_document(written: tuple[dict[str, Any], str, Result]) -> None:
    document, _, result = written
    assert json.loads(result.stdout) == document
    of_encoders = (significance.analyze.__doc__ or "").partition("Of decoders alone:")[0]
    documented = re.findall(r"^      (\w+)  ", of_encoders, re.MULTILINE)
    assert set(document) == set(documented)
    assert document["data"]["samples"] == 48 and document["data"]["seen"]
    assert set(document["data"]["labels"]) == {HOSTILE, "fine"}
    blocks = [f"layers.{i}.{kind}" for i in range(2) for kind in ("attention", "ffn")]
    assert [b["name"] for b in document["blocks"]] == blocks and sorted(document["ranking"]) == sorted(blocks)
    changes = {b["name"]: b["change"] for b in document["blocks"]}
    assert document["ranking"] == sorted(blocks, key=lambda name: changes[name])
    dense = document["dense"]["loss"]
    assert document["data"]["part_samples"] == 40
    for entry in document["blocks"] + document["heads"] + document["groups"]:
        assert entry["stderr"] >= 0 and 0 <= entry["improved"] <= 1
        if entry in document["blocks"]:
            assert entry["loss"] == pytest.approx(dense + entry["change"])
        assert entry["second_order"] >= 0
    assert len(document["heads"]) == 4 and len(document["groups"]) == 24
    assert document["groups"][1]["neurons"] == [4, 7]
    assert len(document["linears"]) == 12
    for linear in document["linears"]:
        shares, held = np.array(linear["curve"]).T
        # The best first: over the diagonal and bent down.
        assert held[0] == 0 and held[-1] == pytest.approx(1) and np.all(held >= shares - 1e-9)
        assert np.all(np.diff(held, 2) <= 1e-9)
    rows = document["embeddings"]
    assert 7 <= rows["seen"] <= rows["used"] < rows["rows"] and rows["unseen_tokens"] == 0
    assert document["latency"]["tokens"] >= 7 * document["latency"]["texts"]


def test_the_front_trades_loss_for_speed(written: tuple[dict[str, Any], str, Result]) -> None:
    front = written[0]["front"]
    assert front[0]["loss"] == pytest.approx(0, abs=1e-9)
    assert all(b["size"] == b["of"] and b["density"] == 1 for b in front[0]["blocks"].values())
    losses, speedups = [p["loss"] for p in front], [p["speedup"] for p in front]
    assert losses == sorted(losses) and speedups == sorted(speedups)


def test_the_page(written: tuple[dict[str, Any], str, Result]) -> None:
    document, html, _ = written
    page = read_page(html)
    assert page.headings == [
        "In short",
        "Blocks",
        "Attention heads",
        "Groups of FFN channels",
        "Weights within blocks",
        "Embedding rows",
        "Time",
        "What a speedup would cost",
        "How it was measured",
    ]
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt; &amp; $co$" in html
    assert "a &lt;b&gt;model" in html
    for sentence in report.findings(document):
        assert sentence.split(":")[0] in html


def test_scores(tmp_path: Path) -> None:
    """A regression; no --out and no --json: a table and sentences."""
    folder = build_checkpoint(
        "distilbert", tmp_path / "c", hidden=32, heads=2, layers=1, ffn=32, num_labels=1, problem_type="regression"
    )
    data = write_data(tmp_path / "data", (0.5, 1.25, 3.0))
    result = run(folder, "--task", "csv", "--data", data, "--samples", 20, "--threads", 1)
    assert result.exit_code == 0, result.output
    assert "layers.0.ffn" in result.stdout and "spearman" in result.stdout
    assert "embedding rows" in result.stdout


def test_json_alone(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(significance, "analyze", lambda *args, **options: minimal())
    result = run(checkpoint, "--task", "csv", "--data", data, "--out", tmp_path / "r.json")
    assert result.exit_code == 0 and [p.name for p in tmp_path.iterdir()] == ["r.json"]


def minimal() -> dict[str, Any]:
    embeddings = {"rows": 10, "used": 5, "used_share": 0.5, "parameter_share": 0.5}
    dense = {"loss": 0.1, "metric": "accuracy", "value": 0.9}
    return {"blocks": [], "heads": [], "groups": [], "ranking": [], "dense": dense, "embeddings": embeddings}


@pytest.mark.parametrize(
    ("change", "stderr", "said"),
    [(-0.2, 0.01, "it does harm"), (0.01, 0.01, "it can go: "), (0.05, 0.01, "small price"), (0.9, 0.1, "next to go")],
)
def test_what_is_said_of_a_block(change: float, stderr: float, said: str) -> None:
    block = {"name": "layers.3.ffn", "change": change, "stderr": stderr, "metric": 0.88}
    document = minimal() | {"blocks": [block], "ranking": ["layers.3.ffn"]}
    document["dense"] = document["dense"] | {"loss": 1.0}
    assert report.findings(document)[0].startswith("FFN of layer 3: ") and said in report.findings(document)[0]


# -- what is refused, before the work ------------------------------------------------


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    from approxrt.significance import statistics

    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(statistics, "collect", refuse)


@pytest.mark.usefixtures("no_work")
class TestErrors:
    def refused(self, checkpoint: Path, data: Path, *options: object, task: str = "csv") -> str:
        return fails(checkpoint, "--task", task, "--data", data, *options)

    def test_out_that_cannot_be_written(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert "cannot be written" in self.refused(checkpoint, data, "--out", tmp_path / "file" / "r.html")
        (tmp_path / "r.json").mkdir()
        assert "is a folder" in self.refused(checkpoint, data, "--out", tmp_path / "r.html")
        assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "r.json"]

    def test_out_of_another_kind_is_wrong_usage(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        result = run(checkpoint, "--task", "csv", "--data", data, "--out", tmp_path / "report.pdf")
        assert result.exit_code == 2
        assert run(checkpoint, "--data", data).exit_code == 2

    def test_data(self, checkpoint: Path, tmp_path: Path) -> None:
        assert "no train file" in self.refused(checkpoint, tmp_path)
        (tmp_path / "train.tsv").write_text("text\ntext alone\n")
        assert "missing: 'label'" in self.refused(checkpoint, tmp_path)
        write_data(tmp_path, ("fine",))
        assert "one class only" in self.refused(checkpoint, tmp_path)
        write_data(tmp_path, ("fine", "unheard"))
        assert "train.tsv:3: unknown label 'unheard'" in self.refused(checkpoint, tmp_path)
        write_data(tmp_path, ("fine", HOSTILE))
        with (tmp_path / "train.tsv").open("a") as file:
            file.write("a row of one column\n")
        assert "train.tsv:122: 1 cells" in self.refused(checkpoint, tmp_path)

    def test_heads_that_do_not_fit(self, checkpoint: Path, data: Path, tmp_path: Path) -> None:
        assert "task stsb has scores" in self.refused(checkpoint, data, task="stsb")
        assert "unknown task" in self.refused(checkpoint, data, task="poetry")
        plain = build_checkpoint("bert", tmp_path / "p", hidden=32, layers=1, plain=True)
        for task in ("csv", "embed"):
            assert "without a head" in self.refused(plain, data, task=task)
        several = build_checkpoint(
            "bert", tmp_path / "m", hidden=32, layers=1, problem_type="multi_label_classification"
        )
        assert "several labels" in self.refused(several, data)

    def test_numbers(self, checkpoint: Path, data: Path) -> None:
        for option, value in (("--samples", 3), ("--max-length", 0), ("--val-fraction", 1.5), ("--threads", 0)):
            assert str(value) in self.refused(checkpoint, data, option, value)

    def test_packages(self, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import importlib.util

        find = importlib.util.find_spec
        for missing in ("matplotlib", "torch"):
            with monkeypatch.context() as patch:
                patch.setattr(importlib.util, "find_spec", lambda n, m=missing: None if n == m else find(n))
                text = self.refused(checkpoint, data, "--out", tmp_path / "r.html")
            assert missing in text and "approxrt[compress]" in text


def test_errors_are_input_errors() -> None:
    with pytest.raises(InputError):
        significance.analyze("x", "csv", "y", samples=1)
    assert issubclass(MissingDependencyError, ApproxrtError)


# -- parts -----------------------------------------------------------------------------


def test_concentration() -> None:
    curve = dict(map(tuple, encoder_family.concentration(np.array([[1.0, 0.0], [3.0, 0.0]]))))
    assert curve[0.0] == 0 and curve[0.25] == 0.75 and curve[0.5] == 1 and curve[1.0] == 1
    assert encoder_family.concentration(np.zeros(3))[-1] == [1.0, 0.0]


@pytest.mark.parametrize("shape", [(16, 4), (33, 5), (15, 3), (48, 51)])
def test_spread_keeps_the_sums_of_tiles(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random((-(-shape[0] // 16), -(-shape[1] // 4)))
    elements = spread(scores, *shape)
    assert elements.shape == shape
    np.testing.assert_allclose(to_tiles(elements).sum(axis=(2, 3)), scores)


def test_figures_stand_for_themselves() -> None:
    """A removed block leaves holes in a heatmap, not errors; nothing of matplotlib's header is left."""
    entries = [{"layer": 2, "part": 1, "change": 0.5}, {"layer": 0, "part": 0, "change": -0.1}]
    svg = plots.part_heatmap(entries, 3, "head")
    assert svg.startswith("<svg") and "<?xml" not in svg and "<metadata" not in svg
