"""`answer` beside the algorithm of transformers' question-answering pipeline (version 4.57), written down anew here.

transformers 5 has the models and no pipeline. `published` is that pipeline's own order of steps, in its own
arithmetic, on logits of transformers' model; scores then differ by float32 sums in another order (below 2e-5 a logit).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from families import build_checkpoint
from originals import converted

import approxrt
from approxrt.errors import InputError, UnsupportedTaskError
from approxrt.runtime.encoder_model import EncoderModel

transformers = pytest.importorskip("transformers", reason="compares with transformers")
torch = pytest.importorskip("torch", reason="compares with transformers, which needs torch")

CLOSE = 1e-4
FAMILIES = ("bert", "distilbert", "roberta", "electra", "xlm-roberta")
CONTEXT = (
    "She sold seashells; he bought 42 of them, and paid 3.50 for each! An honest account of work, weather and the "
    "price of bread in a small town. The quick brown fox jumps over the lazy dog while the rain falls on the plain."
)
QUESTIONS = ["what jumps over the dog", "who sold seashells?", "price"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("answerers")
    for family in FAMILIES:
        converted(build_checkpoint(family, root / family, head="QuestionAnswering", num_labels=2, positions=96, seed=3))
    return root


def ours(folder: Path, family: str) -> EncoderModel:
    model = approxrt.load(folder / f"{family}.artifact", threads=1)
    assert isinstance(model, EncoderModel)
    return model


class Published:
    """QuestionAnsweringPipeline's preprocess, forward and postprocess, for a tokenizer that pads to the right."""

    def __init__(self, folder: Path, family: str) -> None:
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(folder / family)
        load = transformers.AutoModelForQuestionAnswering.from_pretrained
        self.model = load(folder / family, dtype=torch.float32).eval()

    def __call__(
        self,
        question: str,
        context: str,
        top_k: int = 1,
        doc_stride: int | None = None,
        max_answer_len: int = 15,
        max_seq_len: int | None = None,
        handle_impossible_answer: bool = False,
        align_to_words: bool = True,
    ) -> Any:
        max_seq_len = min(self.tokenizer.model_max_length, 384) if max_seq_len is None else max_seq_len
        doc_stride = min(max_seq_len // 2, 128) if doc_stride is None else doc_stride
        encoded = self.tokenizer(
            text=question,
            text_pair=context,
            truncation="only_second",
            max_length=max_seq_len,
            stride=doc_stride,
            return_token_type_ids=True,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        answers: list[dict] = []
        min_null_score = 1000000.0
        for i, ids in enumerate(encoded["input_ids"]):
            p_mask = [tok != 1 for tok in encoded.sequence_ids(i)]
            for at in np.nonzero(np.array(ids) == self.tokenizer.cls_token_id)[0]:
                p_mask[at] = False
            inputs = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
            if getattr(self.model.config, "type_vocab_size", 1) > 1:
                inputs["token_type_ids"] = torch.tensor([encoded["token_type_ids"][i]])
            with torch.no_grad():
                out = self.model(**inputs)
            undesired = np.array(p_mask)
            start = np.where(undesired, -10000.0, out.start_logits.numpy())
            end = np.where(undesired, -10000.0, out.end_logits.numpy())
            start = np.exp(start - start.max(axis=-1, keepdims=True))
            start = start / start.sum()
            end = np.exp(end - end.max(axis=-1, keepdims=True))
            end = end / end.sum()
            if handle_impossible_answer:
                min_null_score = min(min_null_score, (start[0, 0] * end[0, 0]).item())
            start[0, 0] = end[0, 0] = 0.0
            outer = np.matmul(np.expand_dims(start, -1), np.expand_dims(end, 1))
            candidates = np.tril(np.triu(outer), max_answer_len - 1)
            flat = candidates.flatten()
            wanted = top_k * 2 + 10 if align_to_words else top_k
            order = np.argsort(-flat)[:wanted]
            starts, ends = np.unravel_index(order, candidates.shape)[1:]
            desired = np.isin(starts, (~undesired).nonzero()) & np.isin(ends, (~undesired).nonzero())
            enc = encoded[i]
            for s, e in zip(starts[desired].tolist(), ends[desired].tolist(), strict=True):
                first, last = enc.offsets[s][0], enc.offsets[e][1]
                if align_to_words:
                    first = enc.word_to_chars(enc.token_to_word(s), sequence_index=1)[0]
                    last = enc.word_to_chars(enc.token_to_word(e), sequence_index=1)[1]
                target = context[first:last]
                known = next((a for a in answers if a["answer"].lower() == target.lower()), None)
                score = candidates[0, s, e].item()
                if known:
                    known["score"] += score
                else:
                    answers.append({"score": score, "start": first, "end": last, "answer": target})
        if handle_impossible_answer:
            answers.append({"score": min_null_score, "start": 0, "end": 0, "answer": ""})
        answers = sorted(answers, key=lambda a: a["score"], reverse=True)[:top_k]
        return answers[0] if len(answers) == 1 else answers


def assert_same(got: Any, want: Any) -> None:
    if isinstance(want, list):
        assert len(got) == len(want)
        for a, b in zip(got, want, strict=True):
            assert_same(a, b)
        return
    assert list(got) == list(want)
    assert {k: v for k, v in got.items() if k != "score"} == {k: v for k, v in want.items() if k != "score"}
    assert abs(got["score"] - want["score"]) <= CLOSE


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_published_algorithm(folder: Path, family: str) -> None:
    model, pipe = ours(folder, family), Published(folder, family)
    for question in QUESTIONS:
        assert_same(model.answer(question, CONTEXT), pipe(question, CONTEXT))
        assert_same(model.answer(question, CONTEXT[:60], top_k=5), pipe(question, CONTEXT[:60], top_k=5))
        for null in (False, True):
            got = model.answer(question, CONTEXT, 4, 6, 60, 20, handle_impossible_answer=null, align_to_words=False)
            want = pipe(question, CONTEXT, 4, 20, 6, 60, null, False)
            assert_same(got, want)
            got = model.answer(question, CONTEXT * 3, 3, stride=30, handle_impossible_answer=null)
            assert_same(got, pipe(question, CONTEXT * 3, 3, 30, handle_impossible_answer=null))
    batch = model.answer(QUESTIONS, CONTEXT)
    assert batch == [model.answer(question, CONTEXT) for question in QUESTIONS]
    assert all(CONTEXT[a["start"] : a["end"]] == a["answer"] for a in batch)


def test_no_answer_and_its_threshold(folder: Path) -> None:
    model = ours(folder, "bert")
    context = CONTEXT[:60]
    found = model.answer(QUESTIONS[0], context, top_k=1000, handle_impossible_answer=True)
    null = next(a for a in found if a["answer"] == "")
    best = model.answer(QUESTIONS[0], context)
    gap = null["score"] - best["score"]
    for threshold, first in ((gap - 1e-4, ""), (gap + 1e-4, best["answer"])):
        got = model.answer(QUESTIONS[0], context, handle_impossible_answer=True, no_answer_threshold=threshold)
        assert got["answer"] == first
    with pytest.raises(InputError, match=r"no_answer_threshold is 0\.5 without handle_impossible_answer"):
        model.answer("who", CONTEXT, no_answer_threshold=0.5)


def test_a_question_that_is_cut(folder: Path) -> None:
    model = ours(folder, "bert")
    assert model.answer("price of bread", CONTEXT, max_question_len=1) == model.answer("price", CONTEXT)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"question": ""}, "question 0 is empty"),
        ({"context": " \n"}, "context 0 is empty"),
        ({"question": ["a", "b"], "context": ["c"]}, "2 questions and 1 contexts"),
        ({"question": [], "context": []}, "batch is empty"),
        ({"question": 3}, "question must be a str or a list of those, got int"),
        ({"context": ["a", 2], "question": ["a", "b"]}, "context 1 must be a str, got int"),
        ({"top_k": 0}, "top_k is 0"),
        ({"max_answer_len": True}, "max_answer_len is True"),
        ({"max_length": 97}, "max_length is 97; it must be a number between 1 and 96"),
        ({"stride": 96}, "stride is 96; it must be a number between 0 and 95"),
        ({"question": "price " * 60}, "question 0 has 60 tokens; with 3 special ones it leaves 33 of max_length=96"),
    ],
)
def test_what_cannot_be_answered_is_named(folder: Path, options: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        ours(folder, "bert").answer(**{"question": "who", "context": CONTEXT, **options})
    assert said in str(caught.value)


def test_other_methods_say_what_the_model_does(folder: Path) -> None:
    model = ours(folder, "bert")
    with pytest.raises(UnsupportedTaskError, match="encoder for question_answering; use answer"):
        model.tag("good")
    assert model.token_logits(("who", "she did"))[0].shape[1] == 2
