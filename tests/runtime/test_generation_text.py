"""From tokens to text: first spaces, special tokens as stops and ends, temperatures at the edge of numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoders import build_decoder, build_decoder_config
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers

import approxrt
from approxrt.errors import InputError
from approxrt.runtime.decoder_model import DecoderModel
from approxrt.runtime.generation.sampling import Sampler, Sampling, distribution
from approxrt.runtime.generation.streaming import StopFilter, TextStream, hidden_tokens

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "b", "▁a", "▁b", "ab", "▁ab", "."]


def sentencepiece() -> Tokenizer:
    """As Llama 2's tokenizer.json has it."""
    vocab = {piece: i for i, piece in enumerate(PIECES)}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab"), ("▁a", "b")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in PIECES[:3]])
    return tokenizer


def says(folder: Path, token: int, **settings: Any) -> Path:
    """A Llama whose likeliest next token is always `token`, with a SentencePiece vocabulary."""
    import transformers

    config = build_decoder_config("llama", len(PIECES), eos_token_id=2)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.model.embed_tokens.weight[:, 0] = 1
        model.model.norm.weight.fill_(1)
        model.lm_head.weight[token, 0] = 1
    model.save_pretrained(folder)
    sentencepiece().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def loaded(folder: Path) -> DecoderModel:
    model = approxrt.load(approxrt.convert(folder, folder / "artifact", bits=32), threads=1)
    assert isinstance(model, DecoderModel)
    return model


def test_a_completion_keeps_its_first_space(tmp_path: Path) -> None:
    model = loaded(says(tmp_path, PIECES.index("▁ab")))
    assert model.generate("ab", max_new_tokens=2) == " ab ab"
    assert list(model.generate("ab.", max_new_tokens=2, stream=True)) == [" ab", " ab"]
    assert model.generate_many(["ab", "a b"], 1)[1].text == " ab"
    # A prompt without text is the beginning of one.
    assert model.begin(model.request([1], 1)).accept(np.eye(len(PIECES))[PIECES.index("▁ab")]) == "ab"


@settings(max_examples=100, deadline=None)
@given(
    prompt=st.text(st.sampled_from("ab .é漢🙂"), min_size=1, max_size=20),
    text=st.text(st.sampled_from("ab .é漢🙂"), max_size=20),
    cut=st.integers(0, 3),
)
def test_text_after_a_prompt_is_what_it_adds(prompt: str, text: str, cut: int) -> None:
    """Whatever tokens the prompt ends with: within a character, with a special one, in the middle of a word."""
    tokenizer = sentencepiece()
    ids = tokenizer.encode(prompt + text).ids
    for at in {len(tokenizer.encode(prompt).ids), max(0, len(ids) - cut)}:
        before, after = [1, *ids[:at]], ids[at:]
        stream = TextStream(tokenizer, before)
        added = "".join(stream.add(token) for token in after) + stream.finish()
        start, whole = tokenizer.decode(before), tokenizer.decode(before + after)
        same = start.rstrip("�")
        assert whole.startswith(same)
        # A prompt that ends within a character: the character is the text's.
        assert same + added == whole or start + added == whole


def test_special_tokens_are_stops(tmp_path: Path) -> None:
    folder = build_decoder("llama", tmp_path)
    model = loaded(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    special = tokenizer.token_to_id("<pad>")
    assert hidden_tokens(tokenizer)[special] == "<pad>"
    words = tokenizer.encode(" film").ids

    def run(stop: list[str], tokens: list[int]) -> tuple[str, str | None, int]:
        sequence = model.begin(model.request("a", 10, stop=stop))
        text = ""
        for count, token in enumerate(tokens):
            text += sequence.accept(np.eye(model.decoder_spec.vocab_size, dtype=np.float32)[token])
            if sequence.finish_reason:
                return text, sequence.finish_reason, count + 1
        return text, None, len(tokens)

    count = len(words)
    assert run(["<pad>"], [*words, special, *words]) == (" film", "stop", count + 1)
    assert run(["film<pad>"], [*words, special]) == (" ", "stop", count + 1)
    assert run(["<pad> f"], [*words, special, *words])[:2] == (" film", "stop")
    # Without it as a stop it is not shown.
    text, reason, _ = run(["never"], [*words, special, *words])
    assert text == " film film" and reason is None
    # The model's end comes before a stop.
    end = model.decoder_spec.eos_token_ids[0]
    assert run(["</s>"], [*words, end]) == (" film", "eos", count + 1)


def test_the_tokenizers_end_ends_a_text(tmp_path: Path) -> None:
    folder = says(tmp_path, PIECES.index("▁ab"), eos_token="▁ab")
    (answer,) = loaded(folder).generate_many(["a"], 5)
    assert (answer.text, answer.finish_reason, answer.new_tokens) == ("", "eos", 0)


@settings(max_examples=200, deadline=None)
@given(
    pieces=st.lists(st.tuples(st.text("abc", max_size=4), st.booleans()), max_size=12),
    stop=st.lists(st.text("abc", min_size=1, max_size=5), max_size=3),
)
def test_hidden_text_is_looked_at_and_not_shown(pieces: list[tuple[str, bool]], stop: list[str]) -> None:
    filtered = StopFilter(stop)
    shown = "".join(filtered.add(text, hidden) for text, hidden in pieces) + filtered.finish()
    whole = "".join(text for text, _ in pieces)
    visible = "".join(("0" if hidden else "1") * len(text) for text, hidden in pieces)
    assert filtered.stopped == any(s in whole for s in stop)
    seen = ["".join(c for i, c in enumerate(whole[:end]) if visible[i] == "1") for end in range(len(whole) + 1)]
    ends = [end for end, text in enumerate(seen) if text == shown]
    assert ends
    if filtered.stopped:
        assert any(whole.startswith(s, end) for s in stop for end in ends)
    else:
        assert len(whole) in ends


# -- sampling --------------------------------------------------------------------

TINY = (5e-324, 1e-320, 1e-310, 1e-300, 1e-45, 1e-30)


@pytest.mark.parametrize("temperature", [*TINY, np.float32(1e-38), 1e-3])
def test_tiny_temperatures_are_greedy(temperature: float) -> None:
    logits = (np.random.default_rng(0).standard_normal(300) * 3).astype(np.float32)
    for options in (Sampling(temperature, seed=0), Sampling(temperature, 5, 0.9, 0.1, seed=0)):
        ids, probabilities = distribution(logits, options)
        assert np.isfinite(probabilities).all() and probabilities.sum() == pytest.approx(1)
        assert Sampler(options).choose(logits, []) == int(np.argmax(logits)) == ids[0]


def test_equal_logits_share_at_any_temperature() -> None:
    logits = np.array([0.0, 2.0, -np.inf, 2.0], np.float32)
    for temperature in (*TINY, 1e300):
        ids, probabilities = distribution(logits, Sampling(temperature))
        found = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
        assert found[1] == found[3] and found[2] == 0
    sampler = Sampler(Sampling(1e-320, seed=0))
    assert {sampler.choose(logits, []) for _ in range(50)} == {1, 3}


@pytest.mark.parametrize("penalty", [5e-324, 1e-46, 1e-300, 1e30, 1e300])
@pytest.mark.parametrize("temperature", [0.0, 1e-320, 1.0])
def test_penalties_at_the_edge_of_numbers(penalty: float, temperature: float) -> None:
    logits = np.array([2.0, 1.9, 0.0, -1.1], np.float32)
    sampler = Sampler(Sampling(temperature, repetition_penalty=penalty, seed=0))
    for seen in ([0], [0, 1, 2, 3], [2]):
        assert 0 <= sampler.choose(logits, seen) < 4
    if temperature != 1:
        # A positive logit stays one, however small.
        assert sampler.choose(logits, [0, 1]) == 0


@pytest.mark.parametrize(
    "options",
    [{"temperature": 10**400}, {"temperature": True}, {"top_p": 10**400}, {"repetition_penalty": 10**400}],
)
def test_numbers_of_hundreds_of_digits_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Sampling(**options)
