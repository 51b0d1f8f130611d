"""A checkpoint as a transformers classifier, for training. torch and transformers are imported when called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from approxrt.errors import CheckpointError
from approxrt.models.weights import read_json


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' own progress bars and warnings: a head that is new, and a pooler or decoder that
    is not used, are what fine-tuning is about."""
    import transformers

    verbosity, bars = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()


def load_classifier(folder: Path, label_names: tuple[str, ...] | None) -> Any:
    """The checkpoint as a float32 classifier (or one-output regression) for these labels; new heads are random."""
    names = label_names if label_names is not None else ("score",)
    problem = "single_label_classification" if label_names is not None else "regression"
    return _load("AutoModelForSequenceClassification", folder, names, problem_type=problem)


def load_token_model(folder: Path, labels: Callable[[tuple[str, ...]], tuple[str, ...]] | None) -> Any:
    """The checkpoint as a float32 model whose head reads every token; new heads are random.

    labels   of a token classifier, given those that the checkpoint's own token classifier has (none of another
             checkpoint); None: a model for question answering
    """
    if labels is None:
        return _load("AutoModelForQuestionAnswering", folder, ("start", "end"))
    raw = read_json(folder / "config.json")
    names, known = raw.get("id2label"), tuple[str, ...]()
    own = any(str(name).endswith("ForTokenClassification") for name in raw.get("architectures") or ())
    if own and isinstance(names, dict):
        known = tuple(str(names[key]) for key in sorted(names, key=int))
    return _load("AutoModelForTokenClassification", folder, labels(known))


def _load(loader: str, folder: Path, names: tuple[str, ...], **options: Any) -> Any:
    import torch
    import transformers

    try:
        with quiet():
            return getattr(transformers, loader).from_pretrained(
                str(folder),
                dtype=torch.float32,
                # The fused operator's backward pass is slow on CPUs, in bfloat16 most of all.
                attn_implementation="eager",
                local_files_only=True,
                ignore_mismatched_sizes=True,
                num_labels=len(names),
                id2label=dict(enumerate(names)),
                label2id={name: i for i, name in enumerate(names)},
                **options,
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        kind = loader.removeprefix("AutoModelFor")
        what = "a classifier" if kind == "SequenceClassification" else f"...For{kind}"
        raise CheckpointError(f"transformers cannot load {str(folder)!r} as {what}: {reason}") from error
