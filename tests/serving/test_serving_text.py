"""Completions and chats over a real socket with OpenAI's client: whole, streamed, side by side, refused, abandoned."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from decoders import build_decoder
from served import Address, running

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

import approxrt
from approxrt.runtime.decoder_model import DecoderModel

PROMPT = "the quick brown fox"
CHAT = [{"role": "user", "content": "the price of bread"}]
MISSING = "the client is not installed (extra 'clients')"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecoderModel:
    folder = tmp_path_factory.mktemp("decoder")
    loaded = approxrt.load(approxrt.convert(build_decoder("llama", folder / "c"), folder / "a"), threads=1)
    assert isinstance(loaded, DecoderModel)
    return loaded


@pytest.fixture(scope="module")
def server(model: DecoderModel) -> Iterator[Address]:
    with running({"writer": model}, max_sequences=4) as address:
        yield address


@pytest.fixture(scope="module")
def client(server: Address) -> Any:
    openai = pytest.importorskip("openai", reason=MISSING)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0)


def test_completion(client: Any, model: DecoderModel) -> None:
    want = model.generate(PROMPT, max_new_tokens=24)
    got = client.completions.create(model="writer", prompt=PROMPT, max_tokens=24, temperature=0)
    assert got.choices[0].text == want
    assert got.usage.prompt_tokens == len(model.tokenize(PROMPT))
    assert got.choices[0].finish_reason == ("length" if got.usage.completion_tokens == 24 else "stop")
    several = client.completions.create(model="writer", prompt=[PROMPT, "rain"], max_tokens=8, temperature=0)
    assert [c.text for c in several.choices] == [model.generate(p, max_new_tokens=8) for p in (PROMPT, "rain")]
    ids = client.completions.create(model="writer", prompt=model.tokenize(PROMPT), max_tokens=8, temperature=0)
    assert ids.choices[0].text == several.choices[0].text


def test_sampling_and_stops(client: Any, model: DecoderModel) -> None:
    options = {"temperature": 0.9, "top_p": 0.8, "seed": 5}
    want = model.generate(PROMPT, max_new_tokens=20, **options)
    extra = {"top_k": 7, "min_p": 0.01, "repetition_penalty": 1.2}
    assert client.completions.create(model="writer", prompt=PROMPT, max_tokens=20, **options).choices[0].text == want
    got = client.completions.create(model="writer", prompt=PROMPT, max_tokens=20, **options, extra_body=extra)
    assert got.choices[0].text == model.generate(PROMPT, max_new_tokens=20, **options, **extra)
    whole = model.generate(PROMPT, max_new_tokens=24)
    stop = whole[5:8]
    cut = client.completions.create(model="writer", prompt=PROMPT, max_tokens=24, temperature=0, stop=[stop])
    assert cut.choices[0].text == whole[: whole.index(stop)] and cut.choices[0].finish_reason == "stop"


def test_streams(client: Any, model: DecoderModel) -> None:
    want = model.generate(PROMPT, max_new_tokens=24)
    events = list(
        client.completions.create(
            model="writer",
            prompt=PROMPT,
            max_tokens=24,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(e.choices[0].text for e in events if e.choices) == want
    assert events[-2].choices[0].finish_reason in ("length", "stop")
    assert events[-1].usage.completion_tokens <= 24
    assert len(events) > 5


def test_chat(client: Any, model: DecoderModel) -> None:
    want = model.generate(CHAT, max_new_tokens=16)
    got = client.chat.completions.create(model="writer", messages=CHAT, max_tokens=16, temperature=0)
    assert got.choices[0].message.content == want and got.choices[0].message.role == "assistant"
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "the price "}, {"type": "text", "text": "of bread"}]}
    ]
    again = client.chat.completions.create(model="writer", messages=parts, max_completion_tokens=16, temperature=0)
    assert again.choices[0].message.content == want
    stream = client.chat.completions.create(model="writer", messages=CHAT, max_tokens=16, temperature=0, stream=True)
    events = list(stream)
    assert events[0].choices[0].delta.role == "assistant"
    assert "".join(event.choices[0].delta.content or "" for event in events) == want


def test_texts_side_by_side_are_not_crossed(client: Any, model: DecoderModel) -> None:
    prompts = [f"{PROMPT} {'rain ' * (i % 5)}town" for i in range(12)]
    want = [model.generate(prompt, max_new_tokens=16) for prompt in prompts]

    def one(i: int) -> str:
        stream = client.completions.create(
            model="writer", prompt=prompts[i], max_tokens=16, temperature=0, stream=bool(i % 2)
        )
        return "".join(e.choices[0].text for e in stream) if i % 2 else str(stream.choices[0].text)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, range(12))) == want


@pytest.mark.parametrize(
    ("path", "change", "status", "message"),
    [
        ("completions", {"prompt": ""}, 400, "gives no tokens"),
        ("completions", {"prompt": []}, 400, "empty list"),
        ("completions", {"prompt": [[]]}, 400, "at least one"),
        ("completions", {"prompt": [99999]}, 400, "the vocabulary has ids 0 to"),
        ("completions", {"max_tokens": 0}, 400, "max_tokens is 0"),
        ("completions", {"max_tokens": -3}, 400, "max_tokens is -3"),
        ("completions", {"prompt": "rain " * 4000}, 400, "the model's context has"),
        ("completions", {"temperature": -1}, 400, "temperature is -1"),
        ("completions", {"top_p": -1}, 400, "top_p is -1"),
        ("completions", {"stop": [""]}, 400, "stop"),
        ("completions", {"n": 3}, 400, "n=3 is not supported here"),
        ("completions", {"logprobs": 2}, 400, "logprobs=2 is not supported here"),
        ("completions", {"echo": True}, 400, "echo=True is not supported here"),
        ("completions", {"frequency_penalty": 0.5}, 400, "frequency_penalty=0.5 is not supported here"),
        ("chat/completions", {"messages": []}, 400, "at least one"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "only text"),
        ("chat/completions", {"tools": [{"type": "function"}]}, 400, "tools=[{"),
        ("chat/completions", {"messages": "hello"}, 400, "messages"),
        ("embeddings", {"input": "a"}, 400, "'writer' generates text"),
    ],
)
def test_bad_requests_say_why(server: Address, path: str, change: dict[str, Any], status: int, message: str) -> None:
    body = {"completions": {"prompt": PROMPT}, "chat/completions": {"messages": CHAT}}.get(path, {}) | change
    got, content, _ = server.ask("POST", f"/v1/{path}", body)
    assert got == status and message in content["error"]["message"], content


def test_about(server: Address) -> None:
    assert server.ask("GET", "/v1/models")[1]["data"][0]["id"] == "writer"
    assert "generator" in server.ask("GET", "/info")[1]["model_type"]
    assert server.ask("POST", "/predict", {"inputs": "a"})[0] == 400
    assert server.ask("GET", "/v2/models/writer")[0] == 400


def test_metrics_count_the_tokens_that_are_read(server: Address, model: DecoderModel) -> None:
    def read() -> float:
        lines = server.ask("GET", "/metrics")[1].decode().splitlines()
        return next(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith('approxrt_tokens_total{model="writer"'))

    before = read()
    body = {"prompt": PROMPT, "max_tokens": 6, "temperature": 0}
    usage = server.ask("POST", "/v1/completions", body)[1]["usage"]
    # The last new token is never read; a text that its end token ends has read all that it shows.
    new = usage["completion_tokens"] - (usage["completion_tokens"] == 6)
    assert read() - before == usage["prompt_tokens"] + new


class Slow:
    """An engine that steps when it may."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.gate, self.widths = engine, threading.Event(), []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def step(self, caches: list[Any], pieces: list[Any]) -> Any:
        assert self.gate.wait(30)
        self.widths.append(len(caches))
        return self.engine.step(caches, pieces)


def test_a_reader_that_leaves_makes_room(model: DecoderModel, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(model.engine)
    monkeypatch.setattr(type(model), "engine", property(lambda self: slow))
    with running({"m": model}, max_sequences=1, max_queue=1) as address:
        body = {"prompt": PROMPT, "max_tokens": 100, "temperature": 0, "stream": True}
        leaver = http.client.HTTPConnection(address.host, address.port)
        leaver.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
        assert leaver.getresponse().status == 200
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(address.ask, "POST", "/v1/completions", body | {"stream": False, "max_tokens": 3})
            _until(lambda: 'queue_size{model="m"} 1.0' in address.ask("GET", "/metrics")[1].decode())
            status, content, headers = address.ask("POST", "/v1/completions", body)
            assert status == 429 and "retry-after" in headers and "1 texts wait" in content["error"]["message"]
            leaver.close()
            time.sleep(0.2)
            slow.gate.set()
            status, content, _ = waiting.result(30)
            assert status == 200 and content["usage"]["completion_tokens"] <= 3
        assert len(slow.widths) < 60  # not the hundred steps that nobody would have read


def _until(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
