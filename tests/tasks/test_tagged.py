"""Files of words with tags: every layout gives the same sentences, and what is wrong is named with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from paths import SHARED

from approxrt.errors import DataError, InputError
from approxrt.tasks.entities import as_the_model_has, entity_metrics
from approxrt.tasks.tagged import kinds_of, read_tagged

BC5CDR = SHARED / "data" / "ner" / "bc5cdr"
WORDS = [("Ada", "Lovelace", "met", "Babbage", "."), ("Rain", "in", "York")]
IOB2 = [("B-PER", "I-PER", "O", "B-PER", "O"), ("O", "O", "B-LOC")]


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def columns(tags: list[tuple[str, ...]], between: str = "\t", more: str = "") -> str:
    return "\n\n".join(
        "\n".join(f"{w}{between}{more}{t}" for w, t in zip(*pair, strict=True))
        for pair in zip(WORDS, tags, strict=True)
    )


SCHEMES = {
    "iob2": IOB2,
    "iobes": [("B-PER", "E-PER", "O", "S-PER", "O"), ("O", "O", "S-LOC")],
    "bilou": [("B-PER", "L-PER", "O", "U-PER", "O"), ("O", "O", "U-LOC")],
    "io": [("I-PER", "I-PER", "O", "I-PER", "O"), ("O", "O", "I-LOC")],
    "names": [("PER", "PER", "O", "PER", "O"), ("O", "O", "LOC")],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_and_layouts(tmp_path: Path, scheme: str) -> None:
    tags = SCHEMES[scheme]
    as_json = "".join(json.dumps({"tokens": w, "ner_tags": t}) + "\n\n" for w, t in zip(WORDS, tags, strict=True))
    conll = "-DOCSTART- -X- O\n\n" + columns(tags, " ", "NN ")
    for name, text in (
        ("a.tsv", columns(tags)),
        ("b.tsv", "\ufeff" + columns(tags).replace("\n", "\r\n") + "\r\n\r\n"),
        ("a.txt", conll),
        ("a.jsonl", as_json),
    ):
        sentences = read_tagged(write(tmp_path, name, text))
        assert [s.words for s in sentences] == WORDS
        assert kinds_of([tag for s in sentences for tag in s.tags]) == ("PER", "LOC")
        # Entities are the same in every scheme, and so are their scores.
        found = entity_metrics([list(row) for row in IOB2], [list(s.tags) for s in sentences])
        assert found["f1"] == found["precision"] == found["recall"] == 1


def test_texts_with_spans(tmp_path: Path) -> None:
    text = "Ada Lovelace met Babbage."
    spans = [{"start": 17, "end": 24, "label": "PER"}, {"start": 0, "end": 12, "label": "PER"}]
    file = write(tmp_path, "a.jsonl", json.dumps({"text": text, "spans": spans}))
    (sentence,) = read_tagged(file)
    assert sentence.words == WORDS[0] and sentence.tags == IOB2[0] and sentence.line == 1
    # A span ends where it ends, within a word, too.
    inside = write(
        tmp_path, "b.jsonl", json.dumps({"text": "NaCl", "entities": [{"start": 0, "end": 2, "label": "X"}]})
    )
    assert read_tagged(inside)[0].words == ("Na", "Cl")


BAD = {
    "one column": ("a.tsv", "Ada\tB-PER\nLovelace\n", "a.tsv:2: 1 columns where 2 are needed"),
    "spaces for tabs": ("a.tsv", "Ada B-PER\n", "a.tsv:1: 1 columns where at least 2"),
    "columns differ": ("a.txt", "Ada NN B-PER\nmet O\n", "a.txt:2: 2 columns where 3 are needed"),
    "no tag": ("a.tsv", "Ada\tB-PER\nmet\t \n", "a.tsv:2: tag '' of the word 'met'"),
    "no word": ("a.tsv", "Ada\tB-PER\n\tO\n", "a.tsv:2: word '' is none"),
    "a scheme that is none": ("a.tsv", "Ada\tQ-PER\n", "a.tsv:1: tag 'Q-PER' is of no scheme"),
    "two schemes": ("a.tsv", "Ada\tB-PER\n\nYork\tLOC\n", "a.tsv:3: tag 'LOC' has no prefix, and 'B-PER' (line 1)"),
    "all outside": ("a.tsv", "Ada\tO\n", "all tags are O"),
    "empty": ("a.tsv", "\n\n", "no sentences"),
    "a suffix": ("a.pdf", "", "a file ending in .pdf has no tagged words"),
    "no JSON": ("a.jsonl", '{"words": ["a"], "tags": ["O"]}\n{', "a.jsonl:2: not JSON"),
    "lengths": ("a.jsonl", '{"words": ["a", "b"], "tags": ["O"]}', "a.jsonl:1: 2 words and 1 tags"),
    "numbers": ("a.jsonl", '{"words": ["a"], "tags": [3]}', "a.jsonl:1: tag 3 of the word 'a'"),
    "other fields": ("a.jsonl", '{"text": "a", "label": "O"}', "an object is needed with words or tokens"),
    "overlap": (
        "a.jsonl",
        '{"text": "Lovelace", "spans": [{"start": 0, "end": 6, "label": "A"}, {"start": 2, "end": 5, "label": "B"}]}',
        "a.jsonl:1: spans of 'A' and 'B' overlap in 'vel'",
    ),
    "outside the text": ("a.jsonl", '{"text": "Ada", "spans": [{"start": 1, "end": 9, "label": "A"}]}', "span 1 to 9"),
    "an empty span": ("a.jsonl", '{"text": "Ada", "spans": [{"start": 1, "end": 1, "label": "A"}]}', "span 1 to 1"),
    "blank": ("a.jsonl", '{"text": "A  B", "spans": [{"start": 1, "end": 3, "label": "A"}]}', "which has no word"),
    "no label": ("a.jsonl", '{"text": "A", "spans": [{"start": 0, "end": 1}]}', "two numbers and a name"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    name, text, said = BAD[case]
    with pytest.raises(DataError) as caught:
        read_tagged(write(tmp_path, name, text))
    assert said in str(caught.value)


def test_kinds_are_called_as_the_model_calls_them(tmp_path: Path) -> None:
    file = write(tmp_path, "a.tsv", "Ada\tB-Named Person\n\nYork\tB-LOC\n")
    sentences = read_tagged(file)
    labels = ("O", "B-named_person", "I-named_person", "B-loc")
    assert as_the_model_has(sentences, labels, file) == [["B-named_person"], ["B-loc"]]
    with pytest.raises(DataError, match=r"a\.tsv:3: an entity is called 'LOC'; the model's are PER"):
        as_the_model_has(sentences, ("O", "B-PER", "I-Named-Person"), file)


def test_entity_scores_by_their_definition() -> None:
    """2 entities of 3 are found whole, 1 of 3 that are named is wrong, and one word of a third is missing."""
    truth = [["B-A", "I-A", "O", "B-B"], ["O", "B-A", "I-A"]]
    found = [["B-A", "I-A", "O", "B-B"], ["O", "B-A", "O"]]
    scores = entity_metrics(found, truth)
    assert scores == pytest.approx({"f1": 2 / 3, "precision": 2 / 3, "recall": 2 / 3, "accuracy": 6 / 7})
    assert entity_metrics([["O", "O"]], [["B-A", "O"]])["f1"] == 0
    with pytest.raises(InputError, match="do not fit"):
        entity_metrics([["O"]], [["O", "O"]])


@pytest.mark.skipif(not BC5CDR.is_dir(), reason=f"BC5CDR is absent ({BC5CDR}; set APPROXRT_SHARED)")
def test_bc5cdr() -> None:
    """The published numbers of BioCreative V's task: chemicals and diseases, in IOB2."""
    sentences = read_tagged(BC5CDR / "dev.tsv")
    tags = [tag for s in sentences for tag in s.tags]
    assert len(sentences) > 4000 and set(tags) == {"O", "B-Chemical", "I-Chemical", "B-Disease", "I-Disease"}
    assert set(kinds_of(tags)) == {"Chemical", "Disease"}
