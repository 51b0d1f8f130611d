"""OpenAI's messages as a chat template takes them.

A template that knows tool calls gets them as they are. For one that does not they are written into the text as JSON,
much as llama.cpp does: the model then sees what was called and what came back, instead of a conversation with holes in
it. The calls' ids are written where there is more than one call, which they tell apart.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field

from approxrt.serving.errors import RequestError
from approxrt.serving.routes.body import Body, Neutral


class Part(Body):
    type: str
    text: str | None = None

    # Notes of the server's own that clients send back.
    plain: ClassVar[Neutral] = {"annotations": ([],)}


class Function(Body):
    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Body):
    function: Function
    id: str | None = None
    type: str | None = None

    # The place in a stream that a client may have kept.
    plain: ClassVar[Neutral] = {"index": tuple(range(128))}


class ChatMessage(Body):
    role: str
    content: str | Annotated[list[Part], Field(fail_fast=True)] | None = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True)] | None = None
    tool_call_id: str | None = None

    plain: ClassVar[Neutral] = {"annotations": ([],), "refusal": ("",)}

    def refuse_unknown(self, place: str = "") -> None:
        """Refuse unknown fields of parts and calls, too."""
        super().refuse_unknown(place)
        for i, part in enumerate(self.content if isinstance(self.content, list) else []):
            part.refuse_unknown(f"{place}content[{i}].")
        for i, call in enumerate(self.tool_calls or []):
            call.refuse_unknown(f"{place}tool_calls[{i}].")
            call.function.refuse_unknown(f"{place}tool_calls[{i}].function.")


def conversation(messages: Sequence[ChatMessage], template: str) -> list[dict[str, Any]]:
    """The messages with str content, for a chat template. Raises RequestError for what it would not show."""
    with_ids = sum(len(message.tool_calls or []) for message in messages) > 1
    return [_message(message, f"messages[{i}]", template, with_ids) for i, message in enumerate(messages)]


def _message(message: ChatMessage, place: str, template: str, with_ids: bool) -> dict[str, Any]:
    content = _content(message, place)
    role = message.role
    if role == "developer" and not _mentions(template, "developer"):
        role = "system"  # OpenAI's newer name for it
    if message.name is not None and not _mentions(template, "name"):
        raise RequestError(f"{place}.name is {message.name[:40]!r}; this model's chat template does not show names")
    own = {} if message.name is None else {"name": message.name}
    if message.tool_calls and role != "assistant":
        raise RequestError(f"{place} has tool_calls; only an assistant's message may")
    if message.tool_call_id is not None and role != "tool":
        raise RequestError(f"{place} has a tool_call_id; only a tool's message may")
    calls = [_call(call) for call in message.tool_calls or []]
    if not _mentions(template, "tool_calls"):
        if calls:
            written: dict[str, Any] = {
                "tool_calls": [call["function"] | ({"id": call["id"]} if with_ids else {}) for call in calls]
            }
            return {"role": role, "content": _json(written | ({"content": content} if content else {})), **own}
        if role == "tool":
            response = {"tool_call_id": message.tool_call_id, "content": content} if with_ids else content
            return {"role": "user", "content": _json({"tool_response": response}), **own}
        return {"role": role, "content": content, **own}
    if calls:
        own["tool_calls"] = calls  # type: ignore[assignment]
    if message.tool_call_id is not None:
        own["tool_call_id"] = message.tool_call_id
    return {"role": role, "content": content, **own}


def _content(message: ChatMessage, place: str) -> str:
    if message.content is None:
        if message.role == "assistant" and message.tool_calls:
            return ""
        raise RequestError(f"{place}.content is null; only a message with tool calls may have none", param="messages")
    if isinstance(message.content, str):
        return message.content
    for part in message.content:
        if part.type != "text" or part.text is None:
            raise RequestError(
                f"{place} has a part of type {part.type[:40]!r}; only text is understood", param="messages"
            )
    return "".join(part.text or "" for part in message.content)


def _call(call: ToolCall) -> dict[str, Any]:
    """Return the call with its arguments as an object, which templates write in their own way."""
    arguments: Any = call.function.arguments
    if isinstance(arguments, str):
        with contextlib.suppress(ValueError):  # what a model wrote may be no JSON; then it is shown as it is
            arguments = json.loads(arguments)
    return {"type": "function", "id": call.id, "function": {"name": call.function.name, "arguments": arguments}}


def _mentions(template: str, word: str) -> bool:
    return re.search(rf"\b{word}\b", template) is not None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
