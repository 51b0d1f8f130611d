"""A checkpoint as a transformers classifier, for training. torch and transformers are imported when called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from approxrt.errors import CheckpointError


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
    import torch
    import transformers

    names = label_names if label_names is not None else ("score",)
    try:
        with quiet():
            return transformers.AutoModelForSequenceClassification.from_pretrained(
                str(folder),
                dtype=torch.float32,
                # The fused operator's backward pass is slow on CPUs, in bfloat16 most of all.
                attn_implementation="eager",
                local_files_only=True,
                ignore_mismatched_sizes=True,
                num_labels=len(names),
                id2label=dict(enumerate(names)),
                label2id={name: i for i, name in enumerate(names)},
                problem_type="single_label_classification" if label_names is not None else "regression",
            )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"transformers cannot load {str(folder)!r} as a classifier: {reason}") from error
