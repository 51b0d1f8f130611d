"""Readers and metrics: real GLUE files where they are at hand, and every malformed file named with its line."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT

from approxrt.errors import DataError, InputError, MissingDependencyError
from approxrt.tasks.metrics import METRICS, compute_metrics, flip_rate
from approxrt.tasks.readers import find_split, read_task, require_split
from approxrt.tasks.registry import METRIC_NAMES, TASKS, Task, get_task

SHARED = Path(os.environ.get("APPROXRT_SHARED", ROOT.parent / "shared"))
GLUE = SHARED / "data" / "glue"


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.skipif(not GLUE.is_dir(), reason=f"the GLUE files are absent ({GLUE}; set APPROXRT_SHARED)")
@pytest.mark.parametrize(
    ("task", "folder", "size", "majority"),
    [
        ("sst2", "SST-2", 872, 0.509),
        ("mrpc", "MRPC", 408, 0.684),
        ("rte", "RTE", 277, 0.527),
        ("cola", "CoLA", 1043, 0.691),
        ("stsb", "STS-B", 1500, None),
        ("qnli", "QNLI", 5463, 0.505),
        ("wnli", "WNLI", 71, 0.563),
    ],
)
def test_glue(task: str, folder: str, size: int, majority: float | None) -> None:
    """Sizes and majority shares of the published dev sets."""
    data = read_task(task, require_split(GLUE / folder, "dev"))
    assert len(data) == size
    assert data.is_pair == (TASKS[task].inputs == "pair")
    if majority is None:
        assert data.label_names is None and 0 <= data.labels.min() < data.labels.max() <= 5
    else:
        assert np.bincount(data.labels).max() / size == pytest.approx(majority, abs=1e-3)
    for text in data.texts:
        for part in text if isinstance(text, tuple) else (text,):
            assert part and "\t" not in part and part == part.strip()


@pytest.mark.skipif(not GLUE.is_dir(), reason=f"the GLUE files are absent ({GLUE}; set APPROXRT_SHARED)")
def test_quotes_belong_to_the_text() -> None:
    data = read_task("mrpc", GLUE / "MRPC" / "dev.tsv")
    assert data.texts[0][1].startswith('" The foodservice pie business')
    assert data.labels[0] == 1


def test_csv_quoting_and_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", 'label,text\nyes,"one, ""two""\nlines"\nno,plain\n\nno,\n')
    data = read_task("csv", path)
    assert data.texts == ['one, "two"\nlines', "plain", ""]
    assert data.label_names == ("no", "yes") and data.labels.tolist() == [1, 0, 0]
    path = write(tmp_path, "b.csv", 'label,text\nyes,"one\ntwo"\nmaybe,x\n')
    with pytest.raises(DataError, match=r"b\.csv:4: unknown label 'maybe'; known: 0, 1, no, yes"):
        read_task("csv", path, label_names=("no", "yes"))


def test_csv_pairs_and_jsonl_agree(tmp_path: Path) -> None:
    a = read_task("csv", write(tmp_path, "a.csv", "text,text_pair,label\na,b,x\nc,d,y\n"))
    b = read_task(
        "csv",
        write(
            tmp_path,
            "b.jsonl",
            '{"text": "a", "text_pair": "b", "label": "x"}\n{"label": "y", "text": "c", "text_pair": "d"}\n',
        ),
    )
    assert a.texts == b.texts == [("a", "b"), ("c", "d")]
    assert a.labels.tolist() == b.labels.tolist() and a.label_names == b.label_names


def test_numbers_are_classes_when_whole_and_scores_when_not(tmp_path: Path) -> None:
    whole = read_task("csv", write(tmp_path, "a.csv", "text,label\na,10\nb,2\nc,-1\n"))
    assert whole.label_names == ("-1", "2", "10") and whole.labels.tolist() == [2, 1, 0]
    scores = read_task("csv", write(tmp_path, "b.csv", "text,label\na,1\nb,0.5\n"))
    assert scores.label_names is None and scores.labels.dtype == np.float32
    assert read_task("csv", tmp_path / "a.csv", regression=True).labels.tolist() == [10, 2, -1]
    by_number = read_task("csv", write(tmp_path, "c.csv", "text,label\na,1\nb,0\n"), ["LABEL_0", "LABEL_1"])
    assert by_number.labels.tolist() == [1, 0]


def test_a_glue_task_in_a_plain_csv(tmp_path: Path) -> None:
    data = read_task("mrpc", write(tmp_path, "a.csv", "text,text_pair,label\na,b,equivalent\nc,d,0\n"))
    assert data.texts == [("a", "b"), ("c", "d")] and data.labels.tolist() == [1, 0]


def test_class_numbers_follow_the_models_order(tmp_path: Path) -> None:
    path = write(tmp_path, "a.tsv", "sentence\tlabel\nx\t1\ny\t0\n")
    for names, expected in (
        (None, [1, 0]),
        (("LABEL_0", "LABEL_1"), [1, 0]),
        (("negative", "positive"), [1, 0]),
        (("POSITIVE", "NEGATIVE"), [0, 1]),
    ):
        assert read_task("sst2", path, names).labels.tolist() == expected, names
    with pytest.raises(InputError, match=r"task sst2 has 2 classes \(negative, positive\), the model has 3 labels"):
        read_task("sst2", path, ("a", "b", "c"))


BAD = {
    "empty": ("sst2", "a.tsv", "", "empty"),
    "header only": ("sst2", "a.tsv", "sentence\tlabel\n", "no examples"),
    "no label column": ("sst2", "a.tsv", "sentence\tscore\nx\t1\n", "missing: 'label'"),
    "no pair column": ("rte", "a.tsv", "sentence1\tlabel\nx\tentailment\n", "missing: 'sentence2'"),
    "short row": ("sst2", "a.tsv", "sentence\tlabel\nx\t1\ny\n", "a.tsv:3: 1 cells where the header has 2"),
    "unknown label": ("sst2", "a.tsv", "sentence\tlabel\nx\t1\ny\t2\n", "a.tsv:3: unknown label '2'"),
    "score not a number": (
        "stsb",
        "a.tsv",
        "sentence1\tsentence2\tscore\na\tb\thigh\n",
        "a.tsv:2: label 'high' is not a finite number",
    ),
    "score infinite": ("stsb", "a.tsv", "sentence1\tsentence2\tscore\na\tb\tinf\n", "a.tsv:2: label 'inf'"),
    "not UTF-8": ("sst2", "a.tsv", b"sentence\tlabel\nx\t1\n\xff\t1\n", "a.tsv:3: not UTF-8"),
    "suffix": ("csv", "a.xlsx", "text,label\n", "ending in .xlsx"),
    "not JSON": ("csv", "a.jsonl", '{"text": "a", "label": "x"}\n{oops\n', "a.jsonl:2: not JSON"),
    "JSON list": ("csv", "a.jsonl", "[]\n", "a.jsonl:1: a JSON object is needed"),
    "JSON no label": ("csv", "a.jsonl", '{"text": "a"}\n', "a.jsonl:1: task csv needs the columns"),
    "JSON text a number": ("csv", "a.jsonl", '{"text": 3, "label": "x"}\n', "a.jsonl:1: texts must be strings"),
    "JSON label null": ("csv", "a.jsonl", '{"text": "a", "label": null}\n', "a.jsonl:1: label None"),
    "some pairs": (
        "csv",
        "a.jsonl",
        '{"text": "a", "label": "x"}\n{"text": "a", "text_pair": "b", "label": "x"}\n',
        "a.jsonl:2: some examples are pairs",
    ),
    "open quote": ("csv", "a.csv", 'text,label\n"x,1\n', "a.csv:2: "),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_their_line(tmp_path: Path, case: str) -> None:
    task, name, content, message = BAD[case]
    with pytest.raises(DataError) as caught:
        read_task(task, write(tmp_path, name, content))
    assert message in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_missing_file_and_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: no such file"):
        read_task("sst2", tmp_path / "none.tsv")
    with pytest.raises(InputError, match="unknown task 'imdb'; known: sst2, mrpc"):
        read_task("imdb", tmp_path / "none.tsv")
    assert get_task("STS-B") is TASKS["stsb"]


def test_splits(tmp_path: Path) -> None:
    assert find_split(tmp_path, "dev") is None
    with pytest.raises(DataError, match=r"no train file; looked for train\.tsv, train\.csv, train\.jsonl"):
        require_split(tmp_path, "train")
    path = write(tmp_path, "validation.csv", "text,label\na,b\n")
    assert require_split(tmp_path, "dev") == path
    write(tmp_path, "dev.tsv", "x")
    with pytest.raises(DataError, match="more than one dev file"):
        find_split(tmp_path, "dev")
    with pytest.raises(DataError, match="not a folder"):
        find_split(path, "dev")


# -- metrics ------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_classification_metrics_by_their_formulas(pairs: list[tuple[int, int]]) -> None:
    predictions, labels = (np.array(column) for column in zip(*pairs, strict=True))
    tp, tn = int(np.sum(predictions & labels)), int(np.sum(~predictions.astype(bool) & ~labels.astype(bool)))
    fp, fn = int(np.sum(predictions > labels)), int(np.sum(predictions < labels))
    mrpc = compute_metrics("mrpc", predictions, labels)
    assert list(mrpc) == ["f1", "accuracy"]
    assert mrpc["accuracy"] == pytest.approx((tp + tn) / len(labels))
    assert mrpc["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0)
    root = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    assert compute_metrics("cola", predictions, labels)["matthews"] == pytest.approx(
        (tp * tn - fp * fn) / root if root else 0
    )


def test_logits_and_predictions_agree() -> None:
    logits = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 2, 50)
    assert compute_metrics("sst2", logits, labels) == compute_metrics("sst2", logits.argmax(1), labels)


def test_correlations() -> None:
    labels = np.arange(20, dtype=np.float32)
    result = compute_metrics("stsb", np.exp(labels / 4)[:, None], labels)
    assert result["spearman"] == pytest.approx(1)
    assert result["pearson"] == pytest.approx(np.corrcoef(np.exp(labels / 4), labels)[0, 1])
    assert compute_metrics("stsb", np.ones(20), labels) == {"spearman": 0, "pearson": 0}
    assert set(compute_metrics("csv", labels * 2, labels)) == {"spearman", "pearson"}
    assert set(compute_metrics("csv", np.eye(3), np.arange(3))) == {"accuracy"}


def test_flip_rate() -> None:
    a = np.array([[1.0, 0], [0, 1], [2, 1], [0, 3]])
    b = np.array([0, 1, 1, 0])
    assert flip_rate(a, a) == 0 and flip_rate(a, b) == 0.5
    with pytest.raises(InputError, match="cannot be compared"):
        flip_rate(a, b[:2])


def test_shapes_that_do_not_fit() -> None:
    for outputs, labels in ((np.zeros((3, 2)), np.zeros(2, int)), (np.zeros(0), np.zeros(0, int))):
        with pytest.raises(InputError, match="do not fit"):
            compute_metrics("sst2", outputs, labels)
    with pytest.raises(InputError, match="one column"):
        compute_metrics("stsb", np.zeros((3, 2)), np.zeros(3))


def test_accuracy_needs_no_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.split(".")[0] in ("sklearn", "scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    labels = np.array([0, 1, 1])
    assert compute_metrics("sst2", labels, labels) == {"accuracy": 1.0}
    for task in ("mrpc", "cola", "stsb"):
        with pytest.raises(MissingDependencyError, match=r"approxrt\[compress\]"):
            compute_metrics(task, labels, labels)


# -- tasks of one's own -------------------------------------------------------------


def own_task(**changes: Any) -> Task:
    facts: dict[str, Any] = {"name": "headlines", "inputs": "single", "text": "title", "text_pair": None}
    facts |= {"label": "topic", "metrics": ("accuracy",), "labels": ("World", "Sports")}
    return Task(**(facts | changes))


def test_labels_of_a_task_stand_in_its_order_and_match_a_models_in_any_writing(tmp_path: Path) -> None:
    file = write(tmp_path, "train.csv", "title,topic\na goal,Sports\na vote,World\n")
    for names, order in ((None, ("World", "Sports")), (("sports", "WORLD"), ("Sports", "World"))):
        found = read_task(own_task(), file, names)
        assert found.label_names == order
        assert [order[i] for i in found.labels] == ["Sports", "World"]
    raw = write(tmp_path, "raw.csv", "title,topic\na goal,2\na vote,1\n")
    assert read_task(own_task(raw_labels=("1", "2")), raw).labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "head-lines"}, "letters and digits"),
        ({"metrics": ("f2",)}, "known: accuracy"),
        ({"labels": None, "raw_labels": ("1", "2")}, "raw_labels without labels"),
        ({"raw_labels": ("1", "2", "3")}, "2 labels and 3 raw_labels"),
        ({"labels": ("a b", "a-b")}, "differ in capitals"),
        ({"labels": ("a", "b", "c"), "metrics": ("accuracy", "f1")}, "class 1 of two"),
    ],
)
def test_a_task_that_could_not_be_meant_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        own_task(**changes)


def test_every_metric_of_labels_is_computed() -> None:
    others = {"cosine", "top1", "top10", "perplexity", "precision", "recall", "exact_match"}
    assert set(METRICS) == set(METRIC_NAMES) - others
