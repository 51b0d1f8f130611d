"""OpenAI's bodies, answered as OpenAI and llama.cpp answer them or refused: null fields, limits, seeds, messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from decoders import CHAT_TEMPLATE, build_decoder

pytest.importorskip("torch", reason="small checkpoints are made with transformers, which needs torch")
pytest.importorskip("fastapi", reason="the server needs the extra 'serve'")

from fastapi.testclient import TestClient

import approxrt
from approxrt.runtime.decoder_model import DecoderModel
from approxrt.serving.app import create_app
from approxrt.serving.routes.openai_bodies import NEUTRAL
from approxrt.serving.routes.openai_messages import ChatMessage, conversation

PROMPT = "the quick brown fox"
CHAT = [{"role": "user", "content": "the price of bread"}]
COMPLETION = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
TOOLS_TEMPLATE = (
    "{% for m in messages %}{{ m.role }}:{% if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.name }}"
    "({{ c.function.arguments.a }}){% endfor %}{% endif %}{{ m.content }}|{% endfor %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DecoderModel:
    folder = tmp_path_factory.mktemp("decoder")
    checkpoint = build_decoder("llama", folder / "c", positions=256)
    loaded = approxrt.load(approxrt.convert(checkpoint, folder / "a"), threads=1)
    assert isinstance(loaded, DecoderModel)
    return loaded


@pytest.fixture(scope="module")
def client(model: DecoderModel) -> Iterator[TestClient]:
    with TestClient(create_app([("writer", model)]), base_url="http://127.0.0.1") as found:
        yield found


def complete(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json=COMPLETION | fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chat(client: TestClient, messages: list[dict[str, Any]] = CHAT, **fields: Any) -> str:
    body = {"messages": messages, "max_tokens": 8, "temperature": 0} | fields
    answer = client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


def text(client: TestClient, **fields: Any) -> str:
    return str(complete(client, **fields)["choices"][0]["text"])


def error(client: TestClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    return answer.json()["error"]


# -- fields -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["model", "user", "stop", "stream", "stream_options", "top_p", "top_k", "seed", "min_p", *sorted(NEUTRAL)],
)
def test_null_is_the_default(client: TestClient, name: str) -> None:
    assert text(client, **{name: None}) == text(client)


def test_null_limits(client: TestClient) -> None:
    assert complete(client, max_tokens=None)["usage"]["completion_tokens"] <= 16
    assert text(client, max_tokens=None) == text(client, max_tokens=16)
    drawn = [text(client, temperature=value, seed=3) for value in (None, 1.0)]
    assert drawn[0] == drawn[1]
    assert chat(client, max_tokens=None, max_completion_tokens=5) == chat(client, max_tokens=5)


@pytest.mark.parametrize("name", sorted(NEUTRAL))
def test_what_asks_for_nothing_is_answered(client: TestClient, name: str) -> None:
    for value in NEUTRAL[name]:
        assert text(client, **{name: value}) == text(client)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", {"suffix": "blue."}, "suffix"),
        ("completions", {"logprobs": 0}, "logprobs"),
        ("completions", {"logprobs": True}, "logprobs"),
        ("completions", {"best_of": 2}, "best_of"),
        ("completions", {"n": 2}, "n"),
        ("completions", {"n_predict": 5}, "n_predict"),
        ("completions", {"grammar": "root ::= a"}, "grammar"),
        ("completions", {"stream_options": {"x": 1}}, "stream_options.x"),
        ("chat/completions", {"tool_choice": "required"}, "tool_choice"),
        ("chat/completions", {"functions": [{"name": "f", "parameters": {}}]}, "functions"),
        ("chat/completions", {"tools": [{"type": "function"}]}, "tools"),
        ("chat/completions", {"top_logprobs": 2}, "top_logprobs"),
        ("chat/completions", {"top_logprobs": 0}, "top_logprobs"),
        ("chat/completions", {"continue_final_message": True}, "continue_final_message"),
        ("chat/completions", {"ignore_eos": True}, "ignore_eos"),
        ("chat/completions", {"min_tokens": 8}, "min_tokens"),
        ("chat/completions", {"reasoning_effort": "low"}, "reasoning_effort"),
        ("chat/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("chat/completions", {"messages": [CHAT[0] | {"x": 1}]}, "messages[0].x"),
        ("chat/completions", {"prompt": "a"}, "prompt"),
    ],
)
def test_what_would_change_the_answer_is_refused(
    client: TestClient, path: str, fields: dict[str, Any], param: str
) -> None:
    body = {"prompt": PROMPT} if path == "completions" else {"messages": CHAT}
    found = error(client, path, body | fields)
    assert found["param"] == param and found["code"] == "unknown_parameter" and param in found["message"]


def test_sampling_at_its_ends(client: TestClient, model: DecoderModel) -> None:
    greedy = text(client)
    assert greedy == model.generate(PROMPT, max_new_tokens=8)
    # No share of the probability is the likeliest token alone, at any temperature.
    assert text(client, temperature=1.5, top_p=0, seed=1) == greedy
    assert text(client, temperature=0.9, top_k=-1, seed=1) == text(client, temperature=0.9, top_k=0, seed=1)
    assert text(client, temperature=1.5, seed=-7, max_tokens=16) == text(
        client, temperature=1.5, seed=-7, max_tokens=16
    )
    drawn = {text(client, temperature=3, seed=-1, max_tokens=16) for _ in range(6)}
    assert len(drawn) > 1
    assert "top_p is -0.1" in error(client, "completions", {"prompt": PROMPT, "top_p": -0.1})["message"]


def test_more_tokens_than_there_is_room_for(client: TestClient, model: DecoderModel) -> None:
    context = model.decoder_spec.max_positions
    for limit in (context * 10, -1):
        answer = complete(client, max_tokens=limit)
        usage = answer["usage"]
        ended = answer["choices"][0]["finish_reason"] == "stop"
        assert ended or usage["total_tokens"] == context + 1
        assert chat(client, max_tokens=limit) == chat(client, max_tokens=None)
    found = error(client, "completions", {"prompt": "rain " * context})
    assert found["code"] == "context_length_exceeded" and f"the model's context has {context}" in found["message"]
    found = error(client, "chat/completions", {"messages": [{"role": "user", "content": "rain " * context}]})
    assert found["code"] == "context_length_exceeded"
    for name in ("max_tokens", "temperature", "seed", "top_k"):
        assert error(client, "completions", {"prompt": PROMPT, name: True})["param"] == name
    for limit in (0, -2):
        found = error(client, "completions", {"prompt": PROMPT, "max_tokens": limit})
        assert found["param"] == "max_tokens" and f"max_tokens is {limit}" in found["message"]
    both = {"messages": CHAT, "max_tokens": 3, "max_completion_tokens": 4}
    assert "leave one out" in error(client, "chat/completions", both)["message"]
    assert chat(client, max_tokens=3, max_completion_tokens=3) == chat(client, max_tokens=3)


def test_an_embedding_beyond_the_context(tmp_path_factory: pytest.TempPathFactory) -> None:
    from families import build_checkpoint

    folder = tmp_path_factory.mktemp("embedder")
    checkpoint = build_checkpoint("bert", folder / "c", positions=32, plain=True, pooling="mean")
    with TestClient(
        create_app([("e", approxrt.load(approxrt.convert(checkpoint, folder / "a")))]), base_url="http://127.0.0.1"
    ) as other:
        found = error(other, "embeddings", {"input": "rain " * 100})
        assert found["code"] == "context_length_exceeded" and "the limit is 32" in found["message"]
        assert other.post("/embed", json={"inputs": "rain " * 100}).status_code == 413
        null = other.post("/v1/embeddings", json={"input": "a", "encoding_format": None, "dimensions": None})
        assert null.status_code == 200


# -- messages -----------------------------------------------------------------------


def shown(messages: list[dict[str, Any]], template: str = CHAT_TEMPLATE) -> list[dict[str, Any]]:
    return conversation([ChatMessage.model_validate(message) for message in messages], template)


def test_calls_of_tools_are_seen_by_the_model(client: TestClient, model: DecoderModel) -> None:
    messages = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    answered = [*messages, {"role": "tool", "tool_call_id": "1", "content": "3"}]
    # A template that shows no calls: they are in the text.
    assert shown(answered)[1:] == [
        {"role": "assistant", "content": '{"tool_calls": [{"name": "f", "arguments": {"a": 1}}]}'},
        {"role": "user", "content": '{"tool_response": "3"}'},
    ]
    assert chat(client, answered) == model.generate(shown(answered), max_new_tokens=8)
    empty = [*CHAT, {"role": "assistant", "content": ""}]
    assert model.tokenize(shown(messages)) != model.tokenize(shown(empty))
    # Two calls are told apart by their ids.
    two = [CALL, CALL | {"id": "2"}]
    several = shown([{"role": "assistant", "content": "so", "tool_calls": two}, answered[-1]])
    assert '"id": "2"' in several[0]["content"] and '"content": "so"' in several[0]["content"]
    assert several[1]["content"] == '{"tool_response": {"tool_call_id": "1", "content": "3"}}'
    # A template that shows them gets them, with arguments as an object.
    given = shown(answered, TOOLS_TEMPLATE)
    assert given[1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"a": 1}} and given[1]["content"] == ""
    assert given[2] == {"role": "tool", "content": "3", "tool_call_id": "1"}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user", "content": None}, "messages[0].content is null"),
        ({"role": "assistant", "content": None}, "messages[0].content is null"),
        ({"role": "user"}, "messages[0].content is null"),
        ({"role": "user", "content": "a", "tool_calls": [CALL]}, "only an assistant's message may"),
        ({"role": "user", "content": "a", "tool_call_id": "1"}, "only a tool's message may"),
        ({"role": "user", "content": "a", "name": "Ann"}, "messages[0].name is 'Ann'"),
        ({"role": "assistant", "content": "a", "function_call": {"name": "f"}}, "messages[0].function_call="),
        ({"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}, "messages[0].content[0].x=1"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": None}]}, "only text is understood"),
    ],
)
def test_messages_that_would_lose_something(client: TestClient, message: dict[str, Any], text: str) -> None:
    assert text in error(client, "chat/completions", {"messages": [message]})["message"]


def test_roles_and_names(client: TestClient, model: DecoderModel) -> None:
    system = {"role": "system", "content": "bread"}
    assert shown([system | {"role": "developer"}]) == [system]
    assert shown([system | {"role": "developer"}], "{{ 'developer' }}")[0]["role"] == "developer"
    named = {"role": "user", "content": "a", "name": "Ann"}
    assert shown([named], "{{ m.name }}") == [named]
    plain = {"refusal": None, "annotations": [], "tool_calls": []}
    assert shown([{"role": "assistant", "content": "a"} | plain]) == [{"role": "assistant", "content": "a"}]


def test_a_template_with_tools_renders_them(model: DecoderModel) -> None:
    from approxrt.runtime.chat.template import render_chat

    spec = dataclasses.replace(model.decoder_spec, chat_template=TOOLS_TEMPLATE)
    messages = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    assert render_chat(spec, shown(messages, TOOLS_TEMPLATE)) == "user:the price of bread|assistant:f(1)|"
