"""Stand in for sentence-transformers' objects: the same calls, pooling, normalisation and order of results.

    from approxrt.serving.sentence_transformers import SentenceTransformer, CrossEncoder

What they return is what the original's `encode`, `predict` and `rank` return, within the artifact's approximation. They
take the original's arguments, by position and by name, those that it has renamed among them. One that an artifact
cannot obey is an InputError that names it; those of where and how to download a model, of progress bars and of workers
change no result.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from approxrt.errors import InputError
from approxrt.runtime.activation import apply_activation
from approxrt.runtime.model import Model
from approxrt.runtime.tokenize import with_prompt
from approxrt.serving.originals import (
    as_list,
    check_count,
    check_device,
    converted,
    device_of,
    normalized,
    open_model,
    pairs,
    refuse,
    renamed,
    require_torch,
)
from approxrt.serving.similarity import similarity, similarity_name, similarity_pairwise

# Where a model is downloaded from, who asks and what its page says: an artifact is a folder, and has no code.
_OF_DOWNLOADS = frozenset(
    {"cache_folder", "cache_dir", "local_files_only", "model_card_data", "token", "trust_remote_code", "use_auth_token"}
)


class _Wrapped:
    """Hold what both objects have."""

    # Names of prompts that the original's object knows without any of its own; they stand for no prompt.
    _default_prompts: tuple[str, ...] = ()

    def __init__(
        self,
        artifact: str | os.PathLike[str] | Model | None,
        threads: int | None,
        device: Any,
        prompts: dict[str, str] | None,
        default_prompt_name: str | None,
    ) -> None:
        self.model = open_model(artifact, device, threads)
        if self.model.spec.per_token:
            task = self.model.spec.task_type
            raise InputError(f"{str(self.model.path)!r} is for {task}: use approxrt.serving.pipeline")
        # The caller's come before the artifact's.
        self.prompts = dict.fromkeys(self._default_prompts, "") | dict(self.model.spec.text.prompts) | (prompts or {})
        self.default_prompt_name = default_prompt_name or self.model.spec.text.default_prompt_name or None
        if self.default_prompt_name is not None and self.default_prompt_name not in self.prompts:
            raise InputError(f"default_prompt_name is {default_prompt_name!r}; prompts: {', '.join(self.prompts)}")
        self._length: int | None = None

    @property
    def max_seq_length(self) -> int:
        """Tokens that a text is cut to, specials included. It may be set to fewer than the artifact's."""
        return self.model.spec.max_length if self._length is None else self._length

    @max_seq_length.setter
    def max_seq_length(self, value: int) -> None:
        limit = self.model.spec.max_length
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 1 <= value <= limit:
            raise InputError(f"max_seq_length is {value!r}; the artifact has positions for 1 to {limit} tokens")
        self._length = int(value)

    def get_max_seq_length(self) -> int:
        """The same as `max_seq_length`."""
        return self.max_seq_length

    @property
    def device(self) -> str:
        """Name the engine's device: "cpu" or "cuda"."""
        return device_of(self.model)

    def to(self, device: Any) -> Any:
        """Itself, if it is on that device. Raises InputError: an artifact stays where it was loaded."""
        check_device(device, self.model)
        return self

    def eval(self) -> Any:
        """Itself: an artifact is never trained."""
        return self

    def _prompt(self, prompt: Any, prompt_name: Any) -> str:
        """Return what stands before each text, as the original decides it."""
        if prompt is None and prompt_name is None:
            prompt_name = self.default_prompt_name
            if prompt_name is None:
                return ""
        if prompt is None:
            if prompt_name not in self.prompts:
                shown = ", ".join(map(repr, self.prompts)) or "none"
                raise InputError(f"prompt_name is {prompt_name!r}; this model's prompts: {shown}")
            prompt = self.prompts[prompt_name]
        if not isinstance(prompt, str):
            raise InputError(f"prompt is {prompt!r}; it must be a str")
        return prompt

    def _rows(self, texts: list[Any], prompt: str, output: str) -> np.ndarray:
        """float32 [n, width] of texts, cut to the length at hand."""
        encoded = self.model.encode(with_prompt(texts, prompt), True, max_length=self._length)
        if output == "pooled":
            return self.model.pooled(encoded, prompt)
        return self.model.forward_ids(encoded.ids, encoded.type_ids, output)


class SentenceTransformer(_Wrapped):
    """An embedder; the first argument is an artifact's folder or a loaded model without labels."""

    _default_prompts = ("query", "document")

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | Model | None = None,
        threads: int | None = None,
        *,
        device: Any = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: Any = None,
        truncate_dim: int | None = None,
        artifact: str | os.PathLike[str] | Model | None = None,
        **options: Any,
    ) -> None:
        refuse(options, _OF_DOWNLOADS, backend=("torch",))
        source = artifact if model_name_or_path is None else model_name_or_path
        super().__init__(source, threads, device, prompts, default_prompt_name)
        if self.model.labels:
            raise InputError(f"{str(self.model.path)!r} has labels: use CrossEncoder")
        self._similarity = similarity_name(similarity_fn_name or self.model.spec.text.similarity_fn_name)
        check_count("truncate_dim", truncate_dim)
        self.truncate_dim = truncate_dim or self.model.spec.head.truncate_dim or None

    def encode(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: Any = None,
        chunk_size: int | None = None,
        **options: Any,
    ) -> Any:
        """float32 [n, width], or [width] for one str: of length 1 if the model normalises or is asked to.

        inputs             a str, or a list, array or column of them (`sentences` is its older name)
        prompt_name        of `prompts`, the one before each text; `prompt` is one as it is. Without either: the default
        truncate_dim       the first so many elements, taken before `normalize_embeddings`
        convert_to_tensor  a torch tensor; without `convert_to_numpy` a list of them

        Texts over the limit are cut, as the original does. `batch_size` changes nothing: passes are sized by tokens.
        """
        inputs = renamed(inputs, options, "sentences")
        refuse(options, frozenset({"task", "num_workers"}))
        refuse({"pool": pool})
        check_device(device, self.model)
        for name, value in (("batch_size", batch_size), ("chunk_size", chunk_size), ("truncate_dim", truncate_dim)):
            check_count(name, value)
        if output_value != "sentence_embedding" or precision not in ("float32", None):
            raise InputError(
                f"output_value={output_value!r}, precision={precision!r}: "
                "an artifact gives sentence_embedding in float32"
            )
        single = isinstance(inputs, str)
        texts: list[Any] = [inputs] if single else as_list(inputs)
        before = self._prompt(prompt, prompt_name)
        if not texts:
            return converted(np.zeros(0), False, convert_to_numpy, convert_to_tensor)
        rows = self._rows(texts, before, "pooled")
        if self.model.spec.head.normalize:
            rows = normalized(rows)
        rows = rows[:, : truncate_dim or self.truncate_dim]
        if normalize_embeddings:
            rows = normalized(rows)
        return converted(rows, single, convert_to_numpy, convert_to_tensor)

    def encode_query(
        self, inputs: Any = None, prompt_name: str | None = None, prompt: str | None = None, *rest: Any, **options: Any
    ) -> Any:
        """Encode with the prompt "query" unless another is named."""
        if prompt_name is None and prompt is None and "query" in self.prompts:
            prompt_name = "query"
        return self.encode(inputs, prompt_name, prompt, *rest, **options)

    def encode_document(
        self, inputs: Any = None, prompt_name: str | None = None, prompt: str | None = None, *rest: Any, **options: Any
    ) -> Any:
        """Encode with the prompt "document", "passage" or "corpus", the first that there is."""
        if prompt_name is None and prompt is None:
            prompt_name = next((name for name in ("document", "passage", "corpus") if name in self.prompts), None)
        return self.encode(inputs, prompt_name, prompt, *rest, **options)

    def get_embedding_dimension(self) -> int:
        """Width of an embedding."""
        width = self.model.spec.pooled_size
        return width if self.truncate_dim is None else min(width, self.truncate_dim)

    def get_sentence_embedding_dimension(self) -> int:
        """The same under its older name."""
        return self.get_embedding_dimension()

    @contextmanager
    def truncate_embeddings(self, truncate_dim: int | None) -> Iterator[None]:
        """Give so many elements of an embedding while the block runs; None: all."""
        check_count("truncate_dim", truncate_dim)
        before, self.truncate_dim = self.truncate_dim, truncate_dim
        try:
            yield
        finally:
            self.truncate_dim = before

    truncate_sentence_embeddings = truncate_embeddings

    @property
    def similarity_fn_name(self) -> str:
        """Name how embeddings are compared: cosine, dot, euclidean or manhattan; the artifact's own, unless set."""
        return self._similarity

    @similarity_fn_name.setter
    def similarity_fn_name(self, value: Any) -> None:
        self._similarity = similarity_name(value or "cosine")

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """float32 [len(embeddings1), len(embeddings2)] by `similarity_fn_name`; distances are negative."""
        return similarity(self._similarity, embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """float32 [n] of embeddings in the same places."""
        return similarity_pairwise(self._similarity, embeddings1, embeddings2)


class CrossEncoder(_Wrapped):
    """A classifier or regressor of pairs (or of texts); the first argument is a folder or a model with labels."""

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str] | Model | None = None,
        num_labels: int | None = None,
        max_length: int | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        device: Any = None,
        *,
        threads: int | None = None,
        prompts: dict[str, str] | None = None,
        default_prompt_name: str | None = None,
        artifact: str | os.PathLike[str] | Model | None = None,
        **options: Any,
    ) -> None:
        source = artifact if model_name_or_path is None else model_name_or_path
        source = renamed(source, options, "model_name")
        activation_fn = renamed(activation_fn, options, "default_activation_function")
        refuse(options, _OF_DOWNLOADS, backend=("torch",))
        super().__init__(source, threads, device, prompts, default_prompt_name)
        if not self.model.labels:
            raise InputError(f"{str(self.model.path)!r} has no labels: use SentenceTransformer")
        if num_labels is not None and num_labels != self.num_labels:
            raise InputError(f"num_labels is {num_labels!r}; the artifact has {self.num_labels}")
        if max_length is not None:
            self.max_seq_length = max_length
        self.activation_fn = activation_fn

    @property
    def num_labels(self) -> int:
        """Return the number of outputs."""
        return len(self.model.labels)

    @property
    def max_length(self) -> int:
        """`max_seq_length` under its older name."""
        return self.max_seq_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        self.max_seq_length = value

    def predict(
        self,
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        apply_softmax: bool | None = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        pool: Any = None,
        chunk_size: int | None = None,
        **options: Any,
    ) -> Any:
        """float32 [n] of a model with one output, else [n, labels]; one pair gives one row.

        inputs         a pair, or a list or array of them (`sentences` is its older name)
        activation_fn  takes and returns a torch tensor; default: the object's own, else the one that the checkpoint
                       names, else a sigmoid for one output and nothing for several
        apply_softmax  of several outputs, after the activation
        """
        inputs = renamed(inputs, options, "sentences")
        activation_fn = renamed(activation_fn, options, "activation_fct")
        refuse(options, frozenset({"num_workers"}))
        refuse({"pool": pool})
        check_device(device, self.model)
        check_count("batch_size", batch_size)
        check_count("chunk_size", chunk_size)
        single, items = pairs(inputs)
        before = self._prompt(prompt, prompt_name)
        if not items:
            return converted(np.zeros(0), False, convert_to_numpy, convert_to_tensor)
        rows = self._activated(self._rows(items, before, "logits"), activation_fn or self.activation_fn)
        if rows.ndim > 1 and rows.shape[1] == 1:
            rows = rows[:, 0]
        if apply_softmax and rows.ndim > 1:
            rows = apply_activation(rows, "softmax")
        return converted(rows.astype(np.float32), single, convert_to_numpy, convert_to_tensor)

    def _activated(self, logits: np.ndarray, activation: Callable[[Any], Any] | None) -> np.ndarray:
        if activation is None:
            default = "sigmoid" if self.num_labels == 1 else "identity"
            return apply_activation(logits, self.model.spec.head.activation_fn or default)
        torch = require_torch("an activation function of one's own")
        found: np.ndarray = activation(torch.from_numpy(logits)).detach().numpy()
        return found

    def rank(
        self,
        query: str,
        documents: Any,
        top_k: int | None = None,
        return_documents: bool = False,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        device: Any = None,
        pool: Any = None,
        chunk_size: int | None = None,
        **options: Any,
    ) -> list[dict[str, Any]]:
        """[{corpus_id, score, text?}], best first. Raises InputError for a model with several outputs."""
        if self.num_labels != 1:
            raise InputError(f"rank needs a model with one output; this one has {self.num_labels}")
        check_count("top_k", top_k)
        activation_fn = renamed(activation_fn, options, "activation_fct")
        # What `predict` returns them as, and the softmax of one output.
        refuse(options, frozenset({"apply_softmax", "convert_to_numpy", "convert_to_tensor", "num_workers"}))
        texts = as_list(documents, "documents")
        scores = self.predict(
            [(query, text) for text in texts],
            prompt_name,
            prompt,
            batch_size,
            activation_fn=activation_fn,
            device=device,
            pool=pool,
            chunk_size=chunk_size,
        )
        order = np.argsort(-scores, kind="stable")[:top_k].tolist()
        found: list[dict[str, Any]] = [{"corpus_id": i, "score": float(scores[i])} for i in order]
        return [item | {"text": texts[item["corpus_id"]]} for item in found] if return_documents else found
