"""Artifacts that an earlier commit has written still load, and answer as they did.

`written/` holds one of each sort: sparse int8, int4, float32, an embedder, and two decoders, random and tiny.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import approxrt
from approxrt.runtime.decoder_model import DecoderModel

WRITTEN = Path(__file__).resolve().parent / "written"
ANSWERS = json.loads((WRITTEN / "answers.json").read_text())
TEXTS = ["a gripping film", "two hours that nobody will get back", "good bad great awful"]


@pytest.mark.parametrize("name", sorted(ANSWERS))
def test_answers_are_what_they_were(name: str) -> None:
    model: Any = approxrt.load(WRITTEN / name, threads=1)
    if isinstance(model, DecoderModel):
        found = model.forward([model.tokenize("the quick")])[0]
    else:
        found = model.logits(TEXTS) if model.labels else model.embed(TEXTS)
    want = np.array(ANSWERS[name])
    # Sums of floats in another order may round an activation to its neighbour: a 127th of the largest, in few places.
    bound = 1e-4 if name.endswith("f32") else 2e-2
    np.testing.assert_allclose(found, want, rtol=0, atol=bound * np.abs(want).max())
