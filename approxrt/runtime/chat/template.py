"""A conversation as the tokens that the model was trained on, by the artifact's chat template.

The template comes from a stranger and runs in `approxrt.runtime.chat.sandbox`. What people say in a conversation is not
the template's: where it spells a control token, such as <|im_end|>, it is marked before rendering, and is text in the
end. So nobody can close their own turn and open another's.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from approxrt.artifact.spec.decoder import DecoderSpec
from approxrt.errors import InputError, MissingDependencyError, UnsupportedTaskError
from approxrt.runtime.long_text import encode_apart

Messages = Sequence[Mapping[str, Any]]
_MAX_NESTING = 32
# Characters that nobody uses: of the second plane for private use.
_PRIVATE = range(0x100000, 0x10FFFE)
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Conversation:
    """Messages with what else a chat template may be given; names and meanings are those of transformers.

    messages               [{"role": "user", "content": "..."}, ...]
    tools, documents       lists of objects, or None: there are none
    add_generation_prompt  end with the beginning of the assistant's turn
    options                more names for the template, such as {"enable_thinking": False}
    control_tokens         True: a control token that a message spells is one, as in transformers; else it is text
    """

    messages: Messages
    tools: Sequence[Mapping[str, Any]] | None = None
    documents: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    control_tokens: bool = False


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    `marks` are the two characters that stand about each control token of `text` that is text; "" where there is none.
    """

    text: str
    marks: str = ""


def render_chat(spec: DecoderSpec, messages: Messages | Conversation) -> str:
    """The prompt, as text, for the assistant's next answer to `messages`: [{"role": "user", "content": "..."}, ...].

    Raises UnsupportedTaskError when the artifact has no template, InputError for messages that it does not take and for
    a template that asks for more than the limits of `chat_sandbox`.
    """
    return render(spec, messages, ()).text


def render(spec: DecoderSpec, messages: Messages | Conversation, control_tokens: Sequence[str]) -> Rendered:
    """The same, with `control_tokens` that messages spell marked as text."""
    given = messages if isinstance(messages, Conversation) else Conversation(messages)
    values: dict[str, Any] = {
        "messages": _check(given.messages),
        "tools": _plain(given.tools, "tools"),
        "documents": _plain(given.documents, "documents"),
        **{str(name): _plain(value, f"options[{name!r}]") for name, value in given.options.items()},
    }
    if not spec.chat_template:
        raise UnsupportedTaskError("the artifact has no chat template: give the prompt as plain text")
    marks = ""
    if control_tokens and not given.control_tokens:
        found = re.compile("|".join(re.escape(token) for token in sorted(control_tokens, key=len, reverse=True)))
        spoken = _strings(values)
        if any(found.search(text) for text in spoken):
            marks = _free_characters(spec.chat_template + "".join(spoken))
            values = {name: _mark(value, found, marks) for name, value in values.items()}
    values["add_generation_prompt"] = bool(given.add_generation_prompt)
    return Rendered(_rendered(spec, values, marks), marks)


def _rendered(spec: DecoderSpec, values: Mapping[str, Any], marks: str) -> str:
    try:
        from approxrt.runtime.chat.limits import metered
    except ImportError:
        raise MissingDependencyError("jinja2", "chat", "a conversation") from None
    size = len(spec.chat_template) + sum(map(len, _strings(values)))
    try:
        with metered(size, marks) as meter:
            pieces = []
            for piece in _compiled(spec.chat_template).generate(**{**spec.special_tokens, **values}):
                pieces.append(piece)
                meter.tick(len(piece))
            return "".join(pieces)
    except Exception as error:
        # Of jinja2 or, from within an expression, of any kind.
        raise InputError(f"the chat template does not take these messages: {error or type(error).__name__}") from error


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    from approxrt.runtime.chat.sandbox import ChatEnvironment

    return ChatEnvironment().from_string(template)


class ChatTokenizer:
    """An artifact's tokenizer, with another beside it that knows no control tokens."""

    def __init__(self, whole: Any) -> None:
        self._whole = whole
        added = whole.get_added_tokens_decoder()
        self._special = {str(token.content): (i, token) for i, token in added.items() if token.special}
        self.control_tokens = tuple(self._special)

    def encode(self, rendered: Rendered) -> list[int]:
        """Token ids of a rendered conversation: the template's control tokens as such, marked ones as text.

        Text between two control tokens is one piece for the tokenizer, as it is everywhere. Raises InputError if the
        tokenizer makes a control token of text.
        """
        if not rendered.marks:
            whole: list[int] = encode_apart(self._whole, rendered.text).ids
            return whole
        ids: list[int] = []
        plain, strip = "", False
        for text, control in self._parts(rendered.text, rendered.marks):
            plain += text.lstrip() if strip and not plain else text
            if control is None:
                continue
            number, about = self._special[control]
            ids += self._as_text(plain.rstrip() if about.lstrip else plain)
            ids.append(number)
            plain, strip = "", about.rstrip
        return ids + self._as_text(plain)

    def _parts(self, text: str, marks: str) -> Iterator[tuple[str, str | None]]:
        """Return (text, the control token after it, if one is there); marks are left out."""
        token = "|".join(re.escape(token) for token in sorted(self._special, key=len, reverse=True))
        start, end = marks[0], marks[1]
        at = 0
        for found in re.finditer(f"{start}(?P<text>{token}){end}|[{start}{end}]|(?P<control>{token})", text):
            yield text[at : found.start()] + (found["text"] or ""), found["control"]
            at = found.end()
        yield text[at:], None

    def _as_text(self, text: str) -> list[int]:
        ids: list[int] = encode_apart(self._plain, text).ids if text else []
        made = {i for i, _ in self._special.values()} & set(ids)
        if made:
            raise InputError(
                f"a message spells a control token ({self._whole.id_to_token(min(made))!r}) that this tokenizer cannot "
                "keep as text; take it out"
            )
        return ids

    @functools.cached_property
    def _plain(self) -> Any:
        from tokenizers import Tokenizer

        data = json.loads(self._whole.to_str())
        data["added_tokens"] = [token for token in data["added_tokens"] if not token["special"]]
        data["post_processor"] = None
        return Tokenizer.from_str(json.dumps(data))


def _check(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise InputError("a conversation is a list of at least one {'role': ..., 'content': ...}")
    checked = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or not _has_content(message):
            raise InputError(
                f"message {i} is {message!r:.80}; it must have a str 'role' and a str 'content' "
                "(none with 'tool_calls')"
            )
        plain: dict[str, Any] = _plain(message, f"message {i}")
        said = next((plain[key] for key in _REASONING if plain.get(key) is not None), None)
        checked.append(plain if said is None else {"thinking": said, **plain, "reasoning_content": said})
    return checked


def _has_content(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, str) or (content is None and bool(message.get("tool_calls")))


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    """A copy that is JSON: nothing else reaches a template."""
    if depth > _MAX_NESTING:
        raise InputError(f"{where} is nested over {_MAX_NESTING} deep")
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(each, where, depth + 1) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(each, where, depth + 1) for each in value]
    raise InputError(f"{where} holds a {type(value).__name__}; texts, numbers, lists and objects are possible")


def _strings(value: Any) -> list[str]:
    """All texts within, names apart."""
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _strings(each)]


def _mark(value: Any, found: re.Pattern[str], marks: str) -> Any:
    if isinstance(value, str):
        return found.sub(lambda match: marks[0] + match[0] + marks[1], value)
    if isinstance(value, Mapping):
        return {key: _mark(each, found, marks) for key, each in value.items()}
    return [_mark(each, found, marks) for each in value] if isinstance(value, list) else value


def _free_characters(text: str) -> str:
    """Two characters that are not in `text`."""
    used = set(text)
    free = (chr(code) for code in _PRIVATE if chr(code) not in used)
    return next(free) + next(free)
