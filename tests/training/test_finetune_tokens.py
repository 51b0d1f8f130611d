"""Fine-tuning heads that read every token: tiny random models learn words that are entities, and words that answer.

The artifact's own evaluation in float32 gives the report's numbers, so that training and running read texts alike.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from commands import run_command
from families import build_checkpoint, build_tokenizer
from originals import edit_json

from approxrt.artifact.reader import read_artifact
from approxrt.cli.evaluate import evaluate_tokens
from approxrt.conversion import convert
from approxrt.errors import DataError, InputError
from approxrt.tasks.registry import get_task
from approxrt.tasks.tokens import QuestionData, TaggedData
from approxrt.tasks.tokens import read as read_tokens
from approxrt.training.finetune import FinetuneOptions, finetune, read_training, split_tokens, total_steps
from approxrt.training.options import STATE
from approxrt.training.token_data import IGNORED, QuestionWindows, TaggedWindows, label_names

torch = pytest.importorskip("torch", reason="fine-tuning needs torch")
pytest.importorskip("transformers", reason="fine-tuning needs transformers")
pytest.importorskip("seqeval", reason="the F1 score of entities (extra 'compress')")

OTHERS = ["a", "film", "that", "holds", "its", "audience", "from", "the", "first", "minute", "to", "last"]
# Words that are one token and words that are several; entities of one word and of two.
ENTITIES = {("fox",): "ANIMAL", ("lazy", "dog"): "ANIMAL", ("plainish",): "PLACE", ("small", "town"): "PLACE"}
OPTIONS = FinetuneOptions(epochs=12, lr=5e-3, batch_size=8, val_fraction=0.2)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    sizes = {"hidden": 32, "heads": 2, "layers": 1, "ffn": 64, "positions": 48, "plain": True}
    return {family: build_checkpoint(family, root / family, **sizes) for family in ("bert", "roberta")}


def tagged(count: int, seed: int) -> str:
    rng, sentences = np.random.default_rng(seed), []
    for _ in range(count):
        lines = [f"{word}\tO" for word in rng.choice(OTHERS, rng.integers(2, 6))]
        for words, kind in [list(ENTITIES.items())[i] for i in rng.integers(0, 4, rng.integers(1, 3))]:
            lines += [f"{word}\t{'B' if i == 0 else 'I'}-{kind}" for i, word in enumerate(words)]
            lines.append(f"{rng.choice(OTHERS)}\tO")
        sentences.append("\n".join(lines))
    return "\n\n".join(sentences) + "\n"


def asked(count: int, seed: int, long: int = 12) -> dict:
    rng, paragraphs = np.random.default_rng(seed), []
    for i in range(count):
        words = rng.choice(OTHERS, rng.integers(4, long)).tolist()
        none = i % 5 == 0
        answer = "lazy dog" if i % 2 else "fox"
        at = int(rng.integers(0, len(words)))
        context = " ".join(words if none else [*words[:at], answer, *words[at:]])
        answers = [] if none else [{"text": answer, "answer_start": context.index(answer)}]
        qas = [{"id": str(i), "question": "the animal", "answers": answers, "is_impossible": none}]
        paragraphs.append({"context": context, "qas": qas})
    return {"data": [{"paragraphs": paragraphs}]}


@pytest.fixture(scope="module")
def ner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ner")
    (folder / "train.tsv").write_text(tagged(200, 0))
    (folder / "dev.tsv").write_text(tagged(30, 1))
    return folder


@pytest.fixture(scope="module")
def qa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qa")
    (folder / "train.json").write_text(json.dumps(asked(100, 0)))
    (folder / "dev.json").write_text(json.dumps(asked(30, 1, long=60)))
    return folder


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_entities_are_learnt_and_the_artifact_finds_them(
    bases: dict[str, Path], ner: Path, tmp_path: Path, family: str
) -> None:
    report = finetune(bases[family], "ner", ner, tmp_path / "c", OPTIONS)
    assert report["validation"]["f1"] > 0.8 and report["dev"]["f1"] > 0.8, report["epochs"]
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert config["architectures"][0].endswith("ForTokenClassification") and config["finetuning_task"] == "ner"
    artifact = convert(tmp_path / "c", tmp_path / "a", bits=32)
    labels = ("O", "B-ANIMAL", "I-ANIMAL", "B-PLACE", "I-PLACE")
    assert read_artifact(artifact).spec.labels == labels
    found = evaluate_tokens(artifact, "ner", ner / "dev.tsv", threads=1)
    assert found["metrics"] == pytest.approx(report["dev"])


def test_answers_are_learnt_and_the_artifact_gives_them(bases: dict[str, Path], qa: Path, tmp_path: Path) -> None:
    done = 0.0

    def count(steps: float, text: str) -> None:
        nonlocal done
        done += steps

    options = FinetuneOptions(**vars(OPTIONS) | {"max_length": 48})
    report = finetune(bases["bert"], "qa", qa, tmp_path / "c", options, progress=count)
    assert report["examples"] == {"train": 80, "validation": 20, "dev": 30}
    assert done == pytest.approx(total_steps(read_training("qa", qa), options))
    assert report["validation"]["f1"] > 0.8, report["validation"]
    artifact = convert(tmp_path / "c", tmp_path / "a", bits=32)
    found = evaluate_tokens(artifact, "qa", qa / "dev.json", threads=1)
    assert found["metrics"] == pytest.approx(report["dev"])


def test_a_run_goes_on_exactly_and_a_head_that_fits_is_kept(bases: dict[str, Path], ner: Path, tmp_path: Path) -> None:
    options = FinetuneOptions(epochs=2, lr=2e-3, batch_size=8, save_seconds=0)
    whole = finetune(bases["bert"], "ner", ner, tmp_path / "whole", options)
    steps = 0

    class Stop(Exception):
        pass

    def stop(count: int, text: str) -> None:
        nonlocal steps
        steps += count
        if steps == 30:
            raise Stop

    with pytest.raises(Stop):
        finetune(bases["bert"], "ner", ner, tmp_path / "parts", options, progress=stop)
    assert (tmp_path / "parts" / STATE).exists()
    resumed = finetune(bases["bert"], "ner", ner, tmp_path / "parts", options, resume=True)
    assert resumed["epochs"] == whole["epochs"]
    # Labels in another order than the data would give them.
    names = ["I-PLACE", "O", "B-ANIMAL", "B-PLACE", "I-ANIMAL"]
    edit_json(tmp_path / "whole" / "config.json", id2label={str(i): name for i, name in enumerate(names)})
    (tmp_path / "whole" / "finetune.json").unlink()
    again = finetune(tmp_path / "whole", "ner", ner, tmp_path / "again", FinetuneOptions(epochs=1, lr=1e-9))
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert [config["id2label"][str(i)] for i in range(5)] == names and again["dev"] is not None


def windows(tmp_path: Path, text: str, all_pieces: bool = False, length: int = 12) -> TaggedWindows:
    (tmp_path / "a.tsv").write_text(text)
    data = read_tokens(get_task("ner"), tmp_path / "a.tsv")
    assert isinstance(data, TaggedData)
    return TaggedWindows(data, label_names(data), build_tokenizer("bert"), length, all_pieces)


def test_targets_of_words_in_pieces(tmp_path: Path) -> None:
    """The first piece of a word has its tag; or all of them, as I- behind B-."""
    text = "good\tO\nbready\tB-X\nfox\tI-X\n"
    first = windows(tmp_path, text, length=24)
    ids = build_tokenizer("bert").encode(["good", "bready", "fox"], is_pretokenized=True)
    pieces = [ids.word_ids.count(word) for word in range(3)]
    assert pieces[1] > 1 and first.ids == [ids.ids]
    expected, everywhere = [IGNORED], [IGNORED]
    for count, begin, on in zip(pieces, (0, 1, 2), (0, 2, 2), strict=True):
        expected += [begin] + [IGNORED] * (count - 1)
        everywhere += [begin] + [on] * (count - 1)
    assert first.labels[0].tolist() == [*expected, IGNORED]
    assert windows(tmp_path, text, True, 24).labels[0].tolist() == [*everywhere, IGNORED]


def test_long_sentences_are_taught_whole_and_each_word_once(tmp_path: Path) -> None:
    words = ["good", "bready", "fox"] * 9
    found = windows(tmp_path, "\n".join(f"{word}\t{'B-X' if word == 'fox' else 'O'}" for word in words))
    assert len(found.ids) > 3 and all(len(row) <= 12 for row in found.ids)
    assert sum(int((row != IGNORED).sum()) for row in found.labels) == len(words)
    assert sum(int((row == 1).sum()) for row in found.labels) == 9
    perfect = [np.eye(2)[np.where(row == IGNORED, 0, row)] for row in found.labels]
    assert found.metrics(perfect)["f1"] == 1


def test_spans_in_windows(tmp_path: Path) -> None:
    """Every window that has the whole answer points at it; the others at their first token."""
    (tmp_path / "a.json").write_text(json.dumps(asked(12, 3, long=60)))
    data = read_tokens(get_task("qa"), tmp_path / "a.json")
    assert isinstance(data, QuestionData)
    tokenizer = build_tokenizer("bert")
    found = QuestionWindows(data, tokenizer, 24)
    assert len(found.ids) > 20
    words = {tuple(ids[a : b + 1]) for ids, (a, b) in zip(found.ids, found.labels, strict=True) if a}
    tokenizer.no_truncation()
    expected = {tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in ("fox", "lazy dog")}
    assert words == expected
    perfect = []
    for ids, (a, b) in zip(found.ids, found.labels, strict=True):
        logits = np.full((len(ids), 2), -20, np.float32)
        logits[a, 0] = logits[b, 1] = 20
        # A window without the answer is unsure, so that the one with it decides.
        perfect.append(logits if a else logits / 100)
    answered = [q for q in data.examples if q.answers]
    assert found.metrics(perfect)["exact_match"] >= len(answered) / len(data.examples) - 0.1


def test_groups_stay_together_and_steps_are_counted(qa: Path, ner: Path) -> None:
    whole = read_training("qa", qa)
    assert isinstance(whole, QuestionData)
    many = QuestionData(whole.file, [q for q in whole.examples for _ in range(3)])
    train, held = split_tokens(many, FinetuneOptions(val_fraction=0.2))
    assert not {q.context for q in train.examples} & {q.context for q in held.examples}
    assert len(train.examples) + len(held.examples) == 300 and 45 <= len(held.examples) <= 60
    options = FinetuneOptions(epochs=2, batch_size=8, limit=20, split="random")
    assert total_steps(read_training("ner", ner), options) == 2 * -(-18 // 8)


def test_bad_input_is_named(bases: dict[str, Path], ner: Path, qa: Path, tmp_path: Path) -> None:
    def tune(task: str, folder: Path, **options) -> None:
        finetune(bases["bert"], task, folder, tmp_path / "out", FinetuneOptions(epochs=1, **options))

    with pytest.raises(InputError, match="qat is 8; it is for classifiers of texts, not for ner"):
        tune("ner", ner, qat=8)
    with pytest.raises(InputError, match="label_all_pieces is for task ner"):
        tune("qa", qa, label_all_pieces=True)
    with pytest.raises(DataError, match=r"no train file; looked for train\.json, train\.jsonl"):
        tune("qa", ner)
    with pytest.raises(DataError, match=r"train\.json:1: the question has 6 tokens, which leaves 0 of max_length=8"):
        tune("qa", qa, max_length=8)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.tsv").write_text(tagged(20, 0))
    (tmp_path / "data" / "dev.tsv").write_text("fox\tB-CAR\n")
    with pytest.raises(DataError, match=r"dev\.tsv:1: an entity is called 'CAR'; the model's are ANIMAL, PLACE"):
        tune("ner", tmp_path / "data")
    (tmp_path / "data" / "train.tsv").write_text("fox\tB-CAR\n")
    with pytest.raises(DataError, match="1 example; at least 2"):
        tune("ner", tmp_path / "data")


def test_the_command(bases: dict[str, Path], ner: Path, tmp_path: Path) -> None:
    arguments = ["--task", "ner", "--data", str(ner), "--out", str(tmp_path / "c"), "--epochs", "1", "--json"]
    code, out = run_command("finetune", str(bases["bert"]), *arguments, "--label-all-pieces")
    report = json.loads(out)
    assert code == 0 and report["task"] == "ner" and report["options"]["label_all_pieces"] is True
    assert set(report["dev"]) == {"f1", "precision", "recall", "accuracy"}
