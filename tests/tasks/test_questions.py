"""Files of questions, SQuAD's scores by their definition, and what is wrong with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from paths import SHARED

from approxrt.errors import DataError, InputError
from approxrt.tasks.questions import Question, read_questions
from approxrt.tasks.squad import answer_metrics, exact_match, normalized, word_f1

SUBJQA = SHARED / "data" / "qa" / "subjqa"
CONTEXT = "The quick brown fox jumps over the lazy dog."


def squad(*qas: dict, context: Any = CONTEXT) -> dict:
    return {"version": "v2.0", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": list(qas)}]}]}


def qa(number: int = 1, text: str = "the lazy dog", start: Any = 31, **more: Any) -> dict:
    answers = [{"text": text, "answer_start": start}]
    return {"id": f"q{number}", "question": "over whom?", "answers": answers, **more}


def write(folder: Path, name: str, data: Any) -> Path:
    text = data if isinstance(data, str) else json.dumps(data)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_squad_and_lines(tmp_path: Path) -> None:
    no_answer = {"id": "q2", "question": "why?", "answers": [], "is_impossible": True}
    file = write(tmp_path, "a.json", json.dumps(squad(qa(), no_answer), indent=1))
    read = read_questions(file)
    assert [(q.id, q.question, q.answers) for q in read] == [
        ("q1", "over whom?", (("the lazy dog", 31),)),
        ("q2", "why?", ()),
    ]
    lines = file.read_text().splitlines()
    assert all(q.id in lines[q.line - 1] for q in read)
    rows = [
        {
            "id": "q1",
            "question": "over whom?",
            "context": CONTEXT,
            "answers": {"text": ["the lazy dog"], "answer_start": [31]},
        },
        {"question": "why?", "context": CONTEXT, "answers": []},
    ]
    found = read_questions(write(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert [q.answers for q in found] == [q.answers for q in read] and [q.id for q in found] == ["q1", "2"]


BAD: dict[str, tuple[str, Any, str]] = {
    "elsewhere": ("a.json", squad(qa(start=30)), "=30 of its context, where ' the lazy do' stands: it stands at 31"),
    "nowhere": ("a.json", squad(qa(text="a cat")), "it does not stand in the context at all"),
    "a start that is none": ("a.json", squad(qa(start="31")), "data[0].paragraphs[0].qas[0]: an answer is"),
    "no context": ("a.json", squad(qa(), context=3), "context is 3; a text is needed"),
    "no question": ("a.json", squad(qa(question=" ")), "question is ' '"),
    "impossible, says who": ("a.json", squad(qa(answers=[], is_impossible=False)), "is_impossible is false"),
    "answers that are none": ("a.json", squad(qa(answers="dog")), "answers are 'dog'"),
    "ids": ("a.json", squad(qa(), qa()), "the id 'q1' is that of line 1, too"),
    "no data": ("a.json", {"x": 1}, "a list 'data' is needed, as SQuAD's files have it"),
    "no paragraphs": ("a.json", {"data": [{}]}, "data[0]: a list 'paragraphs'"),
    "no JSON": ("a.json", '{\n"data": [}', "a.json:2: not JSON"),
    "no questions": ("a.json", {"data": []}, "no questions in it"),
    "a suffix": ("a.csv", "", "a file ending in .csv has no questions"),
    "a line": ("a.jsonl", '{"question": "q", "context": "c", "answers": []}\n[]', "a.jsonl:2: an object is needed"),
    "lists": (
        "a.jsonl",
        '{"question": "q", "context": "c", "answers": {"text": ["c"], "answer_start": []}}',
        "1 texts and 0 starts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named(tmp_path: Path, case: str) -> None:
    name, data, said = BAD[case]
    with pytest.raises(DataError) as caught:
        read_questions(write(tmp_path, name, data))
    assert said in str(caught.value)


def test_a_wrong_answer_is_named_with_its_line(tmp_path: Path) -> None:
    file = write(tmp_path, "a.json", json.dumps(squad(qa(1), qa(2, start=2)), indent=1))
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if '"q2"' in text)
    with pytest.raises(DataError, match=rf"a\.json:{line}: data\[0\].paragraphs\[0\].qas\[1\]: the answer"):
        read_questions(file)


def test_scores_of_the_official_script() -> None:
    assert normalized("The  Lazy, dog!") == "lazy dog"
    assert exact_match("A lazy dog", "the lazy dog.") == 1
    assert word_f1("lazy brown dog", "the lazy dog") == pytest.approx(2 * (2 / 3) * 1 / (2 / 3 + 1))
    assert word_f1("cat", "dog") == word_f1("", "dog") == word_f1("the", "dog") == 0
    assert word_f1("", "") == 1
    right = Question("a", "q", CONTEXT, (("the lazy dog", 31), ("dog", 40)), 1)
    none = Question("b", "q", CONTEXT, (), 2)
    assert answer_metrics(["Dog", ""], [right, none]) == {"f1": 1, "exact_match": 1}
    assert answer_metrics(["lazy", "fox"], [right, none]) == pytest.approx({"f1": (2 / 3) / 2, "exact_match": 0})
    with pytest.raises(InputError, match="do not fit"):
        answer_metrics([], [])


@pytest.mark.skipif(not SUBJQA.is_dir(), reason=f"SubjQA is absent ({SUBJQA}; set APPROXRT_SHARED)")
def test_subjqa() -> None:
    read = read_questions(SUBJQA / "dev.json")
    assert len(read) == 967 and 0 < sum(not q.answers for q in read) < 967
