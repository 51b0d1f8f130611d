"""Generation: greedy text as transformers', sampling, streaming, stop strings, chat, batches, threads, bad input."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import DECODERS, build_decoder, decoder_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

import approxrt
from approxrt.errors import InputError, TextTooLongError, TruncationWarning, UnsupportedTaskError
from approxrt.runtime.decoder_model import DecoderModel
from approxrt.runtime.generation.sampling import Sampler, Sampling, distribution
from approxrt.runtime.generation.streaming import StopFilter, TextStream

PROMPT = "the quick brown fox"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("decoders")
    return {family: build_decoder(family, folder / family) for family in DECODERS}


@pytest.fixture(scope="module")
def model(checkpoints: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> DecoderModel:
    path = approxrt.convert(checkpoints["llama"], tmp_path_factory.mktemp("artifact") / "a", bits=8)
    loaded = approxrt.load(path, threads=2)
    assert isinstance(loaded, DecoderModel)
    return loaded


@pytest.mark.parametrize("family", DECODERS)
def test_greedy_text_is_transformers(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    import torch
    import transformers

    folder = checkpoints[family]
    ours = approxrt.load(approxrt.convert(folder, tmp_path / "a", bits=32))
    assert isinstance(ours, DecoderModel)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = decoder_tokenizer()
    ids = tokenizer.encode(PROMPT).ids
    generated = theirs.generate(
        torch.tensor([ids]), max_new_tokens=80, do_sample=False, eos_token_id=2, pad_token_id=1
    )[0, len(ids) :].tolist()
    expected = tokenizer.decode([token for token in generated if token != 2], skip_special_tokens=True)
    assert ours.generate(PROMPT, max_new_tokens=80) == expected
    assert ours.forward([ids]).shape == (1, theirs.config.vocab_size)


def test_streams_make_the_text(model: DecoderModel) -> None:
    whole = model.generate(PROMPT, max_new_tokens=60)
    pieces = model.generate(PROMPT, max_new_tokens=60, stream=True)
    assert isinstance(pieces, Iterator)
    parts = list(pieces)
    assert "".join(parts) == whole and len(parts) > 1

    async def collect() -> list[str]:
        return [piece async for piece in model.generate_async(PROMPT, max_new_tokens=60)]

    assert asyncio.run(collect()) == parts


def test_seeds_repeat(model: DecoderModel) -> None:
    options: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.5, "top_k": 50, "top_p": 0.95}
    first = model.generate(PROMPT, seed=1, **options)
    assert model.generate(PROMPT, seed=1, **options) == first
    assert model.generate(PROMPT, seed=2, **options) != first
    assert model.generate(PROMPT, temperature=5.0, top_k=1, max_new_tokens=30) == model.generate(
        PROMPT, max_new_tokens=30
    )
    assert model.generate(PROMPT, temperature=0.05, min_p=0.999, max_new_tokens=30) == model.generate(
        PROMPT, max_new_tokens=30
    )


def test_stop_strings_end_the_text_before_them(model: DecoderModel) -> None:
    whole = model.generate(PROMPT, max_new_tokens=60)
    assert isinstance(whole, str)
    for begin, size in ((10, 1), (12, 4), (15, 9)):
        stop = whole[begin : begin + size]
        expected = whole[: whole.index(stop)]
        assert model.generate(PROMPT, max_new_tokens=60, stop=[stop, "never to be seen"]) == expected
        assert "".join(model.generate(PROMPT, max_new_tokens=60, stop=(stop,), stream=True)) == expected


def test_many_are_what_each_is_alone(model: DecoderModel) -> None:
    prompts = ["a gripping film", PROMPT, "She sold", "x", "the rain falls " * 10, "An honest account of work"]
    expected = [model.generate(prompt, max_new_tokens=25) for prompt in prompts]
    for at_once in (1, 3, 8):
        answers = model.generate_many(prompts, max_new_tokens=25, at_once=at_once)
        assert [answer.text for answer in answers] == expected
        assert all(answer.finish_reason in ("eos", "length") for answer in answers)
        assert all(answer.new_tokens == 25 for answer in answers if answer.finish_reason == "length")
    drawn = model.generate_many(prompts, 10, Sampling(temperature=1.0, seed=7))
    for i, prompt in enumerate(prompts):
        assert drawn[i].text == model.generate(prompt, 10, temperature=1.0, seed=7 + i)


def test_two_threads_generate_on_one_model(model: DecoderModel) -> None:
    prompts = ["a gripping film", "two hours", "the quick brown", "good bad great"] * 2
    expected = [model.generate(prompt, max_new_tokens=40) for prompt in prompts]
    got: list[Any] = [None] * len(prompts)

    def work(i: int) -> None:
        got[i] = model.generate(prompts[i], max_new_tokens=40)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == expected


def test_chat_uses_the_template(model: DecoderModel) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
    text = "<s>system: be brief</s><s>user: hello</s><s>assistant:"
    expected = decoder_tokenizer().encode(text, add_special_tokens=False).ids
    assert model.tokenize(messages) == expected
    assert isinstance(model.generate(messages, max_new_tokens=5), str)
    for wrong in ([], [{"role": "user"}], [{"role": "user", "content": 3}], ["hello"], 7):
        with pytest.raises(InputError):
            model.generate(wrong, max_new_tokens=5)  # type: ignore[arg-type]


def test_hostile_templates_do_nothing(model: DecoderModel) -> None:
    import dataclasses

    from approxrt.runtime.chat.template import render_chat

    messages = [{"role": "user", "content": "x"}]
    for template in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('no') }}",
        "{{ range(10**9) | list }}",
        "{% for %}",
    ):
        spec = dataclasses.replace(model.decoder_spec, chat_template=template)
        with pytest.raises(InputError, match="chat template"):
            render_chat(spec, messages)
    with pytest.raises(UnsupportedTaskError, match="no chat template"):
        render_chat(dataclasses.replace(model.decoder_spec, chat_template=""), messages)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"max_new_tokens": -1}, "max_new_tokens is -1"),
    ({"max_new_tokens": 1.5}, "max_new_tokens"),
    ({"temperature": float("nan")}, "temperature is nan"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_k": -1}, "top_k"),
    ({"top_p": 0.0}, "top_p"),
    ({"top_p": float("nan")}, "top_p"),
    ({"min_p": 1.0}, "min_p"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"seed": -3}, "seed"),
    ({"stop": [""]}, r"stop\[0\]"),
    ({"stop": ["a", 3]}, r"stop\[1\]"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_options_are_named_at_once(
    model: DecoderModel, options: dict[str, Any], message: str, stream: bool
) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(PROMPT, stream=stream, **options)


def test_context_full(model: DecoderModel) -> None:
    with pytest.raises(InputError, match="no tokens"):
        model.generate("")
    long = "the rain falls " * 60
    count, context = len(model.tokenize(long)), model.decoder_spec.max_positions
    assert count > context
    with pytest.raises(TextTooLongError, match=f"{count} tokens and max_new_tokens is 20.*{context}"):
        model.generate(long, max_new_tokens=20)
    with pytest.raises(TextTooLongError, match="fewer tokens"):
        model.generate(PROMPT, max_new_tokens=context + 1)
    with pytest.warns(TruncationWarning, match=f"the first {count - context + 19} tokens"):
        cut = model.generate(long, max_new_tokens=20, truncate=True)
    ids = model.tokenize(long)[-(context - 19) :]
    cache, expected = model.engine.cache(context), []
    logits = model.engine.prefill(cache, ids)
    while len(expected) < 20 and int(np.argmax(logits)) != 2:
        expected.append(int(np.argmax(logits)))
        if len(expected) < 20:
            logits = model.engine.step([cache], [expected[-1:]])[0]
    assert cut == decoder_tokenizer().decode(expected, skip_special_tokens=True)


def test_an_encoders_methods_are_refused(model: DecoderModel) -> None:
    for call in (model.classify, model.logits, model.embed):
        with pytest.raises(UnsupportedTaskError, match="decoder"):
            call(["x"])
    with pytest.raises(UnsupportedTaskError, match="decoder"):
        _ = model.spec
    for wrong in ([], [[]], [[1, -1]], [[10**9]], [1, 2], [[0.5]]):
        with pytest.raises(InputError):
            model.forward(wrong)
    with pytest.raises(TextTooLongError):
        model.forward([[1] * 200])
    assert model.info["task_type"] == "generation" and model.info["cache_kind"] == "f16"


# -- sampling --------------------------------------------------------------------


def expected_distribution(logits: np.ndarray, options: Sampling) -> np.ndarray:
    """By sorting everything: what each token's probability must be."""
    p = np.exp(logits.astype(np.float64) / options.temperature)
    order = np.argsort(-p, kind="stable")
    keep = order[: options.top_k] if options.top_k else order
    if options.top_p < 1:
        shares = np.cumsum(p[keep]) / p[keep].sum()
        keep = keep[: int(np.sum(shares < options.top_p)) + 1]
    keep = keep[p[keep] >= options.min_p * p.max()]
    out = np.zeros(len(p))
    out[keep] = p[keep] / p[keep].sum()
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 100, 1000]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
)
def test_distribution(seed: int, temperature: float, top_k: int, top_p: float, min_p: float) -> None:
    logits = (np.random.default_rng(seed).standard_normal(300) * 3).astype(np.float32)
    options = Sampling(temperature, top_k, top_p, min_p)
    ids, probabilities = distribution(logits, options)
    got = np.zeros(300)
    got[ids] = probabilities
    np.testing.assert_allclose(got, expected_distribution(logits, options), rtol=1e-9, atol=1e-12)


def test_draws_follow_the_distribution() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=0))
    counts = np.bincount([sampler.choose(logits, []) for _ in range(4000)], minlength=4) / 4000
    # Three standard deviations of a share of 4,000 draws are below 0.024.
    np.testing.assert_allclose(counts, [0.5, 0.3, 0.15, 0.05], atol=0.024)


def test_repetition_penalty() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    sampler = Sampler(Sampling(repetition_penalty=1.2))
    assert sampler.choose(logits, []) == 0
    assert sampler.choose(logits, [0, 0]) == 1
    assert sampler.choose(-np.abs(logits), [2, 2]) == 3
    assert list(logits) == [np.float32(x) for x in (2.0, 1.9, -1.0, -1.1)]


# -- streaming -------------------------------------------------------------------

TEXTS = st.text(st.sampled_from("ab 漢字🙂é‍👩\n�"), max_size=30)


@settings(max_examples=100, deadline=None)
@given(text=TEXTS)
def test_pieces_are_whole_characters(text: str) -> None:
    tokenizer = decoder_tokenizer()
    stream = TextStream(tokenizer)
    ids = tokenizer.encode(text).ids
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids, skip_special_tokens=True)
    if "�" not in text:
        assert all("�" not in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.text("abc", max_size=4), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
)
def test_stop_filter(pieces: list[str], stop: list[str]) -> None:
    whole = "".join(pieces)
    places = [whole.index(s) for s in stop if s in whole]
    filtered = StopFilter(stop)
    shown = "".join(filtered.add(piece) for piece in pieces)
    # The first stop string to be complete ends the text; one that begins before it may end later.
    assert filtered.stopped == bool(places)
    if places:
        assert any(whole.startswith(s, len(shown)) for s in stop)
        assert not any(s in shown for s in stop)
    else:
        assert shown + filtered.finish() == whole


# -- command line ----------------------------------------------------------------


def run(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "approxrt.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, input=stdin, env=dict(os.environ))


def test_command_line(model: DecoderModel, tmp_path: Path) -> None:
    path, expected = model.path, model.generate(PROMPT, max_new_tokens=12)
    done = run("generate", path, PROMPT, "--max-new-tokens", 12)
    assert (done.returncode, done.stdout) == (0, f"{expected}\n"), done.stderr
    answers = json.loads(run("generate", path, "--max-new-tokens", 12, "--json", stdin=f"{PROMPT}\n").stdout)
    assert [(a["prompt"], a["text"]) for a in answers] == [(PROMPT, expected)]
    assert run("generate", path, "hi", "--chat", "--max-new-tokens", 3).returncode == 0
    assert "max_new_tokens is 0" in run("generate", path, "hi", "--max-new-tokens", 0).stderr
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 20)
    found = json.loads(
        run("eval", path, "--task", "lm", "--data", text, "--context", 32, "--stride", 16, "--json").stdout
    )
    assert found["context"] == 32 and found["perplexity"] > 1
    assert "is a" in run("classify", path, "x").stderr
    (tmp_path / "empty.txt").write_text(" ")
    assert "is empty" in run("eval", path, "--task", "lm", "--data", tmp_path / "empty.txt").stderr


def test_generation_loads_neither_torch_nor_transformers(model: DecoderModel) -> None:
    code = (
        "import sys, approxrt\n"
        f"m = approxrt.load({str(model.path)!r}, threads=1)\n"
        "m.generate('the quick', max_new_tokens=3)\n"
        "print([n for n in ('torch', 'transformers', 'jinja2') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
