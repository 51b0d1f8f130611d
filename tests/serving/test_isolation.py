"""What goes wrong with one text ends that one; those that share its pass or steps have what they would have had."""

from __future__ import annotations

import concurrent.futures
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from artifact_edits import rewrite_tokenizer
from decoders import build_decoder
from served import build_models, load_models, running

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

import approxrt
from approxrt.errors import NumericsError, TokenizerError
from approxrt.runtime.decoder_model import DecoderModel
from approxrt.runtime.generation import sequences
from approxrt.runtime.generation.sampling import Sampler
from approxrt.runtime.model import Model

TEXTS = ["a good film", "two hours that nobody will get back", "rain"]
PROMPTS = ["the quick brown fox", "rain in the town", "the price of bread", "a good film"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_models(build_models(tmp_path_factory.mktemp("models")))["classifier"]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> DecoderModel:
    folder = tmp_path_factory.mktemp("decoder")
    loaded = approxrt.load(approxrt.convert(build_decoder("llama", folder / "c"), folder / "a"), threads=1)
    assert isinstance(loaded, DecoderModel)
    return loaded


class Poisoned:
    """A model whose answers to the text "rain" are spoilt, in a pass that takes a while."""

    def __init__(self, model: Model, spoil: Any) -> None:
        self.model, self.spoil, self.together = model, spoil, 0
        self.rain = model.encode("rain").ids[0]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def forward_ids(self, ids: Any, types: Any, output: str) -> np.ndarray:
        time.sleep(0.05)
        rows = self.model.forward_ids(ids, types, output)
        found = [i for i, own in enumerate(ids) if own == self.rain]
        if found and len(ids) > 1:
            self.together += 1
        return self.spoil(rows, found) if found else rows


def _nan(rows: np.ndarray, found: list[int]) -> np.ndarray:
    rows = rows.copy()
    rows[found, 0] = np.nan
    return rows


def _raise(rows: np.ndarray, found: list[int]) -> np.ndarray:
    raise MemoryError("no room for it")


@pytest.mark.parametrize(("spoil", "said"), [(_nan, "NaN"), (_raise, "internal error")])
def test_a_text_that_is_spoilt_spoils_no_other(classifier: Model, spoil: Any, said: str) -> None:
    poisoned = Poisoned(classifier, spoil)
    with running({"m": poisoned}) as address, concurrent.futures.ThreadPoolExecutor(12) as pool:
        calls = [(text, pool.submit(address.ask, "POST", "/predict", {"inputs": text})) for text in TEXTS * 4]
        for text, call in calls:
            status, content, _ = call.result()
            if text == "rain":
                assert status == 500 and said in content["error"]
            else:
                best = classifier.classify(text)[0]
                assert status == 200 and content[0] == {"score": best.score, "label": best.label}
        assert poisoned.together  # they did share passes
        metrics = address.ask("GET", "/metrics")[1].decode()
        kind = "NumericsError" if spoil is _nan else "MemoryError"
        assert f'approxrt_failed_total{{error="{kind}",model="m"}} 4.0' in metrics


def test_a_model_that_gives_nan_is_an_error(classifier: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = classifier._engine
    forward = engine.forward
    monkeypatch.setattr(engine, "forward", lambda *a, **o: _nan(forward(*a, **o), [1]))
    for ask in (classifier.classify, classifier.logits):
        with pytest.raises(NumericsError, match="text 1: the model gives NaN"):
            ask(TEXTS)


# -- texts that grow ---------------------------------------------------------------


def _ask_all(address: Any, attack: dict[str, Any]) -> tuple[list[str], Any]:
    """(texts of PROMPTS, the attacker's answer), all under way together."""

    def ask(prompt: str, **more: Any) -> Any:
        body = {"prompt": prompt, "max_tokens": 40, "temperature": 0, **more}
        return address.ask("POST", "/v1/completions", body)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(ask, prompt) for prompt in PROMPTS]
        attacker = pool.submit(ask, "rain", **attack)
        texts = [call.result()[1]["choices"][0]["text"] for call in calls]
        return texts, attacker.result()


def test_a_sampler_that_fails_ends_its_text_alone(writer: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    want = [writer.generate(prompt, max_new_tokens=40) for prompt in PROMPTS]
    choose = Sampler.choose

    def failing(self: Sampler, logits: np.ndarray, seen: list[int]) -> int:
        if self.options.seed == 666:
            raise ZeroDivisionError("a sampler's own fault")
        return choose(self, logits, seen)

    monkeypatch.setattr(Sampler, "choose", failing)
    with running({"writer": writer}) as address:
        texts, (status, content, _) = _ask_all(address, {"seed": 666})
        assert texts == want
        assert status == 500 and "internal error" in content["error"]["message"]
        assert 'error="ZeroDivisionError"' in address.ask("GET", "/metrics")[1].decode()


def test_logits_that_say_nothing_end_their_text_alone(writer: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    want = [writer.generate(prompt, max_new_tokens=40) for prompt in PROMPTS]
    accept = sequences.Sequence.accept

    def spoilt(self: sequences.Sequence, logits: np.ndarray) -> str:
        return accept(self, np.full_like(logits, np.nan) if self.request.sampling.seed == 666 else logits)

    monkeypatch.setattr(sequences.Sequence, "accept", spoilt)
    with running({"writer": writer}) as address:
        texts, (status, content, _) = _ask_all(address, {"seed": 666})
        assert texts == want and status == 500 and "gives NaN" in content["error"]["message"]
    with pytest.raises(NumericsError):
        writer.generate("rain", max_new_tokens=4, temperature=1.0, seed=666)


def test_a_step_that_fails_is_taken_by_each_alone(writer: DecoderModel) -> None:
    """Others go on from where they were: what a failed step has written of their keys is forgotten."""
    want = [writer.generate(prompt, max_new_tokens=12) for prompt in PROMPTS]

    class Engine:
        def __init__(self, poison: Any) -> None:
            self.poison, self.failures = poison, 0

        def __getattr__(self, name: str) -> Any:
            return getattr(writer.engine, name)

        def step(self, caches: Any, tokens: Any) -> np.ndarray:
            rows = writer.engine.step(caches, tokens)  # has written all of them
            if self.poison in caches:
                self.failures += 1
                raise RuntimeError("one of them cannot be")
            return rows

    begun = [writer.begin(writer.request(prompt, 12)) for prompt in [*PROMPTS, "rain"]]
    engine = Engine(begun[-1].cache)
    texts = {id(sequence): "" for sequence in begun}
    while any(sequence.finish_reason is None for sequence in begun):
        for sequence, text in sequences.step(engine, [s for s in begun if s.finish_reason is None]):  # type: ignore[arg-type]
            texts[id(sequence)] += text
    assert engine.failures == 2  # together, and alone
    assert isinstance(begun[-1].error, RuntimeError) and begun[-1].finish_reason == "error"
    assert [texts[id(sequence)] for sequence in begun[:-1]] == want


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e308])
def test_temperatures_far_out_give_a_token(writer: DecoderModel, temperature: float) -> None:
    text = writer.generate("rain", max_new_tokens=5, temperature=temperature, top_p=0.9, seed=1)
    if temperature < 1:
        assert text == writer.generate("rain", max_new_tokens=5)  # without equals, the likeliest ones


# -- tokenizers ---------------------------------------------------------------------


def test_a_tokenizer_that_panics_is_an_error(classifier: Model, tmp_path: Path) -> None:
    """A pattern that backtracks without end makes the library panic: no Exception, but a BaseException."""

    def edit(tokenizer: dict[str, Any]) -> None:
        pattern = {"type": "Split", "pattern": {"Regex": "(x+x+)+y"}, "behavior": "Isolated", "invert": False}
        tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pattern, tokenizer["pre_tokenizer"]]}

    broken = approxrt.load(rewrite_tokenizer(classifier.path, tmp_path / "a", edit), threads=1)
    with pytest.raises(TokenizerError, match="the artifact's tokenizer fails on a text"):
        broken.classify("x" * 40)
    with running({"m": broken}) as address:
        status, content, _ = address.ask("POST", "/predict", {"inputs": "x" * 40})
        assert status == 500 and "tokenizer fails" in content["error"]
        assert str(tmp_path) not in json.dumps(content)
        assert address.ask("POST", "/predict", {"inputs": "rain"})[0] == 200
