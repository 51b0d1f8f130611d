"""Fine-tuning a tiny random model: it learns, resumes exactly, selects on validation only, and refuses bad input."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from families import build_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from sentences import BAD, GOOD, write_data
from typer.testing import CliRunner

from approxrt.artifact.reader import read_artifact
from approxrt.conversion import convert
from approxrt.errors import DataError, InputError, TrainingError, UnsupportedModelError
from approxrt.tasks.readers import Dataset
from approxrt.training.finetune import FinetuneOptions, finetune, split_data, total_steps
from approxrt.training.options import STATE
from approxrt.training.trainer import bucketed_batches

torch = pytest.importorskip("torch", reason="fine-tuning needs torch")
pytest.importorskip("transformers", reason="fine-tuning needs transformers")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return build_checkpoint("bert", folder / "c", hidden=32, heads=2, layers=1, ffn=64, plain=True, positions=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


OPTIONS = FinetuneOptions(epochs=8, lr=5e-3, batch_size=16, val_fraction=0.2)


def test_it_learns_and_its_checkpoint_converts(base: Path, data: Path, tmp_path: Path) -> None:
    report = finetune(base, "csv", data, tmp_path / "out", OPTIONS)
    epochs = report["epochs"]
    assert len(epochs) == 8 and epochs[-1]["train_loss"] < 0.5 * epochs[0]["train_loss"]
    assert report["validation"]["accuracy"] > 0.9 and report["dev"]["accuracy"] > 0.9
    best = max(epochs, key=lambda e: (e["validation"]["accuracy"], -e["val_loss"]))
    assert report["best_epoch"] == best["epoch"]
    assert json.loads((tmp_path / "out" / "finetune.json").read_text()) == json.loads(json.dumps(report))
    assert not (tmp_path / "out" / STATE).exists()
    artifact = read_artifact(convert(tmp_path / "out", tmp_path / "artifact", bits=32))
    assert artifact.spec.labels == ("neg", "pos") and artifact.spec.inputs == "single"
    assert artifact.card["task"] == "csv"
    # The saved weights are those that were evaluated: the artifact's own dev accuracy is the report's.
    from tokenizers import Tokenizer

    from approxrt.runtime.reference.encoder import reference_logits
    from approxrt.tasks.metrics import compute_metrics
    from approxrt.tasks.readers import read_task

    dev = read_task("csv", data / "dev.csv", artifact.spec.labels)
    tokenizer = Tokenizer.from_buffer(artifact.tokenizer_json)
    logits = reference_logits(artifact.spec, artifact.tensors, [tokenizer.encode(text).ids for text in dev.texts])
    assert compute_metrics("csv", logits, dev.labels) == report["dev"]


class Interrupted(Exception):
    pass


def stop_at(step: int) -> Any:
    done = 0

    def progress(steps: int, _: str) -> None:
        nonlocal done
        done += steps
        if done >= step:
            raise Interrupted

    return progress


@pytest.mark.parametrize("step", [5, 20, 47])
def test_resuming_gives_the_same_weights(base: Path, data: Path, tmp_path: Path, step: int) -> None:
    """20 steps an epoch: interrupted within the first, at its end, and within the third."""
    import dataclasses

    options = dataclasses.replace(OPTIONS, epochs=3, save_seconds=0.0)
    whole = finetune(base, "csv", data, tmp_path / "whole", options)
    with pytest.raises(Interrupted):
        finetune(base, "csv", data, tmp_path / "parts", options, progress=stop_at(step))
    assert (tmp_path / "parts" / STATE).exists()
    seen: list[int] = []
    parts = finetune(base, "csv", data, tmp_path / "parts", options, resume=True, progress=lambda n, _: seen.append(n))
    assert seen[0] == step - 1, "the state of the last whole step before the interruption"
    assert sum(seen) == 3 * 20
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name])
    for key in ("epochs", "validation", "dev", "best_epoch"):
        assert whole[key] == parts[key]


def test_seeds_decide(base: Path, data: Path, tmp_path: Path) -> None:
    import dataclasses

    options = dataclasses.replace(OPTIONS, epochs=1)
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        finetune(base, "csv", data, tmp_path / name, dataclasses.replace(options, seed=seed))
        runs[name] = load_file(tmp_path / name / "model.safetensors")["classifier.weight"]
    np.testing.assert_array_equal(runs["a"], runs["b"])
    assert not np.array_equal(runs["a"], runs["c"])


def test_regression_and_pairs(base: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["text\ttext_pair\tlabel"]
    for _ in range(400):
        same = rng.random() < 0.5
        lines.append(f"{rng.choice(GOOD)} film\t{rng.choice(GOOD if same else BAD)} film\t{4.5 if same else 0.5}")
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    report = finetune(base, "csv", tmp_path, tmp_path / "out", OPTIONS)
    assert list(report["validation"]) == ["spearman", "pearson"] and report["dev"] is None
    assert report["validation"]["pearson"] > 0.9
    spec = read_artifact(convert(tmp_path / "out", tmp_path / "artifact")).spec
    assert (spec.task_type, spec.labels, spec.inputs) == ("regression", ("score",), "pair")


def test_a_checkpoint_s_files_get_the_umask_s_mode(base: Path, data: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        finetune(base, "csv", data, tmp_path / "out", FinetuneOptions(epochs=1, limit=20))
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "out").iterdir()} == {"0o640"}


def test_dev_does_not_select(base: Path, data: Path, tmp_path: Path) -> None:
    """With the dev labels turned round the same weights come out, and the dev accuracy is turned round."""
    import dataclasses

    options = dataclasses.replace(OPTIONS, epochs=3)
    turned = tmp_path / "turned"
    turned.mkdir()
    (turned / "train.csv").write_text((data / "train.csv").read_text())
    swap = {"pos": "neg", "neg": "pos"}
    rows = [line.rsplit(",", 1) for line in (data / "dev.csv").read_text().splitlines()]
    (turned / "dev.csv").write_text("".join(f"{text},{swap.get(label, label)}\n" for text, label in rows))
    a = finetune(base, "csv", data, tmp_path / "a", options)
    b = finetune(base, "csv", turned, tmp_path / "b", options)
    weights = [load_file(tmp_path / name / "model.safetensors")["classifier.weight"] for name in ("a", "b")]
    np.testing.assert_array_equal(*weights)
    assert a["dev"]["accuracy"] + b["dev"]["accuracy"] == pytest.approx(1)


# -- parts --------------------------------------------------------------------


@given(count=st.integers(1, 400), batch=st.integers(1, 33), epoch=st.integers(0, 3))
@settings(max_examples=50)
def test_batches_hold_every_example_once(count: int, batch: int, epoch: int) -> None:
    lengths = np.random.default_rng(0).integers(3, 128, count)
    batches = bucketed_batches(lengths, batch, 7, epoch)
    assert sorted(np.concatenate(batches).tolist()) == list(range(count))
    assert len(batches) == -(-count // batch) and max(map(len, batches)) <= batch


def test_batches_are_of_like_length_and_random() -> None:
    lengths = np.random.default_rng(0).integers(3, 128, 3000)
    batches = bucketed_batches(lengths, 16, 0, 0)
    padded = sum(len(b) * lengths[b].max() for b in batches)
    assert padded < 1.1 * lengths.sum()
    again, other = bucketed_batches(lengths, 16, 0, 0), bucketed_batches(lengths, 16, 0, 1)
    assert all(np.array_equal(x, y) for x, y in zip(batches, again, strict=True))
    assert not all(np.array_equal(x, y) for x, y in zip(batches, other, strict=True))
    means = [lengths[b].mean() for b in batches]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.3, "batches must not come sorted by length"


def test_split_is_disjoint_seeded_and_limited() -> None:
    data = Dataset([f"text {i}" for i in range(100)], np.arange(100) % 2, ("a", "b"))
    train, validation = split_data(data, FinetuneOptions(val_fraction=0.2))
    assert len(train) == 80 and len(validation) == 20
    assert not set(train.texts) & set(validation.texts)
    assert split_data(data, FinetuneOptions(val_fraction=0.2))[1].texts == validation.texts
    assert split_data(data, FinetuneOptions(val_fraction=0.2, seed=1))[1].texts != validation.texts
    train, validation = split_data(data, FinetuneOptions(limit=30))
    assert len(train) == 27 and len(validation) == 3
    assert total_steps(data, FinetuneOptions(limit=30, epochs=2, batch_size=10)) == 6


# -- bad input ----------------------------------------------------------------


def test_one_class_cannot_be_learned(base: Path, tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\n" + "good film,pos\n" * 20)
    with pytest.raises(DataError, match=r"one class only \(pos\)"):
        finetune(base, "csv", tmp_path, tmp_path / "out", OPTIONS)


def test_dev_with_an_unknown_label(base: Path, tmp_path: Path) -> None:
    folder = write_data(tmp_path / "data")
    (folder / "dev.csv").write_text("text,label\ngood,pos\nfine,neutral\n")
    with pytest.raises(DataError, match=r"dev\.csv:3: unknown label 'neutral'"):
        finetune(base, "csv", folder, tmp_path / "out", OPTIONS)


def test_a_diverging_run_stops(base: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"lr 1e\+36: training has diverged; use a smaller --lr"):
        finetune(base, "csv", data, tmp_path / "out", FinetuneOptions(epochs=3, lr=1e36, batch_size=16))
    assert not (tmp_path / "out" / "finetune.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"max_length": 0}, "max_length is 0"),
        ({"val_fraction": 1.0}, "val_fraction is 1.0"),
        ({"limit": 1}, "limit is 1"),
    ],
)
def test_wrong_options(base: Path, data: Path, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        finetune(base, "csv", data, tmp_path / "out", FinetuneOptions(**options))
    assert message in str(caught.value)


def test_folders_that_do_not_fit(base: Path, data: Path, tmp_path: Path) -> None:
    import dataclasses

    options = dataclasses.replace(OPTIONS, epochs=2, save_seconds=0.0)
    with pytest.raises(InputError, match="nothing to resume"):
        finetune(base, "csv", data, tmp_path / "none", options, resume=True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        finetune(base, "csv", data, tmp_path / "full", options)
    with pytest.raises(DataError, match="no train file"):
        finetune(base, "csv", tmp_path / "full", tmp_path / "out", options)
    with pytest.raises(Interrupted):
        finetune(base, "csv", data, tmp_path / "run", options, progress=stop_at(3))
    with pytest.raises(InputError, match="--resume"):
        finetune(base, "csv", data, tmp_path / "run", options)
    with pytest.raises(InputError, match=r"another run.*lr: 0\.005 -> 0\.001"):
        finetune(base, "csv", data, tmp_path / "run", dataclasses.replace(options, lr=1e-3), resume=True)
    finetune(base, "csv", data, tmp_path / "run", options, resume=True)
    with pytest.raises(InputError, match="finished run"):
        finetune(base, "csv", data, tmp_path / "run", options, resume=True)


def test_a_model_that_could_not_be_converted(base: Path, data: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(base, tmp_path / "c"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "silu"}))
    with pytest.raises(UnsupportedModelError, match="activation 'silu'"):
        finetune(folder, "csv", data, tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("save_seconds", [0.0, 1000.0])
def test_disk_full_then_resume(base: Path, data: Path, tmp_path: Path, save_seconds: float) -> None:
    """A file-size limit stands in for the full disk: while saving the state, and while writing the result."""
    import resource
    import signal

    options = FinetuneOptions(epochs=1, lr=5e-3, limit=60, save_seconds=save_seconds)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"cannot be written.*--resume"):
            finetune(base, "csv", data, tmp_path / "out", options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert not list((tmp_path / "out").glob(".*")), "no temporary file stays"
    finetune(base, "csv", data, tmp_path / "out", options, resume=True)
    finetune(base, "csv", data, tmp_path / "whole", options)
    a, b = (load_file(tmp_path / name / "model.safetensors")["classifier.weight"] for name in ("out", "whole"))
    np.testing.assert_array_equal(a, b)


def test_command(base: Path, data: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(importlib.import_module("approxrt.cli.finetune").command)
    common = [str(base), "--task", "csv", "--data", str(data), "--epochs", "1", "--limit", "60"]
    run = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "a"), "--json"], catch_exceptions=False)
    assert run.exit_code == 0 and json.loads(run.stdout)["examples"] == {"train": 54, "validation": 6, "dev": 40}
    run = CliRunner().invoke(app, [*common, "--out", str(tmp_path / "b")], catch_exceptions=False)
    assert run.exit_code == 0 and "dev (40 examples): accuracy" in run.stdout
