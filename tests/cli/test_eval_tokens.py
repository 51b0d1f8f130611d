"""`approxrt eval` of tagged words and of questions, with random models: scores are those of their own answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import run_command
from families import build_checkpoint
from originals import edit_json

import approxrt
from approxrt.conversion import convert
from approxrt.errors import DataError, InputError

pytest.importorskip("transformers", reason="checkpoints are built with transformers")
pytest.importorskip("seqeval", reason="the F1 score of entities (extra 'compress')")

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
WORDS = ["She", "sold", "seashells", "and", "bread", "in", "a", "small", "town"]
CONTEXT = "The quick brown fox jumps over the lazy dog while the rain falls on the plain."


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tagger")
    folder = build_checkpoint("bert", root / "c", head="TokenClassification", num_labels=5, positions=32, seed=2)
    edit_json(folder / "config.json", id2label={str(i): label for i, label in enumerate(LABELS)})
    return Path(convert(folder, root / "a", bits=32))


@pytest.fixture(scope="module")
def answerer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("answerer")
    folder = build_checkpoint("bert", root / "c", head="QuestionAnswering", num_labels=2, positions=64)
    return Path(convert(folder, root / "a", bits=32))


def evaluated(*arguments: str | Path) -> dict:
    code, out = run_command("evaluate", *map(str, arguments), "--json")
    assert code == 0
    return json.loads(out)


def tags_of(model_path: Path, words: list[str]) -> list[str]:
    """The label of each word's first token, by `tag` itself."""
    model = approxrt.load(model_path, threads=1)
    tokens = model.tag(words, "none", (), is_split_into_words=True)
    starts = [len(" ".join(words[:i])) + bool(i) for i in range(len(words))]
    return [next(t["entity"] for t in tokens if t["start"] == start) for start in starts]


def test_entities(tagger: Path, tmp_path: Path) -> None:
    file = tmp_path / "dev.tsv"
    tags = tags_of(tagger, WORDS)
    assert len(set(tags)) > 1, "a model that finds nothing shows nothing"
    file.write_text("\n".join(f"{w}\t{t}" for w, t in zip(WORDS, tags, strict=True)))
    result = evaluated(tagger, "--task", "ner", "--data", file)
    assert result["examples"] == 1 and result["metrics"] == {"f1": 1, "precision": 1, "recall": 1, "accuracy": 1}
    wrong = ["B-LOC" if i % 2 else "O" for i in range(len(tags))]
    file.write_text("\n".join(f"{w}\t{t}" for w, t in zip(WORDS * 9, wrong * 9, strict=True)))
    result = evaluated(tagger, "--task", "token-classification", "--data", file, "--against", tagger)
    assert result["metrics"]["f1"] < 0.5 and result["flip_rate"] == 0
    assert result["against"]["metrics"] == result["metrics"]
    _, shown = run_command("evaluate", str(tagger), "--task", "ner", "--data", str(file))
    assert "f1 " in shown and "recall " in shown


def test_answers(answerer: Path, tmp_path: Path) -> None:
    model = approxrt.load(answerer, threads=1)
    asked = ["what jumps", "what falls"]
    answers = [model.answer(question, CONTEXT, max_answer_len=30) for question in asked]
    rows = [
        {"question": q, "context": CONTEXT, "answers": [{"text": a["answer"], "answer_start": a["start"]}]}
        for q, a in zip(asked, answers, strict=True)
    ]
    file = tmp_path / "dev.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert evaluated(answerer, "--task", "qa", "--data", file)["metrics"] == {"f1": 1, "exact_match": 1}
    rows[1]["answers"] = [{"text": "quick", "answer_start": 4}]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert 0.5 <= evaluated(answerer, "--task", "squad", "--data", file)["metrics"]["exact_match"] <= 1


def test_what_does_not_fit_is_named(tagger: Path, answerer: Path, tmp_path: Path) -> None:
    file = tmp_path / "dev.tsv"
    file.write_text("York\tB-CITY\n")
    for arguments, error, said in (
        ((tagger, "--task", "ner", "--data", file), DataError, "an entity is called 'CITY'; the model's are PER, LOC"),
        ((answerer, "--task", "ner", "--data", file), InputError, "is for token_classification"),
        ((tagger, "--task", "qa", "--data", file), InputError, "is for question_answering"),
        ((tagger, "--task", "sst2", "--data", file), InputError, "task 'sst2' has one label a text"),
        ((tagger, "--task", "ner", "--data", file, "--delimiter", "tab"), InputError, "leave out --delimiter"),
    ):
        with pytest.raises(error) as caught:
            run_command("evaluate", *map(str, arguments))
        assert said in str(caught.value)


def test_other_commands_say_that_they_do_not_take_them(tagger: Path, tmp_path: Path) -> None:
    from approxrt.significance.analyze import analyze

    for call in (
        lambda: approxrt.compress(tagger, tmp_path, out=tmp_path / "o", task="ner"),
        lambda: analyze(tagger, "qa", tmp_path),
    ):
        with pytest.raises(InputError, match=r"task (ner|qa) is for .*, which (compress|analyze) does not take"):
            call()


def test_tag_and_answer(tagger: Path, answerer: Path) -> None:
    model, text = approxrt.load(tagger, threads=1), " ".join(WORDS)
    code, out = run_command("tag", str(tagger), text, "--json")
    assert code == 0 and json.loads(out) == [{"text": text, "entities": model.tag(text)}]
    with pytest.raises(InputError, match="stride is 0 with aggregation='none'"):
        run_command("tag", str(tagger), text, "--aggregation", "none", "--stride", "0")
    code, out = run_command("tag", str(tagger), text * 9, "--stride", "5")
    assert code == 0 and all(entity["entity_group"] in out for entity in model.tag(text * 9, stride=5))
    reader = approxrt.load(answerer, threads=1)
    want = reader.answer("what jumps", CONTEXT, top_k=3, handle_impossible_answer=True)
    code, out = run_command("answer", str(answerer), "what jumps", CONTEXT, "--top-k", "3", "--impossible", "--json")
    assert code == 0 and json.loads(out) == [{"question": "what jumps", "answers": want}]
    code, out = run_command("answer", str(answerer), "what jumps", CONTEXT)
    assert code == 0 and reader.answer("what jumps", CONTEXT)["answer"] in out
    with pytest.raises(InputError, match="answer, with a context for each question, needs an even number of texts"):
        run_command("answer", str(answerer), "what jumps")
