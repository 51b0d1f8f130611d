"""The public object of an encoder: `approxrt.load` returns it for an artifact that classifies or embeds."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from approxrt.artifact.reader import Artifact
from approxrt.errors import InputError, TruncationWarning, UnsupportedTaskError
from approxrt.runtime.activation import apply_activation
from approxrt.runtime.answering import Answerer, AnswerOptions
from approxrt.runtime.failures import check_rows, check_token_rows
from approxrt.runtime.model import Model, Prediction
from approxrt.runtime.pooling import pool_states
from approxrt.runtime.tagging import TagOptions, TokenTagger
from approxrt.runtime.tokenize import Encoded, TextEncoder, Texts, is_single, with_prompt

if TYPE_CHECKING:
    from approxrt.runtime.cpu.engine import CpuEngine
    from approxrt.runtime.cuda.engine import CudaEngine


# What a model is asked for, by its task; the others classify.
_METHODS = {
    "embedding": "embed or forward",
    "token_classification": "tag, token_logits, embed or forward_tokens",
    "question_answering": "answer, token_logits, embed or forward_tokens",
}


class EncoderModel(Model):
    """A loaded encoder. Methods may be called from several threads at once.

    `texts` is a str, a (str, str) pair, or a list of either. A text's answer does not
    depend on the batch that it came in, bit for bit, nor on the number of threads.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None, device: str = "cpu") -> None:
        super().__init__(artifact)
        self.spec = artifact.spec
        # Packing needs no Python, and parsing the tokenizer nothing but: one hides behind the other.
        self._engine = _engine(artifact, threads, device)
        self._text = TextEncoder(artifact)
        self._engine.wait()
        # The weights are packed; of what was read the engine holds on to the embedding tables alone.
        self._artifact = artifact.without_weights()

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the outputs, in the order of `logits`' columns."""
        return self.spec.labels

    @property
    def _runner(self) -> CpuEngine | CudaEngine:
        return self._engine

    def _instead(self) -> str:
        use = _METHODS.get(self.spec.task_type, "classify, logits, embed or forward")
        return f"a {self.spec.architecture} encoder for {self.spec.task_type}; use {use}"

    def classify(self, texts: Texts, top_k: int = 1, truncate: bool = True) -> list[Any]:
        """The `top_k` best labels of each text, best first.

        Returns list[Prediction] for one text and list[list[Prediction]] for a list of texts.
        With truncate=False a text over the limit raises TextTooLongError. A model that gives NaN or infinity raises
        NumericsError, here and in `logits`, `embed` and `forward`.
        """
        self._need_labels("classify")
        if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
            raise InputError(f"top_k={top_k!r}: expected an integer of at least 1")
        encoded = self._text.encode(texts, truncate)
        scores = self.scores(check_rows(self._engine.forward(encoded.ids, encoded.type_ids, "logits")))
        answers = []
        for row, cut in zip(scores, encoded.truncated, strict=True):
            best = np.argsort(-row, kind="stable")[:top_k]
            answers.append([Prediction(self.labels[j], float(row[j]), cut) for j in best])
        return answers[0] if is_single(texts) else answers

    def logits(self, texts: Texts, truncate: bool = True) -> np.ndarray:
        """Raw outputs, float32 [n, n_labels]; one text gives n = 1. Truncated texts are named in a warning."""
        self._need_labels("logits")
        encoded = self._encode_or_warn(texts, truncate)
        return check_rows(self._engine.forward(encoded.ids, encoded.type_ids, "logits"))

    def tag(
        self,
        texts: Any,
        aggregation: str = "simple",
        ignore_labels: Sequence[str] = ("O",),
        stride: int | None = None,
        max_length: int | None = None,
        truncate: bool = True,
        is_split_into_words: bool = False,
        delimiter: str = " ",
    ) -> list[Any]:
        """Return the entities of texts, as transformers' token-classification pipeline does.

        `texts` is a str or a list of those; with is_split_into_words a list of words or a list of such lists, and
        offsets are those in the words joined by `delimiter`. One text gives a list of entities, a list of texts a list
        of such lists. An entity is {entity_group, score, word, start, end}, or with aggregation="none" a token
        {entity, score, index, word, start, end}; see `approxrt.runtime.tagging.TagOptions` for the options.

        A text over the limit loses its end, of which a TruncationWarning tells; with truncate=False it raises
        TextTooLongError, and with `stride` it is read in windows that share so many tokens.
        """
        options = TagOptions(aggregation, ignore_labels, stride, max_length, truncate, is_split_into_words, delimiter)
        tagger = self.tagger
        inputs = tagger.prepare(texts, options)
        self._warn_of_truncation(inputs.truncated, tagger.length(max_length, stride))
        answers = tagger.finish(inputs, check_token_rows(self._engine.token_logits(inputs.ids, inputs.type_ids)))
        single = isinstance(texts, str) or (is_split_into_words and isinstance(texts[0], str))
        return answers[0] if single else answers

    def answer(
        self,
        question: str | Sequence[str],
        context: str | Sequence[str],
        top_k: int = 1,
        max_answer_len: int = 15,
        max_length: int | None = None,
        stride: int | None = None,
        max_question_len: int | None = None,
        handle_impossible_answer: bool = False,
        no_answer_threshold: float = 0.0,
        align_to_words: bool = True,
    ) -> Any:
        """Return the answer {score, start, end, answer} that stands in `context`, as transformers' pipeline does.

        With top_k over 1 it is a list of so many at most, best first; for a list of questions, a list of either.
        A context over the limit is read in windows that share `stride` tokens. With handle_impossible_answer, "" is an
        answer, too; see `approxrt.runtime.answering.AnswerOptions` for the options.
        """
        options = AnswerOptions(
            top_k, max_answer_len, max_length, stride, max_question_len, handle_impossible_answer,
            no_answer_threshold, align_to_words,
        )  # fmt: skip
        answerer = self.answerer
        inputs = answerer.prepare(question, context, options)
        answers = answerer.finish(inputs, check_token_rows(self._engine.token_logits(inputs.ids, inputs.type_ids)))
        found = [each[0] if top_k == 1 else each for each in answers]
        return found[0] if isinstance(question, str) else found

    @cached_property
    def tagger(self) -> TokenTagger:
        """Both halves of `tag`, between which a server queues. Raises UnsupportedTaskError for another task."""
        self._need_token_head("tag", "token_classification")
        return TokenTagger(self._text, self.labels)

    @cached_property
    def answerer(self) -> Answerer:
        """Both halves of `answer`, as `tagger`."""
        self._need_token_head("answer", "question_answering")
        return Answerer(self._text)

    def token_logits(self, texts: Texts, truncate: bool = True) -> list[np.ndarray]:
        """Raw outputs of a head that reads every token: of each text float32 [tokens, n_labels], specials included."""
        self._need_token_head("token_logits")
        encoded = self._encode_or_warn(texts, truncate)
        return check_token_rows(self._engine.token_logits(encoded.ids, encoded.type_ids))

    def embed(
        self,
        texts: Texts,
        normalize: bool = True,
        truncate: bool = True,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> np.ndarray:
        """Pooled hidden states behind the artifact's projections, float32 [n, vector_size], of length 1 if `normalize`.

        Where the artifact has a `truncate_dim`, they are cut to it first.
        `prompt` is put before each text, or the artifact's prompt of the name `prompt_name`; without either its default
        prompt, if it has one. An unknown name raises InputError.
        """
        before = self.prompt(prompt, prompt_name)
        encoded = self._encode_or_warn(with_prompt(texts, before), truncate)
        vectors = check_rows(self.pooled(encoded, before))
        if self.spec.head.truncate_dim:
            vectors = vectors[:, : self.spec.head.truncate_dim]
        if normalize:
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = vectors / np.maximum(norms, np.float32(1e-12))
        return vectors

    def prompt(self, prompt: str | None = None, prompt_name: str | None = None) -> str:
        """Return what `embed` puts before each text; "" for nothing. Raises InputError for an unknown name."""
        if prompt is not None:
            return prompt
        known = self.spec.text.prompts
        name = self.spec.text.default_prompt_name if prompt_name is None else prompt_name
        if prompt_name is not None and prompt_name not in known:
            shown = ", ".join(map(repr, known)) if known else "none"
            raise InputError(f"prompt_name is {prompt_name!r}; this model's prompts: {shown}")
        return known[name] if name else ""

    def pooled(self, encoded: Encoded, prompt: str = "") -> np.ndarray:
        """Pooled hidden states, float32 [n, pooled_size], of encoded texts that begin with `prompt`; all elements.

        The prompt's tokens are left out of the pooling where the checkpoint says so.
        """
        if not prompt or self.spec.text.include_prompt:
            return self._engine.forward(encoded.ids, encoded.type_ids, "pooled")
        skipped = self._prompt_tokens(prompt)
        rows = []
        for ids, types in zip(encoded.ids, encoded.type_ids, strict=True):
            rows.append(pool_states(self._engine.hidden(ids, types), self.spec.head.poolings, skipped))
        return np.asarray(rows, np.float32)

    def _prompt_tokens(self, prompt: str) -> int:
        """Tokens of a prompt with the special ones before it, not the one behind it."""
        ids, mask = self._text.with_special_mask(prompt)
        return len(ids) - (1 if mask and mask[-1] else 0)

    def forward(
        self, input_ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None = None
    ) -> np.ndarray:
        """Turn token ids (specials included, no padding) into float32 outputs, for those who bring their own tokenizer.

        Returns logits [n, n_labels], or pooled hidden states [n, pooled_size] of a model without labels. A head that
        reads every token has `forward_tokens` instead.
        """
        if self.spec.per_token:
            raise UnsupportedTaskError(f"forward: {os.fspath(self.path)!r} is {self._instead()}")
        _check_ids_form(input_ids)
        return check_rows(self._engine.forward(input_ids, type_ids, "logits" if self.labels else "pooled"))

    def forward_tokens(
        self, input_ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]] | None = None
    ) -> list[np.ndarray]:
        """Turn token ids into the logits of every token, as `forward`: of each sequence float32 [tokens, n_labels]."""
        self._need_token_head("forward_tokens")
        _check_ids_form(input_ids)
        return check_token_rows(self._engine.token_logits(input_ids, type_ids))

    def encode(
        self, texts: Texts, truncate: bool = True, truncation_side: str | None = None, max_length: int | None = None
    ) -> Encoded:
        """Token ids and types of texts as this model reads them: the first half of `classify`, `logits` and `embed`.

        `truncation_side` ("left": a text over the limit loses its beginning; "right") and `max_length` in tokens stand
        in place of the artifact's own, where they are given.
        """
        return self._text.encode(texts, truncate, truncation_side, max_length)

    def forward_ids(self, ids: Sequence[Sequence[int]], type_ids: Sequence[Sequence[int]], output: str) -> np.ndarray:
        """The second half: float32 [n, width], `output` "logits" or "pooled"; rows may be NaN."""
        return self._engine.forward(ids, type_ids, output)

    def hidden_states(self, ids: Sequence[int], type_ids: Sequence[int] | None = None) -> np.ndarray:
        """The last layer's output of one sequence of token ids, float32 [tokens, hidden_size]."""
        return self._engine.hidden(ids, type_ids)

    def scores(self, logits: np.ndarray) -> np.ndarray:
        """Return what `classify` gives as scores: probabilities, or a regression's values; float [n, n_labels].

        The activation that the checkpoint names for a CrossEncoder comes first, then what transformers' pipeline
        applies; an artifact that says neither goes by its kind of task.
        """
        head = self.spec.head
        by_task = {"regression": "none", "multi_label": "sigmoid"}.get(self.spec.task_type, "softmax")
        return apply_activation(logits, head.activation_fn or head.function_to_apply or by_task)

    def _encode_or_warn(self, texts: Texts, truncate: bool) -> Encoded:
        encoded = self._text.encode(texts, truncate)
        self._warn_of_truncation(encoded.truncated, self.spec.max_length, stacklevel=4)
        return encoded

    def _warn_of_truncation(self, truncated: Sequence[bool], length: int, stacklevel: int = 3) -> None:
        cut = [i for i, flag in enumerate(truncated) if flag]
        if cut:
            shown = ", ".join(map(str, cut[:10])) + (", ..." if len(cut) > 10 else "")
            warnings.warn(
                f"{len(cut)} of {len(truncated)} texts were cut to {length} tokens (index {shown})",
                TruncationWarning,
                stacklevel=stacklevel,
            )

    def _need_labels(self, method: str) -> None:
        if not self.labels or self.spec.per_token:
            raise UnsupportedTaskError(f"{method}: {os.fspath(self.path)!r} is {self._instead()}")

    def _need_token_head(self, method: str, task: str | None = None) -> None:
        if not self.spec.per_token or task not in (None, self.spec.task_type):
            raise UnsupportedTaskError(f"{method}: {os.fspath(self.path)!r} is {self._instead()}")


def _check_ids_form(input_ids: Any) -> None:
    if isinstance(input_ids, (str, bytes)) or not isinstance(input_ids, (Sequence, np.ndarray)):
        raise InputError(f"input_ids must be a list of lists of integers, got {type(input_ids).__name__}")
    if len(input_ids) and isinstance(input_ids[0], (int, np.integer)):
        raise InputError("input_ids must be a list of lists: for one sequence write [[101, ..., 102]]")


def _engine(artifact: Artifact, threads: int | None, device: str) -> CpuEngine | CudaEngine:
    """The engine for "cpu" or "cuda"; the CPU's may still be packing weights."""
    if device == "cuda":
        from approxrt.runtime.cuda.engine import CudaEngine

        return CudaEngine(artifact)
    from approxrt.runtime.cpu.engine import CpuEngine

    return CpuEngine(artifact, threads, wait=False)
