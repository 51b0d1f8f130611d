"""Folders of sentence-transformers in all their layouts: the original's vectors and scores, or a refusal by name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint
from originals import assert_close, converted, edit_json

pytest.importorskip("transformers", reason="checkpoints are built by transformers")

from approxrt.errors import CheckpointError, InputError, UnsupportedModelError
from approxrt.models.checkpoint import load_checkpoint
from approxrt.models.sentence import LENGTH_FILES, encoder_folder

TEXTS = ["a gripping film", "Another, LONGER text", "good " * 80]
QUERY = {"prompts": {"query": "good bad: ", "empty": ""}, "default_prompt_name": None}


def folder_of(
    tmp_path: Path, modules: list[tuple[str, str]] | None = None, pooling: dict | None = None, **options: Any
):
    """An encoder with modules.json; `pooling` is the content of Pooling's config.json."""
    folder = build_checkpoint(
        "bert", tmp_path / "c", plain=True, pooling="mean", normalize=False, positions=64, **options
    )
    if modules is not None:
        entries = [
            {
                "idx": i,
                "name": str(i),
                "path": path,
                "type": kind if "." in kind else f"sentence_transformers.models.{kind}",
            }
            for i, (path, kind) in enumerate(modules)
        ]
        (folder / "modules.json").write_text(json.dumps(entries))
    if pooling is not None:
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **pooling}))
    return folder


def assert_same(folder: Path, **options: Any) -> None:
    """Vectors of the original, of length 1 both, and the same longest text."""
    original = pytest.importorskip("sentence_transformers", reason="the original is not installed (extra 'clients')")
    theirs = original.SentenceTransformer(str(folder), device="cpu")
    model = converted(folder)
    with pytest.warns(Warning, match="of 3 texts were cut"):
        ours = model.embed(TEXTS, **options)
    assert_close(ours, theirs.encode(TEXTS, normalize_embeddings=True, **options))
    assert model.spec.max_length == min(theirs.max_seq_length, 64)


@pytest.mark.parametrize(
    "pooling",
    [
        {},
        {"pooling_mode": "mean"},
        {"pooling_mode": ["mean"]},
        {"pooling_mode": "cls"},
        {"pooling_mode_cls_token": True},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False},
    ],
    ids=str,
)
def test_pooling_as_the_original_reads_it(tmp_path: Path, pooling: dict) -> None:
    assert_same(folder_of(tmp_path, pooling=pooling))


@pytest.mark.parametrize(
    ("pooling", "named"),
    [
        ({"pooling_mode": ["mean", "min"]}, r"pooling mean \+ min is not supported"),
        ({"pooling_mode": []}, r"pooling \[\] is not supported"),
        ({"pooling_mode": ["mean"] * 9}, r"pooling mean \+ .* is not supported"),
        ({"pooling_mode": 3}, "pooling 3"),
        ({"pooling_mode": "mean", "include_prompt": "no"}, "include_prompt is 'no'"),
    ],
    ids=str,
)
def test_pooling_that_is_refused(tmp_path: Path, pooling: dict, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(folder_of(tmp_path, pooling=pooling))


def test_modules_that_change_nothing(tmp_path: Path) -> None:
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dropout", "Dropout"), ("3_Normalize", "Normalize")]
    folder = folder_of(tmp_path, kinds)
    assert_same(folder)
    assert load_checkpoint(folder).spec.head.normalize


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        ([("", "my_code.Transformer"), ("1_Pooling", "Pooling")], "module 'my_code.Transformer' at place 0"),
        ([("", "Transformer"), ("1_Pooling", "Pooling"), ("2", "CNN")], "module 'CNN' at place 2"),
        ([("1_Pooling", "Pooling"), ("", "Transformer")], "module 'Pooling' at place 0"),
        ([("", "Transformer")], "has no Pooling module"),
        ([("", "Transformer"), ("../1_Pooling", "Pooling")], "lies outside the checkpoint's folder"),
        ([("", "Transformer"), ("/1_Pooling", "Pooling")], "lies outside the checkpoint's folder"),
        ([("x" * 300, "Transformer"), ("1_Pooling", "Pooling")], "module path 'x{40,}.* is no name of a folder"),
    ],
)
def test_modules_that_are_refused(tmp_path: Path, kinds: list[tuple[str, str]], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(folder_of(tmp_path, kinds))


def test_the_older_layout_with_the_encoder_in_a_folder_of_its_own(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [("0_Transformer", "Transformer"), ("1_Pooling", "Pooling")])
    (folder / "0_Transformer").mkdir()
    for file in [f for f in folder.iterdir() if f.is_file() and f.name != "modules.json"]:
        shutil.move(file, folder / "0_Transformer" / file.name)
    edit_json(folder / "0_Transformer" / "sentence_bert_config.json", max_seq_length=20)
    assert encoder_folder(folder) == folder / "0_Transformer"
    assert_same(folder)


def test_links_into_a_cache_are_followed(tmp_path: Path) -> None:
    """As a hub's cache has them: a folder of links to files elsewhere."""
    folder, linked = folder_of(tmp_path), tmp_path / "snapshot"
    linked.mkdir()
    for item in folder.iterdir():
        os.symlink(item, linked / item.name)
    assert_same(linked)


@pytest.mark.parametrize("name", LENGTH_FILES)
def test_the_longest_text_of_its_own_file_wins(tmp_path: Path, name: str) -> None:
    folder = folder_of(tmp_path)
    edit_json(folder / "tokenizer_config.json", model_max_length=10)
    edit_json(folder / name, max_seq_length=21)
    assert load_checkpoint(folder).spec.max_length == 21


@pytest.mark.parametrize(("tokenizer", "own"), [(10, None), (None, None), (1000, 40), (10, 40), (40, 10)], ids=str)
def test_the_longest_text_is_the_original_s(tmp_path: Path, tokenizer: int | None, own: int | None) -> None:
    folder = folder_of(tmp_path)
    edit_json(folder / "tokenizer_config.json", model_max_length=tokenizer or ...)
    edit_json(folder / "sentence_bert_config.json", max_seq_length=own)
    assert_same(folder)


@pytest.mark.parametrize("cased", [True, False])
def test_lower_case_first(tmp_path: Path, cased: bool) -> None:
    folder = folder_of(tmp_path)
    edit_json(folder / "tokenizer_config.json", tokenizer_class="BertTokenizer", do_lower_case=not cased)
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    assert_same(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_seq_length": "long"}, "max_seq_length is 'long'"),
        ({"max_seq_length": -1}, "max_seq_length is -1"),
        ({"processing_kwargs": {"text": {"padding": "max_length"}}}, "processing_kwargs change how texts are read"),
        ({"transformer_task": "fill-mask"}, "transformer_task 'fill-mask'"),
    ],
)
def test_options_of_the_encoder_that_are_refused(tmp_path: Path, changes: dict, named: str) -> None:
    folder = folder_of(tmp_path)
    edit_json(folder / "sentence_bert_config.json", **changes)
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(folder)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("include", [True, False])
def test_prompts(tmp_path: Path, pooling: str, include: bool) -> None:
    folder = folder_of(tmp_path, pooling={"pooling_mode": pooling, "include_prompt": include})
    edit_json(folder / "config_sentence_transformers.json", **QUERY)
    assert_same(folder)
    assert_same(folder, prompt_name="query")
    assert_same(folder, prompt_name="empty")
    assert_same(folder, prompt="terrible ")
    edit_json(folder / "config_sentence_transformers.json", default_prompt_name="query")
    assert_same(folder)
    model = converted(folder)
    with pytest.raises(InputError, match="prompt_name is 'passage'; this model's prompts: 'query', 'empty'"):
        model.embed("a film", prompt_name="passage")


def test_a_default_prompt_that_is_none_of_them(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    edit_json(folder / "config_sentence_transformers.json", **{**QUERY, "default_prompt_name": "passage"})
    with pytest.raises(CheckpointError, match="default_prompt_name 'passage' is none of its prompts: query, empty"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"truncate_dim": 0}, "truncate_dim is 0; 1 to"),
        ({"truncate_dim": "8"}, "truncate_dim is '8'; 1 to"),
        ({"model_type": "SparseEncoder"}, "model_type 'SparseEncoder'"),
    ],
)
def test_what_else_the_folder_may_ask_for(tmp_path: Path, changes: dict, named: str) -> None:
    folder = folder_of(tmp_path)
    edit_json(folder / "config_sentence_transformers.json", **changes)
    with pytest.raises(CheckpointError, match=named):
        load_checkpoint(folder)


def test_how_vectors_are_compared(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    edit_json(folder / "config_sentence_transformers.json", similarity_fn_name="dot")
    assert converted(folder).spec.text.similarity_fn_name == "dot"
    edit_json(folder / "config_sentence_transformers.json", similarity_fn_name="maxsim")
    with pytest.raises(UnsupportedModelError, match="similarity_fn_name 'maxsim'"):
        load_checkpoint(folder)


# -- CrossEncoder -----------------------------------------------------------------------------

PAIRS = [("a gripping film", "good"), ("bad", "two hours that nobody will get back")]


def assert_same_scores(folder: Path) -> None:
    original = pytest.importorskip("sentence_transformers", reason="the original is not installed (extra 'clients')")
    theirs = original.CrossEncoder(str(folder), device="cpu").predict(PAIRS)
    model = converted(folder)
    ours = model.scores(model.logits(PAIRS))
    assert_close(ours[:, 0] if theirs.ndim == 1 else ours, theirs)
    best = [answer[0].score for answer in model.classify(PAIRS)]
    assert best == pytest.approx(ours.max(axis=1).tolist())


@pytest.mark.parametrize("name", [None, "linear.Identity", "activation.Sigmoid", "activation.Tanh", "mine.Activation"])
@pytest.mark.parametrize("place", ["sentence_transformers", "sbert_ce_default_activation_function"])
def test_the_activation_that_the_config_names(tmp_path: Path, name: str | None, place: str) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", num_labels=1)
    if name is not None:
        path = name if name.startswith("mine") else f"torch.nn.modules.{name}"
        edit_json(folder / "config.json", **{place: {"activation_fn": path} if place[:2] == "se" else path})
    assert_same_scores(folder)


def test_an_activation_that_is_not_known(tmp_path: Path) -> None:
    folder = build_checkpoint("bert", tmp_path / "c", num_labels=1)
    edit_json(folder / "config.json", sbert_ce_default_activation_function="torch.nn.modules.activation.GELU")
    with pytest.raises(UnsupportedModelError, match=r"activation 'torch\.nn\.modules\.activation\.GELU' of"):
        load_checkpoint(folder)


@pytest.mark.parametrize("labels", [1, 3])
def test_as_the_newest_version_saves_it(tmp_path: Path, labels: int) -> None:
    """modules.json with a Transformer alone, and the activation beside the prompts."""
    original = pytest.importorskip("sentence_transformers", reason="the original is not installed (extra 'clients')")
    import torch

    folder = build_checkpoint("bert", tmp_path / "c", num_labels=labels)
    saved = original.CrossEncoder(str(folder), device="cpu", activation_fn=torch.nn.Identity())
    saved.save_pretrained(str(tmp_path / "saved"))
    assert_same_scores(tmp_path / "saved")
    assert load_checkpoint(tmp_path / "saved").spec.head.activation_fn == "identity"
    edit_json(tmp_path / "saved" / "config_sentence_transformers.json", default_prompt_name="a", prompts={"a": "b"})
    with pytest.raises(UnsupportedModelError, match="default_prompt_name 'a' of a CrossEncoder"):
        load_checkpoint(tmp_path / "saved")


@pytest.mark.parametrize(
    ("labels", "problem", "function"),
    [
        (1, None, "sigmoid"),
        (1, "regression", "none"),
        (3, None, "softmax"),
        (3, "multi_label_classification", "sigmoid"),
        (3, "regression", "none"),
    ],
)
def test_what_transformers_pipeline_applies(tmp_path: Path, labels: int, problem: str | None, function: str) -> None:
    import transformers

    folder = build_checkpoint("bert", tmp_path / "c", num_labels=labels, problem_type=problem)
    model = converted(folder)
    assert model.spec.head.function_to_apply == function
    theirs = transformers.pipeline("text-classification", model=str(folder), tokenizer=str(folder), top_k=None)
    expected = {entry["label"]: entry["score"] for entry in theirs(["a gripping film"])[0]}
    ours = {p.label: p.score for p in model.classify("a gripping film", top_k=labels)}
    assert ours == pytest.approx(expected, abs=1e-5)


def test_scores_of_artifacts_from_before_the_field(tmp_path: Path) -> None:
    """They go by their kind of task."""
    from specs import random_tensors, small_spec

    import approxrt
    from approxrt.artifact.writer import write_artifact

    tokenizer = (build_checkpoint("bert", tmp_path / "c") / "tokenizer.json").read_bytes()
    rows = json.loads((tmp_path / "c" / "config.json").read_text())["vocab_size"]
    for task, labels, total in (("classification", ("a", "b"), 1.0), ("regression", ("a",), None)):
        spec = small_spec(task_type=task, labels=labels, vocab_size=rows)
        assert "function_to_apply" not in spec.to_json()["head"] and "text" not in spec.to_json()
        path = write_artifact(tmp_path / task, spec, random_tensors(spec), tokenizer, {})
        model = approxrt.load(path)
        logits = np.array([[2.0, -1.0][: len(labels)]], np.float32)
        scores = model.scores(logits)
        assert scores.sum() == pytest.approx(total) if total else (scores == logits).all()
