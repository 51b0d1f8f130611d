"""Perplexity: windows, and its value against float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from random_decoders import build, tokens

from approxrt.errors import InputError
from approxrt.runtime.cpu.decoder_engine import DecoderEngine
from approxrt.runtime.reference.decoder import DecoderReference
from approxrt.tasks.lm import engine_score, perplexity, windows


@given(count=st.integers(2, 300), context=st.integers(2, 64), data=st.data())
def test_every_token_is_scored_once(count: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context))
    scored: list[int] = []
    for window in windows(count, context, stride):
        assert window.end - window.begin <= context
        assert window.begin < window.end <= count
        scored += range(window.scored, window.end)
    assert scored == list(range(1, count))


@pytest.mark.parametrize(("context", "stride"), [(24, 24), (24, 12), (24, 5), (64, 30)])
def test_equals_the_reference(context: int, stride: int) -> None:
    model = build("llama", "f32")
    reference, ids = DecoderReference(model.decoder_spec, model.tensors), tokens(61)
    total, count = 0.0, 0
    for window in windows(len(ids), context, stride):
        rows = reference.next_logits(ids[window.begin : window.end])
        rows = rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))
        for place in range(max(window.scored, window.begin + 1), window.end):
            total -= rows[place - 1 - window.begin, ids[place]]
            count += 1
    engine = DecoderEngine(model, 2)
    found = perplexity(engine_score(engine), ids, context, stride)
    assert found["tokens"] == count
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-5)


def test_bad_windows_are_refused() -> None:
    score = engine_score(DecoderEngine(build("llama", "s8"), 1))
    for context, stride in ((1, 1), (16, 0), (16, 17), (16, -1)):
        with pytest.raises(InputError):
            perplexity(score, tokens(20), context, stride)
    with pytest.raises(InputError, match="at least 2"):
        perplexity(score, [1])
