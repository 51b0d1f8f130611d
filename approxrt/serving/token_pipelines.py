"""The pipelines of heads that read every token, in the manner of transformers': see `approxrt.serving.pipeline`."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from approxrt.errors import InputError, TruncationWarning
from approxrt.runtime.answering import AnswerOptions
from approxrt.runtime.model import Model
from approxrt.runtime.tagging import TagOptions
from approxrt.serving.originals import as_list, check_count, refuse

_NO_MATTER = frozenset({"token", "trust_remote_code", "num_workers", "use_fast"})
_OF_ANSWERS = frozenset({
    "top_k", "topk", "doc_stride", "max_answer_len", "max_seq_len", "max_question_len", "handle_impossible_answer",
    "align_to_words", "no_answer_threshold", "batch_size",
})  # fmt: skip
_OF_ENTITIES = frozenset({
    "aggregation_strategy", "ignore_labels", "stride", "is_split_into_words", "delimiter", "batch_size",
})  # fmt: skip


class TokenClassification:
    """Entities of texts; a text over the model's limit loses its end, unless a stride is given."""

    def __init__(self, model: Model, options: dict[str, Any] | None = None) -> None:
        self.model, self.options = model, options or {}
        self._checked({})

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """[{entity, score, index, word, start, end}] of one text, a list of those for a list of texts.

        inputs                a text, or a list or generator of texts; with is_split_into_words, lists of words
        aggregation_strategy  none, simple, first, average or max: with one of the latter, tokens are grouped
        ignore_labels         what is left out
        stride                tokens that windows of a long text share
        delimiter             what words are joined by
        """
        given = self._checked(options)
        if isinstance(inputs, types.GeneratorType | Iterator):
            return (self._answers(item, given) for item in inputs)
        if isinstance(inputs, str):
            return self._answers(inputs, given)
        items = as_list(inputs)
        return self._answers(items, given) if items else []

    def _checked(self, given: dict[str, Any]) -> TagOptions:
        options = self.options | given
        refuse({k: v for k, v in options.items() if k not in _OF_ENTITIES}, _NO_MATTER)
        check_count("batch_size", options.get("batch_size"))
        strategy, split = options.get("aggregation_strategy"), options.get("is_split_into_words", False)
        if type(split) is not bool:
            raise InputError(f"is_split_into_words is {split!r}; it must be True or False")
        ignored, delimiter = options.get("ignore_labels"), options.get("delimiter")
        return TagOptions(
            "none" if strategy is None else str(getattr(strategy, "value", strategy)).lower(),
            ("O",) if ignored is None else ignored,
            options.get("stride"),
            words=split,
            delimiter=" " if delimiter is None else delimiter,
        )

    def _answers(self, texts: Any, options: TagOptions) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            return self.model.tag(
                texts,
                options.aggregation,
                options.ignore_labels,
                options.stride,
                is_split_into_words=options.words,
                delimiter=options.delimiter,
            )


class QuestionAnswering:
    """Answers that stand in a context, as version 4 of transformers gave them."""

    def __init__(self, model: Model, options: dict[str, Any] | None = None) -> None:
        self.model, self.options = model, options or {}
        self._checked({})

    def __call__(self, *inputs: Any, question: Any = None, context: Any = None, **options: Any) -> Any:
        """{score, start, end, answer} of one question, a list of those for top_k over 1 or a list of questions.

        inputs            {question, context}, or a list of such objects; or `question` and `context` by name, texts or
                          lists of them
        top_k             how many answers, best first
        doc_stride, max_seq_len, max_question_len   how long contexts and questions are read
        max_answer_len, align_to_words              which answers are possible
        handle_impossible_answer                    "" is one, too
        """
        given = self._checked(options)
        questions, contexts, single = _examples(inputs, question, context)
        answerer = self.model.answerer
        prepared = answerer.prepare(questions, contexts, given)
        found = answerer.finish(prepared, self.model.forward_tokens(prepared.ids, prepared.type_ids))
        answers = [each[0] if len(each) == 1 else each for each in found]
        return answers[0] if single else answers

    def _checked(self, given: dict[str, Any]) -> AnswerOptions:
        options = self.options | given
        refuse({k: v for k, v in options.items() if k not in _OF_ANSWERS}, _NO_MATTER, padding=("do_not_pad", False))
        check_count("batch_size", options.get("batch_size"))
        if options.get("topk") is not None and options.get("top_k") not in (None, options["topk"]):
            raise InputError(f"topk is {options['topk']!r} and top_k {options['top_k']!r}: give one of them")
        for name in ("handle_impossible_answer", "align_to_words"):
            if options.get(name) is not None and type(options[name]) is not bool:
                raise InputError(f"{name} is {options[name]!r}; it must be True or False")
        names = {
            "top_k": "topk" if options.get("top_k") is None else "top_k", "stride": "doc_stride",
            "max_length": "max_seq_len",
        }  # fmt: skip
        plain = ("max_answer_len", "max_question_len", "handle_impossible_answer", "align_to_words",
                 "no_answer_threshold")  # fmt: skip
        wanted = {name: options.get(names.get(name, name)) for name in (*names, *plain)}
        length = wanted["max_length"]
        if type(length) is int and length > self.model.spec.max_length:
            raise InputError(f"max_seq_len is {length}; the artifact has positions for {self.model.spec.max_length}")
        return AnswerOptions(**{name: value for name, value in wanted.items() if value is not None})


def _examples(inputs: tuple[Any, ...], question: Any, context: Any) -> tuple[list[Any], list[Any], bool]:
    """(questions, contexts, whether it is one). Raises InputError."""
    if (question is None) != (context is None) or (question is None) == (not inputs) or len(inputs) > 1:
        raise InputError("give question=... and context=..., or one object {question, context}, or a list of those")
    if not inputs:
        if isinstance(question, str) and isinstance(context, str):
            return [question], [context], True
        questions = [question] if isinstance(question, str) else as_list(question, "question")
        contexts = [context] * len(questions) if isinstance(context, str) else as_list(context, "context")
        return questions, contexts, False
    single = isinstance(inputs[0], Mapping)
    items = [inputs[0]] if single else as_list(inputs[0])
    for i, item in enumerate(items):
        if not isinstance(item, Mapping) or set(item) != {"question", "context"}:
            shown = ", ".join(map(str, item)) if isinstance(item, Mapping) else f"{item!r:.80}"
            raise InputError(f"input {i} is or has {shown}; it must be an object with question and context alone")
    return [item["question"] for item in items], [item["context"] for item in items], single
