"""OpenAI's routes for texts: /v1/completions and /v1/chat/completions, whole or as server-sent events.

What a body may say is in `approxrt.serving.routes.openai_bodies`.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from approxrt.runtime.generation.sequences import Request as TextRequest
from approxrt.serving.disconnect import while_connected
from approxrt.serving.errors import ContextOverflow, RequestError, TooLarge
from approxrt.serving.generator import Growing, Piece
from approxrt.serving.registry import ServedDecoder
from approxrt.serving.routes.common import registry_of, reply
from approxrt.serving.routes.openai_bodies import ChatBody, CompletionBody, TextBody
from approxrt.serving.routes.openai_messages import conversation
from approxrt.serving.routes.route import JsonRoute

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JsonRoute)

REASONS = {"eos": "stop", "stop": "stop", "length": "length"}
STOP_CHARACTERS = 1000
COMPLETION_TOKENS = 16  # OpenAI's default of /v1/completions


@router.post("/completions")
async def completions(request: Request, body: CompletionBody) -> Response:
    """The texts that follow one or several prompts."""
    served = registry_of(request).decoder(body.model)
    prompts: list[Any] = [body.prompt] if isinstance(body.prompt, str) else list(body.prompt)
    if prompts and isinstance(prompts[0], int):
        prompts = [prompts]
    if not prompts:
        raise RequestError("prompt is an empty list: give at least one prompt", param="prompt")
    if len(prompts) > served.settings.max_inputs:
        raise TooLarge(f"{len(prompts)} prompts in one request; the limit is {served.settings.max_inputs}")
    requests = []
    for prompt in prompts:
        ids = await served.tokenize(prompt) if isinstance(prompt, str) else prompt
        requests.append(_request(served, ids, body, COMPLETION_TOKENS))
    return await _answer(request, served, requests, body, _CompletionForm())


@router.post("/chat/completions")
async def chat(request: Request, body: ChatBody) -> Response:
    """The assistant's answer to a conversation, through the model's chat template."""
    served = registry_of(request).decoder(body.model)
    ids = await served.tokenize(conversation(body.messages, served.model.decoder_spec.chat_template or ""))
    # Without a number the answer may take what the context has left.
    return await _answer(request, served, [_request(served, ids, body, None)], body, _ChatForm())


def _request(served: ServedDecoder, ids: list[int], body: TextBody, default: int | None) -> TextRequest:
    """A text of at most as many tokens as are asked for, or as the context has room for. Raises ContextOverflow."""
    context, stops = served.model.decoder_spec.max_positions, body.stops()
    most = served.settings.max_stops
    if len(stops) > most:
        raise RequestError(f"stop has {len(stops)} strings; the limit is {most}: give fewer", param="stop")
    if any(len(stop) > STOP_CHARACTERS for stop in stops):
        longest = max(map(len, stops))
        raise RequestError(f"stop has a string of {longest} characters; the limit is {STOP_CHARACTERS}", param="stop")
    if len(ids) > context:
        raise ContextOverflow(f"the prompt has {len(ids)} tokens; the model's context has {context}: shorten it")
    # The last new token is not read again.
    room = context - len(ids) + 1
    wanted = body.new_tokens()
    wanted = default if wanted is None else wanted
    return served.model.request(ids, room if wanted is None else min(wanted, room), body.sampling(), stops)


# -- answers ------------------------------------------------------------------


class _CompletionForm:
    """Say how /v1/completions words its answers."""

    prefix, whole, part = "cmpl-", "text_completion", "text_completion"

    def choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason}

    piece = choice

    def opening(self, index: int) -> dict[str, Any] | None:
        return None


class _ChatForm:
    """Say how /v1/chat/completions does."""

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
        usage = body.stream_options is not None and body.stream_options.include_usage is True
        events = _events(texts, {**head, "object": form.part}, form, read, usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    finished = await while_connected(request, _collect(texts))
    choices = [form.choice(i, text, REASONS[last.finish_reason]) for i, (text, last) in enumerate(finished)]
    written = sum(last.new_tokens for _, last in finished)
    return reply({**head, "object": form.whole, "choices": choices, "usage": _usage(read, written)})


async def _collect(texts: list[Growing]) -> list[tuple[str, Any]]:
    """Return (text, last piece) of each. All grow together; they are read one after the other."""
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
        yield _event({"error": {"message": message, "type": kind, "param": None, "code": getattr(error, "code", None)}})
        if not isinstance(error, RequestError):
            raise
    finally:
        _leave(texts)


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _usage(read: int, written: int) -> dict[str, int]:
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
