"""What models whose head reads every token answer in the hub's form: entities of texts, and answers in contexts.

The bodies are those of `huggingface_hub`'s client: for token classification a text or a list of texts, for question
answering {"question": ..., "context": ...} or a list of such objects.
"""

from __future__ import annotations

from typing import Any

from approxrt.runtime.answering import AnswerOptions
from approxrt.runtime.tagging import TagOptions
from approxrt.serving.errors import RequestError
from approxrt.serving.registry import Served
from approxrt.serving.routes.body import refuse_other_fields

OF_ENTITIES = frozenset({"aggregation_strategy", "ignore_labels", "stride", "truncate"})
OF_ANSWERS = frozenset({
    "align_to_words", "doc_stride", "handle_impossible_answer", "max_answer_len", "max_question_len", "max_seq_len",
    "top_k",
})  # fmt: skip
_FIELDS = frozenset({"question", "context"})


def asks_a_question(inputs: Any) -> bool:
    """Tell whether inputs are a question with its context, or a list of those."""
    items = inputs if isinstance(inputs, list) and inputs else [inputs]
    return all(isinstance(item, dict) and "question" in item for item in items)


async def entities(served: Served, inputs: Any, given: dict[str, Any]) -> Any:
    """[{entity_group, score, word, start, end}] of a text, a list of those of a list. Raises RequestError."""
    if isinstance(inputs, str):
        texts = [inputs]
    elif isinstance(inputs, list) and inputs and all(isinstance(item, str) for item in inputs):
        texts = inputs
    else:
        raise RequestError(
            f"model {served.name!r} is for token_classification: inputs must be a text or a list of texts",
            param="inputs",
        )
    options = TagOptions(
        given.get("aggregation_strategy") or "simple",
        given["ignore_labels"] if given.get("ignore_labels") is not None else ("O",),
        given.get("stride"),
        truncate=given.get("truncate") is not False,
    )
    found = await served.tag(texts, options)
    return found[0] if isinstance(inputs, str) else found


async def answers(served: Served, inputs: Any, given: dict[str, Any]) -> Any:
    """{score, start, end, answer} of a question, a list for top_k over 1 or a list of questions. Raises
    RequestError."""
    if not asks_a_question(inputs):
        raise RequestError(
            f"model {served.name!r} is for question_answering: inputs must be an object with a text under 'question' "
            "and one under 'context', or a list of such objects",
            param="inputs",
        )
    items = inputs if isinstance(inputs, list) else [inputs]
    for i, item in enumerate(items):
        place = f"inputs[{i}]" if isinstance(inputs, list) else "inputs"
        refuse_other_fields(item, _FIELDS, f"{place}.")
        if not all(isinstance(item.get(name), str) for name in _FIELDS):
            raise RequestError(f"{place} must have a text under 'question' and one under 'context'", param="inputs")
    names = {"doc_stride": "stride", "max_seq_len": "max_length"}
    options = AnswerOptions(**{names.get(name, name): value for name, value in given.items() if value is not None})
    found = await served.answer([item["question"] for item in items], [item["context"] for item in items], options)
    each = [answer[0] if options.top_k == 1 else answer for answer in found]
    return each if isinstance(inputs, list) else each[0]
