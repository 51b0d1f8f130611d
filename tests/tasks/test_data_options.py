"""Options of the data's layout reach every command and function that reads task data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from families import build_checkpoint
from typer.testing import CliRunner

pytest.importorskip("torch", reason="fine-tuning needs torch")
pytest.importorskip("transformers", reason="fine-tuning needs transformers")

import approxrt
from approxrt.cli.evaluate import evaluate
from approxrt.cli.main import app
from approxrt.compression.options import CompressOptions
from approxrt.errors import DataError, InputError
from approxrt.models.checkpoint import load_checkpoint
from approxrt.tasks.format import DataFormat
from approxrt.training.data import DataOptions, read_data
from approxrt.training.finetune import FinetuneOptions, finetune

ODD = DataFormat(delimiter=";", text_column="Review", label_column="Stars")
FLAGS = ["--delimiter", "semicolon", "--text-column", "Review", "--label-column", "Stars"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "c"
    return build_checkpoint("bert", folder, hidden=32, heads=2, layers=1, ffn=64, plain=True, positions=64)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same examples in the plain layout and in another."""
    rows = [(f"{'good' if i % 2 else 'bad'} film {'and rain ' * (i % 5)}number {i}", i % 2) for i in range(60)]
    root, found = tmp_path_factory.mktemp("data"), {}
    for name, header, sep in (("plain", "text,label", ","), ("odd", "Review;Stars", ";")):
        found[name] = root / name
        found[name].mkdir()
        for split, part in (("train", rows[:40]), ("dev", rows[40:])):
            lines = [header, *(f"{text}{sep}{label}.0" for text, label in part)]
            (found[name] / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return found


@pytest.fixture(scope="module")
def checkpoint(base: Path, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "out"
    finetune(base, "csv", folders["odd"], out, FinetuneOptions(epochs=1, val_fraction=0.2, data_format=ODD))
    return out


def test_finetune(base: Path, folders: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    import json

    options = FinetuneOptions(epochs=1, val_fraction=0.2)
    plain = finetune(base, "csv", folders["plain"], tmp_path / "plain", options)
    odd = json.loads((checkpoint / "finetune.json").read_text())
    assert odd["validation"] == plain["validation"] and odd["dev"] == plain["dev"]
    assert odd["options"]["data_format"]["text_column"] == "Review"
    scores = dataclasses.replace(options, data_format=dataclasses.replace(ODD, regression=True))
    report = finetune(base, "csv", folders["odd"], tmp_path / "scores", scores)
    assert "spearman" in report["validation"]


def test_what_compression_and_analysis_read(folders: dict[str, Path], checkpoint: Path) -> None:
    loaded = load_checkpoint(checkpoint)
    read = {
        name: read_data("csv", folders[name], loaded, checkpoint, DataOptions(0, 0.2, None, form))
        for name, form in (("plain", DataFormat()), ("odd", ODD))
    }
    assert read["odd"].train.texts == read["plain"].train.texts
    assert read["odd"].validation.labels.tolist() == read["plain"].validation.labels.tolist()
    assert read["odd"].form == ODD
    assert CompressOptions().identity() != CompressOptions(data_format=ODD).identity()


def test_what_is_no_format_is_refused(checkpoint: Path, folders: dict[str, Path]) -> None:
    from approxrt.significance.analyze import analyze

    wrong: object = {"delimiter": ";"}
    for options in (FinetuneOptions(data_format=wrong), CompressOptions(data_format=wrong)):  # type: ignore[arg-type]
        with pytest.raises(InputError, match="data_format is"):
            options.check()
    with pytest.raises(InputError, match="data_format is"):
        analyze(checkpoint, "csv", folders["odd"], data_format=wrong)  # type: ignore[arg-type]


def test_eval(folders: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    artifact = approxrt.convert(checkpoint, tmp_path / "a", bits=32)
    want = evaluate(artifact, "csv", folders["plain"] / "dev.csv")
    got = evaluate(artifact, "csv", folders["odd"] / "dev.csv", form=ODD)
    assert got["metrics"] == want["metrics"] and got["examples"] == 20
    done = CliRunner().invoke(app, ["eval", str(artifact), "--task", "csv", "--data", str(folders["odd"] / "dev.csv")])
    assert isinstance(done.exception, DataError) and "--delimiter semicolon" in str(done.exception)
    done = CliRunner().invoke(
        app, ["eval", str(artifact), "--task", "csv", "--data", str(folders["odd"] / "dev.csv"), *FLAGS]
    )
    assert done.exit_code == 0, done.exception
    assert f"{want['metrics']['accuracy']:.4f}" in done.stdout


@pytest.mark.parametrize("command", ["finetune", "analyze", "compress", "eval", "bench"])
def test_every_command_takes_them(command: str, folders: dict[str, Path], checkpoint: Path, tmp_path: Path) -> None:
    """A column that is not there is named, together with those that are, which only the given delimiter can tell."""
    model = approxrt.convert(checkpoint, tmp_path / "a") if command in ("eval", "bench") else checkpoint
    data = folders["odd"] / "dev.csv" if command in ("eval", "bench") else folders["odd"]
    out = ["--out", str(tmp_path / "out")] if command in ("finetune", "compress") else []
    flags = ["--delimiter", ";", "--text-column", "Text", "--label-column", "Stars"]
    done = CliRunner().invoke(app, [command, str(model), "--task", "csv", "--data", str(data), *out, *flags])
    assert isinstance(done.exception, DataError), done.output
    assert "missing: 'Text'; the header has: 'Review', 'Stars'" in str(done.exception)
    wrong = CliRunner().invoke(
        app, [command, str(model), "--task", "csv", "--data", str(data), *out, "--delimiter", "ab"]
    )
    assert isinstance(wrong.exception, InputError) and "delimiter is 'ab'" in str(wrong.exception)


@pytest.mark.parametrize("command", ["analyze", "compress", "eval"])
def test_plain_text_has_no_layout(command: str, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some text\n")
    out = ["--out", str(tmp_path / "out")] if command == "compress" else []
    arguments = [command, str(checkpoint), "--task", "lm", "--data", str(tmp_path / "a.txt"), *out]
    done = CliRunner().invoke(app, [*arguments, "--text-column", "a"])
    assert isinstance(done.exception, InputError)
    assert "plain text" in str(done.exception) or "data_format" in str(done.exception)
