"""Answers of the libraries that checkpoints come from, and small edits of a checkpoint's JSON files."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import approxrt
from approxrt.errors import CheckpointWarning

Item = str | tuple[str, str]


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON object; `...` takes one out. A file that is not there is made."""
    data = json.loads(path.read_text()) if path.exists() else {}
    data = {key: value for key, value in {**data, **changes}.items() if value is not ...}
    path.write_text(json.dumps(data))


def transformers_logits(folder: Path, items: Sequence[Item]) -> np.ndarray:
    """float32 [n, labels] of AutoModelForSequenceClassification, one text or pair at a time, cut by its tokenizer."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    rows = []
    with torch.inference_mode():
        for item in items:
            parts = (item,) if isinstance(item, str) else item
            rows.append(model(**tokenizer(*parts, truncation=True, return_tensors="pt")).logits[0].numpy())
    return np.stack(rows)


def converted(folder: Path, bits: int = 32, **options: Any) -> approxrt.Model:
    """The checkpoint as a loaded artifact beside it. A tiny random model may stray in int8; that is not said here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        out = approxrt.convert(folder, folder.parent / f"{folder.name}.artifact", bits, overwrite=True, **options)
    return approxrt.load(out, threads=2)


def assert_close(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal but for the order of float32 sums; a wrong token changes values by a tenth and more."""
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4 * (1 + float(np.abs(theirs).max())))
