"""OpenAI's routes for texts: /v1/completions and /v1/chat/completions, whole or as server-sent events.

What cannot be done (several choices, log probabilities, tools, penalties of OpenAI's kind) is refused, not ignored.
Besides OpenAI's fields they take top_k, min_p and repetition_penalty.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from approxrt.runtime.generation import Request as TextRequest
from approxrt.runtime.sampling import Sampling
from approxrt.serving.errors import RequestError, TooLarge
from approxrt.serving.generator import Growing, Piece
from approxrt.serving.registry import ServedDecoder
from approxrt.serving.routes.common import Body, TokenId, registry_of, reply
from approxrt.serving.routes.route import JsonRoute
from approxrt.serving.watch import while_connected

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)

REASONS = {"eos": "stop", "stop": "stop", "length": "length"}


class StreamOptions(Body):
    include_usage: bool = False


class TextBody(Body):
    """What both routes share; `temperature` and `max_tokens` have OpenAI's defaults."""

    model: str | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: str | list[str] | None = None
    seed: int | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    n: int | None = None
    logprobs: bool | int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    def sampling(self) -> Sampling:
        """Raises InputError and RequestError for what cannot be done."""
        for name, value, plain in (
            ("n", self.n, 1),
            ("logprobs", self.logprobs, False),
            ("frequency_penalty", self.frequency_penalty, 0),
            ("presence_penalty", self.presence_penalty, 0),
            ("logit_bias", self.logit_bias or None, None),
        ):
            if value is not None and value != plain:
                raise RequestError(f"{name}={value!r} is not supported; leave it out")
        return Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.repetition_penalty, self.seed)

    def stops(self) -> tuple[str, ...]:
        return () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionBody(TextBody):
    prompt: str | list[str] | list[TokenId] | list[list[TokenId]]
    max_tokens: int = 16
    echo: bool = False
    best_of: int | None = None


class Part(Body):
    type: str
    text: str | None = None


class ChatMessage(Body):
    role: str
    content: str | list[Part]


class ChatBody(TextBody):
    messages: list[ChatMessage]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[Any] | None = None
    response_format: dict[str, Any] | None = None


@router.post("/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """The texts that follow one or several prompts."""
    served = registry_of(request).decoder(body.model)
    if body.echo or (body.best_of or 1) != 1:
        raise RequestError("echo and best_of are not supported; leave them out")
    prompts: list[Any] = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
    if prompts and isinstance(prompts[0], int):
        prompts = [prompts]
    if not prompts:
        raise RequestError("prompt is an empty list: give at least one prompt")
    if len(prompts) > served.settings.max_inputs:
        raise TooLarge(f"{len(prompts)} prompts in one request; the limit is {served.settings.max_inputs}")
    requests = [served.model.request(prompt, body.max_tokens, body.sampling(), body.stops()) for prompt in prompts]
    return await _answer(request, served, requests, body, _CompletionForm())


@router.post("/chat/completions")
async def chat(request: Request, body: ChatBody) -> Response:
    """The assistant's answer to a conversation, through the model's chat template."""
    served = registry_of(request).decoder(body.model)
    if body.tools or (body.response_format or {}).get("type", "text") != "text":
        raise RequestError("tools and response_format are not supported; leave them out")
    messages = [{"role": message.role, "content": _content(message, i)} for i, message in enumerate(body.messages)]
    ids = served.model.tokenize(messages)
    wanted = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    # Without a number the answer may take what the context has left.
    room = max(1, served.model.decoder_spec.max_positions - len(ids) + 1)
    made = served.model.request(ids, room if wanted is None else wanted, body.sampling(), body.stops())
    return await _answer(request, served, [made], body, _ChatForm())


def _content(message: ChatMessage, index: int) -> str:
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise RequestError(f"messages[{index}] has a part of type {part.type[:40]!r}; only text is understood")
    return "".join(part.text or "" for part in message.content)


# -- answers ------------------------------------------------------------------


class _CompletionForm:
    """How /v1/completions words its answers."""

    prefix, whole, part = "cmpl-", "text_completion", "text_completion"

    def choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

    piece = choice

    def opening(self, index: int) -> dict[str, Any] | None:
        return None


class _ChatForm:
    """How /v1/chat/completions does."""

    prefix, whole, part = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": reason}

    def piece(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text} if text else {}, "logprobs": None, "finish_reason": reason}

    def opening(self, index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}


async def _answer(
    request: Request, served: ServedDecoder, requests: list[TextRequest], body: TextBody, form: Any
) -> Response:
    head = {"id": f"{form.prefix}{uuid.uuid4().hex}", "created": int(time.time()), "model": served.name}
    # All are admitted before the first byte goes out, so that a full queue is still an error of its own.
    texts: list[Growing] = []
    try:
        texts += (served.generator.admit(made) for made in requests)
    except BaseException:
        _leave(texts)
        raise
    read = sum(len(made.prompt) for made in requests)
    if body.stream:
        usage = body.stream_options is not None and body.stream_options.include_usage
        events = _events(texts, {**head, "object": form.part}, form, read, usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    finished = await while_connected(request, _collect(texts))
    choices = [form.choice(i, text, REASONS[last.finish_reason]) for i, (text, last) in enumerate(finished)]
    written = sum(last.new_tokens for _, last in finished)
    return reply({**head, "object": form.whole, "choices": choices, "usage": _usage(read, written)})


async def _collect(texts: list[Growing]) -> list[tuple[str, Any]]:
    """(text, last piece) of each. All grow together; they are read one after the other."""
    finished = []
    try:
        for pieces in texts:
            parts: list[Piece] = [piece async for piece in pieces]
            finished.append(("".join(piece.text for piece in parts), parts[-1]))
    finally:
        _leave(texts)
    return finished


def _leave(texts: list[Growing]) -> None:
    for text in texts:
        text.leave()


async def _events(
    texts: list[Growing], head: dict[str, Any], form: Any, read: int, usage: bool
) -> AsyncIterator[bytes]:
    written = 0
    try:
        for index, pieces in enumerate(texts):
            opening = form.opening(index)
            if opening is not None:
                yield _event({**head, "choices": [opening]})
            last: Piece | None = None
            async for piece in pieces:
                last = piece
                if piece.text:
                    yield _event({**head, "choices": [form.piece(index, piece.text, None)]})
            assert last is not None and last.finish_reason is not None
            written += last.new_tokens
            yield _event({**head, "choices": [form.piece(index, "", REASONS[last.finish_reason])]})
        if usage:
            yield _event({**head, "choices": [], "usage": _usage(read, written)})
        yield b"data: [DONE]\n\n"
    except Exception as error:
        # The status has gone out as 200: the error is an event, and there is no [DONE].
        kind = "server_error" if not isinstance(error, RequestError) else error.kind
        message = str(error) if isinstance(error, RequestError) else "internal error; the server's log has it"
        yield _event({"error": {"message": message, "type": kind, "param": None, "code": None}})
        if not isinstance(error, RequestError):
            raise
    finally:
        _leave(texts)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
