"""A callable in the manner of transformers' pipelines: `pipeline("text-classification", ARTIFACT)("a text")`.

It takes transformers' arguments, by position and by name. One that an artifact cannot obey is an InputError that names
it; those of where to download a model from, of batches and of workers change no result.
"""

from __future__ import annotations

import os
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from approxrt.errors import InputError
from approxrt.runtime.activation import apply_activation
from approxrt.runtime.model import Model
from approxrt.serving.originals import as_list, check_count, open_model, refuse, require_torch
from approxrt.serving.token_pipelines import QuestionAnswering, TokenClassification

CLASSIFICATION = ("text-classification", "sentiment-analysis")
TOKEN_CLASSIFICATION = ("token-classification", "ner")
TASKS = (*CLASSIFICATION, "feature-extraction", *TOKEN_CLASSIFICATION, "question-answering")
# The pipelines' tasks of each of an artifact's; the others classify texts.
_TASKS_OF = {
    "embedding": ("feature-extraction",),
    "token_classification": (*TOKEN_CLASSIFICATION, "feature-extraction"),
    "question_answering": ("question-answering", "feature-extraction"),
}
FUNCTIONS = ("none", "sigmoid", "softmax")
_ABSENT: Any = object()
# Who asks, and how the original would go about it: no answer depends on them.
_NONE: frozenset[str] = frozenset()
_NO_MATTER = frozenset({"token", "trust_remote_code", "num_workers", "use_fast"})
# Padding is never computed; the tensors are the tokenizer's own.
_NEUTRAL_TOKENIZING: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": (True,),
    "padding": (True, False, "longest", "max_length", "do_not_pad"),
    "return_tensors": ("pt", "np"),
    "stride": (0,),
}
_CUTS: dict[Any, bool] = {True: True, "longest_first": True, False: False, "do_not_truncate": False}


def pipeline(
    task: str | None = None,
    model: str | os.PathLike[str] | Model | None = None,
    config: Any = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    video_processor: Any = None,
    processor: Any = None,
    revision: str | None = None,
    use_fast: bool = True,
    token: Any = None,
    device: Any = None,
    device_map: Any = None,
    dtype: Any = "auto",
    trust_remote_code: bool | None = None,
    model_kwargs: dict[str, Any] | None = None,
    pipeline_class: Any = None,
    *,
    threads: int | None = None,
    **options: Any,
) -> Callable[..., Any]:
    """A callable for `task`, one of text-classification (sentiment-analysis), token-classification (ner),
    question-answering and feature-extraction; by default the one that the artifact is for.

    Texts in, what transformers' pipeline of that task returns out. Texts over the model's limit are cut, unless
    `truncation` is False. `options` are the call's own, for every call: top_k, function_to_apply, truncation,
    max_length, batch_size, ... Raises InputError for another task, or one that the artifact is not for, and for what an
    artifact cannot obey.
    """
    if task is not None and task not in TASKS:
        raise InputError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
    refuse(
        {
            "config": config,
            "feature_extractor": feature_extractor,
            "image_processor": image_processor,
            "video_processor": video_processor,
            "processor": processor,
            "revision": revision,
            "device_map": device_map,
            "dtype": _dtype(dtype),
            "torch_dtype": _dtype(options.pop("torch_dtype", None)),
            "model_kwargs": model_kwargs,
            "pipeline_class": pipeline_class,
            "framework": options.pop("framework", None),
            "binary_output": options.pop("binary_output", None),
        },
        dtype=("auto", "float32"),
        torch_dtype=("auto", "float32"),
        framework=("pt",),
        binary_output=(False,),
    )
    loaded = open_model(model, device, threads)
    if tokenizer is not None and not _is_own(tokenizer, loaded):
        raise InputError(f"tokenizer={tokenizer!r:.80}: an artifact has its own: leave it out")
    possible = _TASKS_OF.get(loaded.spec.task_type, (*CLASSIFICATION, "feature-extraction"))
    task = possible[0] if task is None else task
    if task not in possible:
        what = "has no labels" if not loaded.labels else f"is for {loaded.spec.task_type}"
        raise InputError(f"{str(loaded.path)!r} {what}: use task {' or '.join(possible)}")
    if task in TOKEN_CLASSIFICATION:
        return TokenClassification(loaded, options)
    if task == "question-answering":
        return QuestionAnswering(loaded, options)
    return FeatureExtraction(loaded, options) if task == "feature-extraction" else TextClassification(loaded, options)


def _dtype(value: Any) -> str | None:
    """torch.float32 and "float32" are the same."""
    return None if value is None else str(value).removeprefix("torch.")


def _is_own(tokenizer: Any, model: Model) -> bool:
    """Return whether a tokenizer is named by the artifact's own folder."""
    return isinstance(tokenizer, str | os.PathLike) and os.path.realpath(tokenizer) == os.path.realpath(model.path)


class _Pipeline(ABC):
    """Options of every call under those of one, and inputs one by one or many."""

    def __init__(self, model: Model, options: dict[str, Any] | None = None) -> None:
        self.model, self.options = model, options or {}
        self._checked({})

    @abstractmethod
    def _checked(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return all options of a call. Raises InputError for one that cannot be obeyed."""

    @abstractmethod
    def _answers(self, texts: list[Any], options: dict[str, Any]) -> list[Any]:
        """Return an answer for each text."""

    def _run(self, inputs: Any, options: dict[str, Any]) -> Any:
        """A list for a list, a generator for a generator, one answer for all else."""
        if isinstance(inputs, types.GeneratorType | Iterator):
            return (self._answers([_text(item, i)], options)[0] for i, item in enumerate(inputs))
        if isinstance(inputs, str | Mapping):
            return self._answers([_text(inputs, 0)], options)[0]
        items = as_list(inputs)
        return self._answers([_text(item, i) for i, item in enumerate(items)], options) if items else []

    def _encode(self, texts: list[Any], options: dict[str, Any]) -> Any:
        """Token ids; max_length alone asks for a cut, too."""
        cut, length = options.get("truncation"), options.get("max_length")
        try:
            truncate = True if cut is None else _CUTS[cut]
        except (KeyError, TypeError):
            shown = ", ".join(repr(value) for value in _CUTS)
            raise InputError(f"truncation is {cut!r}; it must be one of {shown}") from None
        check_count("max_length", length)
        limit = self.model.spec.max_length
        # A limit beyond the artifact's own cuts nothing that it would not cut itself, but where the original reads on.
        if length is not None and length > limit:
            raise InputError(f"max_length is {length}; the artifact has positions for {limit} tokens")
        return self.model.encode(texts, truncate, max_length=length if truncate else None)


class TextClassification(_Pipeline):
    """See `pipeline`."""

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """[{label, score}] of one text; {label, score} of each of a list or of an object {text, text_pair}.

        inputs              a text, {text, text_pair}, or a list or generator of either
        top_k               how many labels, best first, None for all: then each text has a list of them
        function_to_apply   softmax, sigmoid or none; default: what the checkpoint has transformers apply
        truncation, max_length   how texts are cut
        """
        answers = self._run(inputs, self._checked(options))
        # transformers gives one text's best label as a list of one.
        return [answers] if isinstance(inputs, str) and "top_k" not in options else answers

    def _checked(self, given: dict[str, Any]) -> dict[str, Any]:
        options = self.options | given
        own = frozenset({"top_k", "function_to_apply", "truncation", "max_length", "batch_size"})
        refuse({k: v for k, v in options.items() if k not in own}, _NO_MATTER, **_NEUTRAL_TOKENIZING)
        check_count("batch_size", options.get("batch_size"))
        wanted = options.get("top_k", 1)
        if wanted is not None and (type(wanted) is not int or wanted < 1):
            raise InputError(f"top_k is {wanted!r}; it must be a number of at least 1, or None for all labels")
        function = options.get("function_to_apply")
        name = getattr(function, "name", function)  # transformers' own enumeration, too
        if function is not None and (not isinstance(name, str) or name.lower() not in FUNCTIONS):
            raise InputError(f"function_to_apply is {function!r}; it must be one of {', '.join(FUNCTIONS)}")
        return options | ({"function_to_apply": str(name).lower()} if function is not None else {})

    def _answers(self, texts: list[Any], options: dict[str, Any]) -> list[Any]:
        encoded = self._encode(texts, options)
        logits = self.model.forward_ids(encoded.ids, encoded.type_ids, "logits")
        scores = apply_activation(logits, options.get("function_to_apply") or self._function())
        labels, wanted = self.model.labels, options.get("top_k", _ABSENT)
        if wanted is _ABSENT:
            return [{"label": labels[int(row.argmax())], "score": float(row.max())} for row in scores]
        return [
            [{"label": labels[j], "score": float(row[j])} for j in np.argsort(-row, kind="stable")[:wanted].tolist()]
            for row in scores
        ]

    def _function(self) -> str:
        """Name what transformers applies to this model's outputs; an artifact of before the field goes by its task."""
        by_task = {"regression": "none", "multi_label": "sigmoid"}.get(self.model.spec.task_type, "softmax")
        return self.model.spec.head.function_to_apply or by_task


class FeatureExtraction(_Pipeline):
    """See `pipeline`: hidden states of the last layer, before pooling."""

    def __call__(self, inputs: Any, **options: Any) -> Any:
        """Nested lists [1, tokens, hidden] of one text, a list of those for a list; tensors with return_tensors."""
        return self._run(inputs, self._checked(options))

    def _checked(self, given: dict[str, Any]) -> dict[str, Any]:
        options = self.options | given
        inner = dict(options.pop("tokenize_kwargs", None) or {})
        if "truncation" in options and "truncation" in inner:
            raise InputError("truncation is given twice, by itself and in tokenize_kwargs: leave one out")
        own = frozenset({"return_tensors", "truncation", "batch_size"})
        refuse({k: v for k, v in options.items() if k not in own}, _NO_MATTER)
        refuse({k: v for k, v in inner.items() if k not in ("truncation", "max_length")}, _NONE, **_NEUTRAL_TOKENIZING)
        check_count("batch_size", options.get("batch_size"))
        return inner | options

    def _answers(self, texts: list[Any], options: dict[str, Any]) -> list[Any]:
        encoded = self._encode(texts, options)
        states = [
            self.model.hidden_states(ids, types)[None] for ids, types in zip(encoded.ids, encoded.type_ids, strict=True)
        ]
        if options.get("return_tensors"):
            torch = require_torch("return_tensors")
            return [torch.from_numpy(np.ascontiguousarray(array)) for array in states]
        return [array.tolist() for array in states]


def _text(item: Any, index: int) -> Any:
    if isinstance(item, Mapping):
        unknown = sorted(set(item) - {"text", "text_pair"})
        if unknown:
            raise InputError(
                f"input {index} has the keys {', '.join(map(str, unknown))}; it may have text and text_pair"
            )
        if not isinstance(item.get("text"), str):
            raise InputError(f"input {index} has no text under 'text'")
        return item["text"] if item.get("text_pair") is None else (item["text"], item["text_pair"])
    return item
