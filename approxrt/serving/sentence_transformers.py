"""In place of sentence-transformers' objects: the same calls, pooling, normalisation and order of results.

    from approxrt.serving.sentence_transformers import SentenceTransformer, CrossEncoder

What they return is what the original's `encode`, `predict` and `rank` return, within the artifact's approximation.
Options that would change results and that an artifact does not have are refused, not ignored.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from approxrt.errors import InputError, TruncationWarning
from approxrt.runtime.loading import load
from approxrt.runtime.model import Model


class _Wrapped:
    """What both objects have."""

    def __init__(self, artifact: str | os.PathLike[str] | Model, threads: int | None = None) -> None:
        self.model = artifact if isinstance(artifact, Model) else load(artifact, device="cpu", threads=threads)

    @property
    def max_seq_length(self) -> int:
        """Tokens that a text is cut to, specials included."""
        return self.model.spec.max_length

    @property
    def device(self) -> str:
        return "cpu"


class SentenceTransformer(_Wrapped):
    """An embedder; `artifact` is a folder or a loaded model without labels."""

    def __init__(self, artifact: str | os.PathLike[str] | Model, threads: int | None = None) -> None:
        super().__init__(artifact, threads)
        if self.model.labels:
            raise InputError(f"{str(self.model.path)!r} has labels: use CrossEncoder")

    def encode(
        self,
        sentences: str | Sequence[str],
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        **options: Any,
    ) -> Any:
        """float32 [n, hidden], or [hidden] for one str: of length 1 if the model normalises or is asked to.

        A list of arrays without `convert_to_numpy`, a torch tensor with `convert_to_tensor`. Texts over the limit are
        cut, as the original does. `batch_size` changes nothing: passes are sized by tokens.
        """
        _refuse(options, {"device": ("cpu", None), "prompt_name": (None,), "pool": (None,)})
        if output_value != "sentence_embedding" or precision != "float32":
            raise InputError(
                f"output_value={output_value!r}, precision={precision!r}: "
                "an artifact gives sentence_embedding in float32"
            )
        single = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        width = self.get_sentence_embedding_dimension() if truncate_dim is None else truncate_dim
        if not 1 <= width <= self.model.spec.hidden_size:
            raise InputError(f"truncate_dim is {width}; it must be between 1 and {self.model.spec.hidden_size}")
        if not texts:
            return np.zeros((0, width), np.float32) if convert_to_numpy else []
        if prompt:
            texts = [prompt + text for text in texts]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            rows = self.model.embed(texts, normalize=self.model.spec.head.normalize)[:, :width]
        if normalize_embeddings:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
        return _converted(rows, single, convert_to_numpy, convert_to_tensor)

    def get_sentence_embedding_dimension(self) -> int:
        """Width of an embedding."""
        return self.model.spec.hidden_size

    def similarity(self, a: Any, b: Any) -> np.ndarray:
        """Cosines float32 [len(a), len(b)] of embeddings."""
        x, y = (np.atleast_2d(np.asarray(v, np.float32)) for v in (a, b))
        x, y = (v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), np.float32(1e-12)) for v in (x, y))
        return x @ y.T


class CrossEncoder(_Wrapped):
    """A classifier or regressor of pairs (or of texts); `artifact` is a folder or a loaded model with labels."""

    def __init__(self, artifact: str | os.PathLike[str] | Model, threads: int | None = None) -> None:
        super().__init__(artifact, threads)
        if not self.model.labels:
            raise InputError(f"{str(self.model.path)!r} has no labels: use SentenceTransformer")

    def predict(
        self,
        sentences: Sequence[Any],
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        activation_fn: Callable[[Any], Any] | None = None,
        apply_softmax: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
    ) -> Any:
        """float32 [n] of a model with one output (through a sigmoid, as the original), else logits [n, labels].

        One pair gives one row. `activation_fn` takes and returns a torch tensor, as the original's.
        """
        single = bool(sentences) and isinstance(sentences[0], str)
        pairs = [sentences] if single else list(sentences)
        if not pairs:
            return np.zeros((0,), np.float32) if convert_to_numpy else []
        items = [item if isinstance(item, str) else tuple(item) for item in pairs]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", TruncationWarning)
            rows = self.model.logits(items)
        if activation_fn is not None:
            import torch

            rows = activation_fn(torch.from_numpy(rows)).numpy()
        elif len(self.model.labels) == 1:
            rows = (1.0 / (1.0 + np.exp(-rows.astype(np.float64)))).astype(np.float32)
        if apply_softmax and rows.shape[1] > 1:
            shifted = np.exp(rows - rows.max(axis=1, keepdims=True))
            rows = shifted / shifted.sum(axis=1, keepdims=True)
        return _converted(rows[:, 0] if rows.shape[1] == 1 else rows, single, convert_to_numpy, convert_to_tensor)

    def rank(
        self, query: str, documents: Sequence[str], top_k: int | None = None, return_documents: bool = False
    ) -> list[dict[str, Any]]:
        """[{corpus_id, score, text?}], best first. Raises InputError for a model with several outputs."""
        if len(self.model.labels) != 1:
            raise InputError(f"rank needs a model with one output; this one has {len(self.model.labels)}")
        scores = self.predict([(query, document) for document in documents])
        order = np.argsort(-scores, kind="stable")[:top_k].tolist()
        found = [{"corpus_id": i, "score": scores[i]} for i in order]
        return [item | {"text": documents[item["corpus_id"]]} for item in found] if return_documents else found


def _refuse(options: dict[str, Any], allowed: dict[str, tuple[Any, ...]]) -> None:
    for name, value in options.items():
        if value not in allowed.get(name, ()):
            raise InputError(f"{name}={value!r} is not supported by an artifact: leave it out")


def _converted(rows: np.ndarray, single: bool, to_numpy: bool, to_tensor: bool) -> Any:
    if to_tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(rows[0] if single else rows))
    if single:
        return rows[0]
    return rows if to_numpy else list(rows)
