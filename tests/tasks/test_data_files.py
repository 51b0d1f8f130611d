"""Data files as people have them: read as they were meant, and refused with the mend where they mean two things."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from approxrt.errors import DataError, InputError
from approxrt.tasks.format import DataFormat
from approxrt.tasks.readers import find_split, read_task, read_texts

STARS = ("1", "2", "3", "4", "5")


def write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode())
    return path


def read(folder: Path, name: str, content: str, **options: object) -> tuple[list[object], list[float], object]:
    """(texts, labels, label names) of a file of task csv with that content."""
    data = read_task("csv", write(folder, name, content), **options)  # type: ignore[arg-type]
    return data.texts, data.labels.tolist(), data.label_names


# -- cells ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "place", "mend"),
    [
        ("a.csv", "text,label\nhello, world,pos\nbad,neg\n", ":2: 3 cells where the header has 2", "quotation marks"),
        ("a.csv", "text,label\nbad,neg\nfine,pos,\n", ":3: 3 cells", "quotation marks"),
        ("a.csv", "text,label,note\nfine,pos\n", ":2: 2 cells where the header has 3", "write the missing"),
        ("a.csv", 'text,label\n"two\nlines",pos\nx,y,z\n', ":4: 3 cells", "quotation marks"),
        ("a.tsv", "text\tlabel\na\tb\tpos\n", ":2: 3 cells", "text with a tab"),
        ("a.csv", 'text,label\n"open,pos\nx,neg\n', ":2: a cell in quotation marks does not end", "twice"),
        ("a.tsv", 'text\tlabel\n"so" he said\tpos\n', ":2: a cell in quotation marks", "--no-quotes"),
        ("a.csv", "text,text,label\na,b,c\n", ":1: the header has 2 columns called 'text'", "rename"),
        ("a.csv", "Text,TEXT,label\na,b,c\n", ":1: the header has 2 columns called 'text'", "rename"),
        ("a.csv", "text;label\na;b\n", ":1: task csv needs the columns 'text', 'label'", "--delimiter semicolon"),
        ("a.csv", "review,stars\na,b\n", ":1: task csv needs the columns", "--text-column"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n["a"]\n', ":2: a JSON object is needed", "such as"),
    ],
)
def test_rows_that_are_cut_wrongly_are_refused(tmp_path: Path, name: str, content: str, place: str, mend: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, name, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}{place}") and mend in message, message


def test_glue_quotes_nothing_and_other_tsv_files_do(tmp_path: Path) -> None:
    content = 'text\tlabel\n"he said ""hi"""\tpositive\n"a\tb"\tnegative\n'
    assert read(tmp_path, "a.tsv", content)[0] == ['he said "hi"', "a\tb"]
    glue = write(tmp_path, "b.tsv", 'sentence\tlabel\n"he said ""hi"""\t1\n" the rest\t0\n')
    assert read_task("sst2", glue).texts == ['"he said ""hi"""', '" the rest']
    quoted = write(tmp_path, "c.tsv", content)
    assert read_task("sst2", quoted, form=DataFormat(quotes=True)).texts == ['he said "hi"', "a\tb"]
    plain = read_task("csv", write(tmp_path, "d.tsv", 'text\tlabel\n"so" he said\tx\n'), form=DataFormat(quotes=False))
    assert plain.texts == ['"so" he said']
    assert read_texts(write(tmp_path, "e.tsv", 'text\n"he said ""hi"""\n')) == ['he said "hi"']


def test_long_cells(tmp_path: Path) -> None:
    text = "word " * 60_000
    assert read(tmp_path, "a.csv", f"text,label\n{text},x\nb,y\n")[0] == [text.strip(), "b"]
    assert read(tmp_path, "b.csv", f'text,label\n"{text}",x\nb,y\n')[0] == [text.strip(), "b"]
    assert read(tmp_path, "c.tsv", f"text\tlabel\n{text}\tx\nb\ty\n")[0] == [text.strip(), "b"]


@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")).map(str.strip), min_size=1),
    st.sampled_from([",", "\t", ";"]),
)
def test_what_the_csv_module_writes_is_read(tmp_path: Path, texts: list[str], delimiter: str) -> None:
    path = tmp_path / "a.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows([["label", "text"], *(["x", text] for text in texts)])
    assert read_task("csv", path, form=DataFormat(delimiter=delimiter)).texts == texts


def test_what_is_stripped(tmp_path: Path) -> None:
    content = "\ufeff text ,label \n\n  a b ,\tx \n\n c,y\n"
    want = (["a b", "c"], [0, 1], ("x", "y"))
    for end in ("\n", "\r\n", "\r"):
        assert read(tmp_path, "a.csv", content.replace("\n", end)) == want
    assert read(tmp_path, "a.tsv", content.replace("\t", "").replace(",", "\t").replace("\n", "\r")) == want
    rows = json.dumps({"text": " a ", "label": " x "}) + "\n\n" + json.dumps({"text": "b", "label": "y"})
    assert read(tmp_path, "a.jsonl", rows) == ([" a ", "b"], [0, 1], ("x", "y"))


# -- columns ------------------------------------------------------------------------


def test_columns_by_name(tmp_path: Path) -> None:
    rows = "id;Review;Other;Stars\n7;a;c;x\n8;b;d;y\n"
    form = DataFormat(delimiter=";", text_column="Review", label_column="stars")
    assert read(tmp_path, "a.csv", rows, form=form) == (["a", "b"], [0, 1], ("x", "y"))
    form = DataFormat(delimiter="semicolon", text_column="review", pair_column="Other", label_column="Stars")
    assert read(tmp_path, "a.csv", rows, form=form)[0] == [("a", "c"), ("b", "d")]
    with pytest.raises(DataError, match=r"missing: 'Title'; the header has: 'id', 'Review', 'Other', 'Stars'"):
        read(tmp_path, "a.csv", rows, form=DataFormat(delimiter=";", text_column="Title", label_column="Stars"))
    objects = '{"review": "a", "stars": "x"}\n{"review": "b", "stars": "y"}\n'
    form = DataFormat(text_column="review", label_column="stars")
    assert read(tmp_path, "a.jsonl", objects, form=form)[0] == ["a", "b"]
    cola = write(tmp_path, "a.tsv", "label\tsentence\n1\tgood\n")
    assert read_task("cola", cola, form=DataFormat(text_column="sentence")).texts == ["good"]
    assert read_texts(write(tmp_path, "e.csv", "sentence\na\nb\n"), DataFormat(text_column="sentence")) == ["a", "b"]
    # Exact names come before others.
    assert read(tmp_path, "b.csv", "Text,text,LABEL\nno,yes,x\nno,also,y\n")[0] == ["yes", "also"]


def test_suffixes_and_names_in_capitals(tmp_path: Path) -> None:
    path = write(tmp_path, "TRAIN.CSV", "Text,Label\na,x\nb,y\n")
    assert find_split(tmp_path, "train") == path
    assert read_task("csv", path).texts == ["a", "b"]
    assert read_task("csv", write(tmp_path, "a.TSV", "TEXT\tLABEL\na\tx\n")).texts == ["a"]
    assert read_task("csv", write(tmp_path, "a.JsonL", '{"Text": "a", "LABEL": "x"}\n')).texts == ["a"]
    assert read_texts(write(tmp_path, "a.TXT", "a\n b\n")) == ["a", "b"]
    write(tmp_path, "train.csv", "text,label\n")
    with pytest.raises(DataError, match=r"more than one train file: TRAIN.CSV, train.csv"):
        find_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delimiter": ""}, "delimiter is ''"),
        ({"delimiter": "ab"}, "delimiter is 'ab'"),
        ({"delimiter": '"'}, "quotation mark"),
        ({"text_column": " "}, "text_column is ' '"),
        ({"text_column": "a", "label_column": "a"}, "text_column and label_column are both 'a'"),
    ],
)
def test_formats_that_cannot_be(options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DataFormat(**options)  # type: ignore[arg-type]


def test_formats_that_do_not_fit(tmp_path: Path) -> None:
    path = write(tmp_path, "a.csv", "text,label\na,x\nb,y\n")
    with pytest.raises(InputError, match="task sst2 takes single texts"):
        read_task("sst2", path, form=DataFormat(pair_column="b"))
    with pytest.raises(InputError, match="task sst2 has classes"):
        read_task("sst2", path, form=DataFormat(regression=True))
    with pytest.raises(InputError, match="task stsb has scores"):
        read_task("stsb", path, form=DataFormat(regression=False))
    with pytest.raises(InputError, match="the model is for classes"):
        read_task("csv", path, ("x", "y"), False, DataFormat(regression=True))
    with pytest.raises(InputError, match=r"is \.jsonl, which has none"):
        read_task("csv", write(tmp_path, "a.jsonl", "{}"), form=DataFormat(delimiter=";"))
    with pytest.raises(InputError, match="plain text, one a line"):
        read_texts(write(tmp_path, "a.txt", "x"), DataFormat(text_column="a"))
    with pytest.raises(InputError, match="texts without labels"):
        read_texts(path, DataFormat(label_column="a"))


# -- labels -------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["", " ", "nan", "NaN", "<NA>"])
def test_missing_labels_are_no_class(tmp_path: Path, label: str) -> None:
    with pytest.raises(DataError, match=r"a\.csv:3: the label is .*\(1 more rows have none\): write one, or remove"):
        read(tmp_path, "a.csv", f"text,label\na,x\nb,{label}\nc,y\nd,{label}\n")
    if label.strip():
        # A model that has such a class says so.
        assert read(tmp_path, "b.csv", f"text,label\na,{label}\n", label_names=("x", label))[1] == [1]
    with pytest.raises(DataError, match=r"c\.jsonl:1: "):
        read(tmp_path, "c.jsonl", json.dumps({"text": "a", "label": float("nan")}))


def test_whole_numbers_are_classes_however_they_are_written(tmp_path: Path) -> None:
    assert read(tmp_path, "a.csv", "text,label\na,1.0\nb,0.0\nc,1.0\n") == (["a", "b", "c"], [1, 0, 1], ("0", "1"))
    assert read(tmp_path, "b.csv", "text,label\na,1.0\nb,0\nc,1\n")[1:] == ([1, 0, 1], ("0", "1"))
    assert read(tmp_path, "c.csv", "text,label\na,1.0\nb,0.5\n")[1:] == ([1.0, 0.5], None)
    whole = "text,label\na,1.0\nb,0\n"
    assert read(tmp_path, "d.csv", whole, form=DataFormat(regression=True))[1:] == ([1.0, 0.0], None)
    fractions = "text,label\na,1.5\nb,2.5\n"
    assert read(tmp_path, "e.csv", fractions, form=DataFormat(regression=False))[1:] == ([0, 1], ("1.5", "2.5"))
    rows = '{"text": "a", "label": 1.0}\n{"text": "b", "label": 0}\n{"text": "c", "label": "1"}\n'
    assert read(tmp_path, "f.jsonl", rows)[1:] == ([1, 0, 1], ("0", "1"))
    # A model's classes, by number and by a name that is one.
    assert read(tmp_path, "g.csv", whole, label_names=("LABEL_0", "LABEL_1"))[1] == [1, 0]
    assert read(tmp_path, "h.csv", "text,label\na,5.0\nb,1\n", label_names=STARS)[1] == [4, 0]
    assert read(tmp_path, "i.csv", "text,label\na,1\nb,0\n", label_names=("1.0", "0.0"))[1] == [0, 1]
    assert read_task("sst2", write(tmp_path, "j.csv", whole)).labels.tolist() == [1, 0]


def test_scores_among_words_are_refused(tmp_path: Path) -> None:
    content = "text,label\na,1\nb,0.5\nc,n/a\n"
    with pytest.raises(
        DataError, match=r"a\.csv:4: label 'n/a' is not a finite number, and '0.5' \(line 3\) is a score"
    ):
        read(tmp_path, "a.csv", content)
    assert read(tmp_path, "b.csv", content, form=DataFormat(regression=False))[2] == ("0.5", "1", "n/a")


@pytest.mark.parametrize(("first", "second"), [("1", "01"), ("1", "+1.0"), ("Pos", "pos")])
def test_one_class_in_two_spellings_is_refused(tmp_path: Path, first: str, second: str) -> None:
    with pytest.raises(DataError, match=r"a\.csv:4: label .* and label .* \(line 2\) are .*: write them alike"):
        read(tmp_path, "a.csv", f"text,label\na,{first}\nb,2\nc,{second}\n")


def test_a_label_never_means_two_classes(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"a\.csv:2: unknown label '0'; known: 1, 2, 3, 4, 5: where names are numbers, write names"
    ):
        read(tmp_path, "a.csv", "text,label\na,0\nb,1\nc,4\n", label_names=STARS)
    assert read(tmp_path, "b.csv", "text,label\na,1\nb,5\n", label_names=STARS)[1] == [0, 4]
    # Names that are the numbers of their own classes, and of others.
    assert read(tmp_path, "c.csv", "text,label\na,0\nb,1\n", label_names=("0", "1"))[1] == [0, 1]
    assert read(tmp_path, "d.csv", "text,label\na,0\nb,1\n", label_names=("1", "0"))[1] == [1, 0]
    with pytest.raises(InputError, match="two classes of the model are called 'x'"):
        read(tmp_path, "e.csv", "text,label\na,x\n", label_names=("x", "x"))


@pytest.mark.parametrize("names", [("Not-Entailment", "ENTAILMENT"), ("not entailment", "entailment")])
def test_a_tasks_names_in_other_writings(tmp_path: Path, names: tuple[str, str]) -> None:
    path = write(tmp_path, "a.csv", "text,text_pair,label\na,b,entailment\nc,d,not_entailment\n")
    assert read_task("rte", path, names).labels.tolist() == [1, 0]
    for unclear in (("yes", "no"), ("LABEL_1", "LABEL_0"), ("1", "0")):
        with pytest.raises(InputError, match="do not say which is which"):
            read_task("rte", path, unclear)


def test_scores_are_plain_numbers(tmp_path: Path) -> None:
    for label in ("1_000", "1,5", "inf", "high"):
        with pytest.raises(DataError, match=r"a\.csv:2: label .* is not a finite number"):
            read(tmp_path, "a.csv", f'text,label\na,"{label}"\n', regression=True)
